"""Cross entropy per pixel, with class weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from robosat_pink.losses import IGNORE


class CrossEntropy(nn.Module):
    """The loss per sample is the weighted mean over its valid pixels: sum(w l) / sum(w).

    With one class, `class_weights` has the weight of that class; background pixels have a weight of 1.
    """

    weights: Tensor

    def __init__(self, num_classes: int, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        weights = [1.0] * num_classes if class_weights is None else list(class_weights)
        assert len(weights) == num_classes
        weights = [1.0, *weights] if num_classes == 1 else weights
        self.register_buffer("weights", torch.tensor(weights), persistent=False)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The scalar mean over N samples, from logits (N, K, H, W) and mask (N, H, W) with 255 = ignore."""
        valid = mask != IGNORE
        truth = torch.where(valid, mask, 0).long()
        per_pixel = pixel_cross_entropy(logits, truth)
        weight = self.weights.to(per_pixel.dtype)[truth] * valid
        total = (per_pixel * weight).flatten(1).sum(dim=1)
        # A sample without a valid pixel, or only with pixels of weight 0, has a loss of 0.
        return (total / weight.flatten(1).sum(dim=1).clamp(min=torch.finfo(weight.dtype).tiny)).mean()


def pixel_cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """The loss per pixel (N, H, W), at least float32, from logits (N, K, H, W) and truth (N, H, W) without 255.

    K = 1 means binary cross entropy.
    """
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits[:, 0], truth.to(logits.dtype), reduction="none")
    return functional.cross_entropy(logits, truth, reduction="none")
