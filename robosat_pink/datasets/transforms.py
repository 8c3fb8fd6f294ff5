"""Transforms of a batch on the device: scaling, normalisation, and in training a symmetry of the square.

Called by `step` and `probabilities`. One function transforms the last two axes of image and mask, so that they stay
aligned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class EvaluationTransform(nn.Module):
    """Maps image (N, C, H, W) of any dtype to (image / scale - mean) / std in float32; leaves the mask unchanged.

    Missing pixels and padding are 0 before, so -mean / std after. Their mask is 255.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[:, None, None], persistent=False)

    def forward(self, image: Tensor, mask: Tensor, scale: Tensor, symmetry: Sequence[int]) -> tuple[Tensor, Tensor]:
        """`scale` is (N, C) float32. `symmetry` is ignored: it is for training."""
        return self.normalised(image, scale), mask

    def normalised(self, image: Tensor, scale: Tensor) -> Tensor:
        """`scale` is (N, C) or (1, C) float32."""
        return (image.float() / scale[:, :, None, None] - self.mean) / self.std


class TrainingTransform(EvaluationTransform):
    """Normalises as EvaluationTransform does, then applies each sample's symmetry to its square image and mask."""

    def forward(self, image: Tensor, mask: Tensor, scale: Tensor, symmetry: Sequence[int]) -> tuple[Tensor, Tensor]:
        image, mask = super().forward(image, mask, scale, symmetry)
        return (
            torch.stack([apply_symmetry(tile, number) for tile, number in zip(image, symmetry, strict=True)]),
            torch.stack([apply_symmetry(labels, number) for labels, number in zip(mask, symmetry, strict=True)]),
        )


def apply_symmetry(tensor: Tensor, number: int) -> Tensor:
    """Apply one of the eight symmetries of the square to the last two axes.

    Bit 0 flips the last axis (columns), bit 1 the one before (rows); bit 2 then transposes the two.
    """
    assert 0 <= number < 8
    flipped = tensor.flip([axis for bit, axis in ((1, -1), (2, -2)) if number & bit])
    return flipped.transpose(-1, -2) if number & 4 else flipped


def undo_symmetry(tensor: Tensor, number: int) -> Tensor:
    """The inverse of `apply_symmetry`: transposes first, then flips."""
    assert 0 <= number < 8
    upright = tensor.transpose(-1, -2) if number & 4 else tensor
    return upright.flip([axis for bit, axis in ((1, -1), (2, -2)) if number & bit])
