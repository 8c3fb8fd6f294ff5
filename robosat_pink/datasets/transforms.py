"""What happens to a batch on the device: scaling, normalisation, and in training the symmetries of the square.

Called by `step`. One function turns image and mask by their last two axes, so that they stay aligned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class EvaluationTransform(nn.Module):
    """image (N, C, H, W) of any type to float32 (number / scale - mean) / std; the mask is left as it is."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[:, None, None], persistent=False)

    def forward(self, image: Tensor, mask: Tensor, scale: Tensor, symmetry: Sequence[int]) -> tuple[Tensor, Tensor]:
        """scale (N, C) float32; `symmetry` is for training."""
        return (image.float() / scale[:, :, None, None] - self.mean) / self.std, mask


class TrainingTransform(EvaluationTransform):
    """The same, with each sample's symmetry applied to image and mask (square samples)."""

    def forward(self, image: Tensor, mask: Tensor, scale: Tensor, symmetry: Sequence[int]) -> tuple[Tensor, Tensor]:
        image, mask = super().forward(image, mask, scale, symmetry)
        return (
            torch.stack([apply_symmetry(tile, number) for tile, number in zip(image, symmetry, strict=True)]),
            torch.stack([apply_symmetry(labels, number) for labels, number in zip(mask, symmetry, strict=True)]),
        )


def apply_symmetry(tensor: Tensor, number: int) -> Tensor:
    """One of the eight symmetries of the square on the last two axes: bit 0 mirrors columns, 1 rows, 2 transposes."""
    assert 0 <= number < 8
    flipped = tensor.flip([axis for bit, axis in ((1, -1), (2, -2)) if number & bit])
    return flipped.transpose(-1, -2) if number & 4 else flipped
