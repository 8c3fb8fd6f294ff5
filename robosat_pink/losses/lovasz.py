"""Lovász losses: convex surrogates of the intersection over union.

Berman, Rannen Triki, Blaschko, "The Lovász-Softmax loss", CVPR 2018, arXiv 1705.08790.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from robosat_pink.losses import IGNORE


class Lovasz(nn.Module):
    """The Lovász loss per image: the hinge form for one class, the softmax form for several."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The scalar mean over N images, from logits (N, K, H, W) and mask (N, H, W) with 255 = ignore.

        The loss and gradient of an image without a valid pixel are 0.
        """
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        per_image = lovasz_hinge(logits, mask) if self.num_classes == 1 else lovasz_softmax(logits, mask)
        return per_image.mean()


def lovasz_hinge(logits: Tensor, mask: Tensor) -> Tensor:
    """One loss per image (N,), from binary logits (N, 1, H, W) and mask (N, H, W): equation 10."""
    score = logits.flatten(1)
    truth = mask.flatten(1)
    positive = truth == 1
    sign = positive.to(score.dtype) * 2 - 1
    errors = 1 - score * sign
    return LovaszExtension.apply(errors, positive, truth != IGNORE)  # type: ignore[no-untyped-call]


def lovasz_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """One loss per image (N,), from logits (N, K, H, W) and mask (N, H, W): equation 11, over classes present."""
    num_classes = logits.shape[1]
    probs = logits.flatten(2).softmax(dim=1)  # (N, K, H*W)
    truth = mask.flatten(1)[:, None]
    foreground = truth == torch.arange(num_classes, device=mask.device)[:, None]  # (N, K, H*W)
    errors = torch.where(foreground, 1 - probs, probs)
    valid = (truth != IGNORE).expand_as(foreground)
    rows = (values.flatten(0, 1) for values in (errors, foreground, valid))  # (N*K, H*W)
    per_class = LovaszExtension.apply(*rows)  # type: ignore[no-untyped-call]
    present = foreground.any(dim=2).to(errors.dtype)  # (N, K)
    return (per_class.view_as(present) * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)


class LovaszExtension(torch.autograd.Function):
    """Lovász extension of the Jaccard loss: errors (R, P), positive and valid (R, P) bool, to losses (R,).

    Pixels are sorted by error, descending. Pixel i adds relu(error) times the step of the Jaccard loss when pixel i is
    counted as wrong, too. If the step is computed as a difference of two nearly equal numbers, a gradient entry has a
    relative error of 21 % in float32 at 1 % positives. With U = all positives + negatives so far, the step is 1 / U for
    a positive and (positives left) / (U (U - 1)) for a negative: this form needs no such difference and no float64.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, errors: Tensor, positive: Tensor, valid: Tensor) -> Tensor:
        # Ignored pixels get an error of 0: they come last, so the counts of pixels with an error leave them out.
        ordered, order = _sort_descending(errors.masked_fill(~valid, 0.0).clamp_(min=0))
        # Counts up to 2^24 are exact in float32, the fastest dtype.
        exact = errors.dtype if errors.shape[1] <= 2**24 else torch.float64
        is_positive = (positive & valid).to(exact).gather(1, order)
        positives_so_far = is_positive.cumsum(dim=1)
        left = positives_so_far[:, -1:] - positives_so_far
        union = left + torch.arange(1, errors.shape[1] + 1, dtype=exact, device=errors.device)
        # Products with 0 and 1, because torch.where with a shuffled condition takes three times as long.
        share = left.div_((union - 1).clamp_(min=1)).mul_(1 - is_positive).add_(is_positive)
        share[:, 0] += positives_so_far[:, -1] == 0  # without positives the loss jumps from 0 to 1 at the first pixel
        step = share.div_(union).to(errors.dtype).mul_(ordered.sign())
        ctx.save_for_backward(order, step)
        return (ordered * step).sum(dim=1)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        order, step = ctx.saved_tensors  # type: ignore[attr-defined]
        return torch.empty_like(step).scatter_(1, order, grad[:, None] * step), None, None


def _sort_descending(errors: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of errors (R, P) >= 0 in descending order, and the indices of that order."""
    if errors.device.type != "cpu" or errors.dtype != torch.float32:
        return errors.sort(dim=1, descending=True)
    # The bits of floats >= 0, read as int32, have the same order, and torch sorts int32 rows by radix: 7 times as fast.
    # Adding 0 turns -0, whose bits differ from those of 0, into 0.
    infinity = 0x7F800000
    ordered = errors.new_empty(errors.shape, dtype=torch.int32)
    order = errors.new_empty(errors.shape, dtype=torch.int64)
    for number, row in enumerate(infinity - (errors + 0.0).view(torch.int32)):
        torch.sort(row, out=(ordered[number], order[number]))
    return (infinity - ordered).view(torch.float32), order
