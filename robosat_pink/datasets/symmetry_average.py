"""A network that averages its predictions over the eight symmetries of the square. For `training`, `probabilities`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from robosat_pink.datasets.reader import SYMMETRIES
from robosat_pink.datasets.transforms import apply_symmetry, undo_symmetry


class SymmetryAverage(nn.Module):
    """Maps images to the logits of the mean probability over the eight symmetries, in float32.

    One symmetry is computed at a time, so that memory does not grow with their number.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Maps image (N, C, H, W) to logits (N, K, H, W), whose sigmoid (K = 1) or softmax is the mean probability.

        Both sides must be multiples that the network accepts, for half of the symmetries exchange them.
        """
        layout = _memory_format(image)
        sums: list[Tensor] = []
        for number in range(SYMMETRIES):
            turned = apply_symmetry(image, number).contiguous(memory_format=layout)
            terms = _log_probabilities(undo_symmetry(self.network(turned), number).float())
            sums = [torch.logaddexp(*pair) for pair in zip(sums, terms, strict=True)] if sums else terms
        if len(sums) == 2:
            yes, no = sums
            return yes - no
        return sums[0] - math.log(SYMMETRIES)


def predictor(network: nn.Module, symmetries: bool) -> nn.Module:
    """The network as it predicts: itself, or with `symmetries` its average over them."""
    return SymmetryAverage(network) if symmetries else network


def _log_probabilities(logits: Tensor) -> list[Tensor]:
    """The log of the probabilities: of a single class and of its background, or of all classes in one tensor.

    Of a probability that rounds to 0 or 1, the log is still exact.
    """
    if logits.shape[1] == 1:
        return [functional.logsigmoid(logits), functional.logsigmoid(-logits)]
    return [functional.log_softmax(logits, dim=1)]


def _memory_format(image: Tensor) -> torch.memory_format:
    is_channels_last = image.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_channels_last else torch.contiguous_format
