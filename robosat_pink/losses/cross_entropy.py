"""Cross entropy per pixel, with class weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from robosat_pink.losses import IGNORE


class CrossEntropy(nn.Module):
    """Per sample the weighted mean over its valid pixels, sum(w l) / sum(w); the mean over samples.

    One class: `class_weights` holds the weight of its pixels, those of the background weigh 1.
    """

    weights: Tensor

    def __init__(self, num_classes: int, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        weights = [1.0] * num_classes if class_weights is None else list(class_weights)
        assert len(weights) == num_classes
        weights = [1.0, *weights] if num_classes == 1 else weights
        self.register_buffer("weights", torch.tensor(weights), persistent=False)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        valid = mask != IGNORE
        truth = torch.where(valid, mask, 0).long()
        per_pixel = pixel_cross_entropy(logits, truth)
        weight = self.weights.to(per_pixel.dtype)[truth] * valid
        total = (per_pixel * weight).flatten(1).sum(dim=1)
        # Weights may be zero; then, as without a valid pixel, the sample has nothing to be judged by.
        return (total / weight.flatten(1).sum(dim=1).clamp(min=torch.finfo(weight.dtype).tiny)).mean()


def pixel_cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """logits (N, K, H, W), truth (N, H, W) of valid classes: (N, H, W), at least float32; one class is binary."""
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits[:, 0], truth.to(logits.dtype), reduction="none")
    return functional.cross_entropy(logits, truth, reduction="none")
