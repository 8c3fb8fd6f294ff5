"""Cross entropy per pixel, with class weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from robosat_pink.losses import IGNORE


class CrossEntropy(nn.Module):
    """Per sample, the weighted mean over its valid pixels: sum(w l) / sum(w).

    With one class, `class_weights` is the weight of its pixels; background pixels weigh 1.
    """

    weights: Tensor

    def __init__(self, num_classes: int, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        weights = [1.0] * num_classes if class_weights is None else list(class_weights)
        assert len(weights) == num_classes
        weights = [1.0, *weights] if num_classes == 1 else weights
        self.register_buffer("weights", torch.tensor(weights), persistent=False)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """logits (N, K, H, W), mask (N, H, W) with 255 = ignore: the scalar mean over the N samples."""
        valid = mask != IGNORE
        truth = torch.where(valid, mask, 0).long()
        per_pixel = pixel_cross_entropy(logits, truth)
        weight = self.weights.to(per_pixel.dtype)[truth] * valid
        total = (per_pixel * weight).flatten(1).sum(dim=1)
        # A sample without a valid pixel, or with weights of 0 alone, has a loss of 0.
        return (total / weight.flatten(1).sum(dim=1).clamp(min=torch.finfo(weight.dtype).tiny)).mean()


def pixel_cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """Loss per pixel (N, H, W), at least float32, of logits (N, K, H, W) and truth (N, H, W) without ignored values.

    K = 1 is binary.
    """
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits[:, 0], truth.to(logits.dtype), reduction="none")
    return functional.cross_entropy(logits, truth, reduction="none")
