"""Cross entropy minus the logarithm of a soft Jaccard index.

Iglovikov, Shvets, "TernausNet", arXiv 1801.05746, equations 2 to 4; TernausNetV2 was trained with it.
"""

import torch
from torch import Tensor, nn

from robosat_pink.losses import IGNORE
from robosat_pink.losses.cross_entropy import pixel_cross_entropy
from robosat_pink.losses.soft_counts import soft_counts

SMOOTH_PIXELS = 1.0  # added to intersection and union: a class neither present nor predicted has J = 1


class BCEJaccard(nn.Module):
    """The loss per sample, over its valid pixels: cross entropy - mean over classes of log J.

    J is the soft Jaccard index. For one class, the loss is binary cross entropy - log J.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The scalar mean over N samples, from logits (N, K, H, W) and mask (N, H, W) with 255 = ignore."""
        valid = mask != IGNORE
        truth = torch.where(valid, mask, 0).long()
        per_pixel = (pixel_cross_entropy(logits, truth) * valid).flatten(1)
        entropy = per_pixel.sum(dim=1) / valid.flatten(1).sum(dim=1).clamp(min=1)

        intersection, predicted, present = soft_counts(logits, mask)
        union = predicted + present - intersection
        jaccard = (intersection + SMOOTH_PIXELS) / (union + SMOOTH_PIXELS)
        return (entropy - jaccard.log().mean(dim=1)).mean()
