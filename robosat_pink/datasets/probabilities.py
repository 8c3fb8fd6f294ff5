"""From digital numbers to probabilities, as one module. Called by `trained` and `export`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robosat_pink.config import Config
from robosat_pink.datasets.normalisation import normalisation
from robosat_pink.datasets.symmetry_average import predictor
from robosat_pink.datasets.transforms import EvaluationTransform


class Probabilities(nn.Module):
    """A network with what an experiment does before and after it: normalisation, symmetries, sigmoid or softmax."""

    def __init__(self, config: Config, network: nn.Module) -> None:
        super().__init__()
        self.transform = EvaluationTransform(*normalisation(config.channels))
        self.predictor = predictor(network, config.model.symmetries)

    def forward(self, image: Tensor, scale: Tensor) -> Tensor:
        """Maps digital numbers (N, C, H, W) float32, divided by `scale` (N or 1, C), to (N, K, H, W) float32.

        NaN and inf count as 0, as in training. K = 1 for a single class.
        """
        return probabilities_of(self.logits(image, scale))

    def logits(self, image: Tensor, scale: Tensor) -> Tensor:
        numbers = torch.nan_to_num(image, nan=0.0, posinf=0.0, neginf=0.0)
        logits: Tensor = self.predictor(self.transform.normalised(numbers, scale)).float()
        return logits


def probabilities_of(logits: Tensor) -> Tensor:
    """Sigmoid or softmax of logits (K, H, W) or (N, K, H, W)."""
    return logits.sigmoid() if logits.shape[-3] == 1 else logits.softmax(dim=-3)
