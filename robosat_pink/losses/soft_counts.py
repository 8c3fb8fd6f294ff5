"""Pixels of a class, counted by probability. Called by the losses of overlap: `bce_jaccard` and `dice`."""

import torch
from torch import Tensor

from robosat_pink.losses import IGNORE


def soft_counts(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Intersection, predicted and true pixels (N, K) per sample and class, at least float32.

    From logits (N, K, H, W) and mask (N, H, W) with 255 = ignore. K = 1 counts the class, not its background.
    """
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    valid = mask != IGNORE
    if logits.shape[1] == 1:
        probs, is_class = logits.sigmoid(), mask[:, None] == 1
    else:
        classes = torch.arange(logits.shape[1], device=mask.device)[:, None, None]
        probs, is_class = logits.softmax(dim=1), mask[:, None] == classes
    probs = (probs * valid[:, None]).flatten(2)  # (N, K, H*W)
    present = (is_class & valid[:, None]).flatten(2)
    return (probs * present).sum(dim=2), probs.sum(dim=2), present.sum(dim=2)
