"""Focal loss: cross entropy that gives well-classified pixels less weight.

Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", arXiv 1708.02002, equation 4.
"""

import torch
from torch import Tensor, nn

from robosat_pink.losses import IGNORE
from robosat_pink.losses.cross_entropy import pixel_cross_entropy

GAMMA = 2.0  # the paper's choice


class Focal(nn.Module):
    """The loss per sample is the mean over its valid pixels of (1 - p)^GAMMA times -log p, p that of the true class."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The scalar mean over N samples, from logits (N, K, H, W) and mask (N, H, W) with 255 = ignore."""
        valid = mask != IGNORE
        entropy = pixel_cross_entropy(logits, torch.where(valid, mask, 0).long())
        per_pixel = (1 - torch.exp(-entropy)) ** GAMMA * entropy * valid
        return (per_pixel.flatten(1).sum(dim=1) / valid.flatten(1).sum(dim=1).clamp(min=1)).mean()
