"""Lovász losses: convex surrogates of the intersection over union.

Berman, Rannen Triki, Blaschko, "The Lovász-Softmax loss", CVPR 2018, arXiv 1705.08790. Per image, mean over images.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from robosat_pink.losses import IGNORE


class Lovasz(nn.Module):
    """Hinge form for one class, softmax form for several. In float32, whatever the type of the logits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """logits (N, K, H, W), mask (N, H, W) with 255 = ignore: the scalar mean over the N images.

        An image without a valid pixel counts as a loss of 0 with gradient 0.
        """
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        per_image = lovasz_hinge(logits, mask) if self.num_classes == 1 else lovasz_softmax(logits, mask)
        return per_image.mean()


def lovasz_hinge(logits: Tensor, mask: Tensor) -> Tensor:
    """Equation 10 of the paper on binary logits (N, 1, H, W): one loss per image, (N,)."""
    score = logits.flatten(1)
    truth = mask.flatten(1)
    positive = truth == 1
    sign = positive.to(score.dtype) * 2 - 1
    errors = 1 - score * sign
    return LovaszExtension.apply(errors, positive, truth != IGNORE)  # type: ignore[no-untyped-call]


def lovasz_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Equation 11: mean over the classes that are present in the image, logits (N, K, H, W) to losses (N,)."""
    num_classes = logits.shape[1]
    probs = logits.flatten(2).softmax(dim=1)  # (N, K, H*W)
    truth = mask.flatten(1)[:, None]
    foreground = truth == torch.arange(num_classes, device=mask.device)[:, None]  # (N, K, H*W)
    errors = torch.where(foreground, 1 - probs, probs)
    valid = (truth != IGNORE).expand_as(foreground)
    rows = (each.flatten(0, 1) for each in (errors, foreground, valid))
    per_class = LovaszExtension.apply(*rows)  # type: ignore[no-untyped-call]
    present = foreground.any(dim=2).to(errors.dtype)  # (N, K)
    return (per_class.view_as(present) * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)


class LovaszExtension(torch.autograd.Function):
    """Lovász extension of the Jaccard loss: errors (R, P), positive and valid (R, P) bool, to losses (R,).

    With the errors in falling order, pixel i adds relu(error) times the step by which the Jaccard loss grows when the
    i-th pixel is counted as wrong. In the usual form a step is a difference of two nearly equal numbers, which leaves
    21 % relative error per gradient entry in float32 at 1 % positives. Written out, with U = positives + negatives so
    far, it is 1 / U for a positive and (positives left) / (U (U - 1)) for a negative: no subtraction, no float64.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, errors: Tensor, positive: Tensor, valid: Tensor) -> Tensor:
        # Ignored pixels have no error, and so lie behind all that have one: nobody's count has seen them.
        ordered, order = _falling(errors.masked_fill(~valid, 0.0).clamp_(min=0))
        # Whole numbers, exact: also in float32, which is the fastest, up to 2^24 pixels.
        exact = errors.dtype if errors.shape[1] <= 2**24 else torch.float64
        is_positive = (positive & valid).to(exact).gather(1, order)
        positives_so_far = is_positive.cumsum(dim=1)
        left = positives_so_far[:, -1:] - positives_so_far
        union = left + torch.arange(1, errors.shape[1] + 1, dtype=exact, device=errors.device)
        # By products with 0 and 1: choosing by a mask, which the order has stirred, takes three times as long.
        share = left.div_((union - 1).clamp_(min=1)).mul_(1 - is_positive).add_(is_positive)
        share[:, 0] += positives_so_far[:, -1] == 0  # without positives the loss jumps from 0 to 1 at the first pixel
        step = share.div_(union).to(errors.dtype).mul_(ordered.sign())
        ctx.save_for_backward(order, step)
        return (ordered * step).sum(dim=1)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        order, step = ctx.saved_tensors  # type: ignore[attr-defined]
        return torch.empty_like(step).scatter_(1, order, grad[:, None] * step), None, None


def _falling(errors: Tensor) -> tuple[Tensor, Tensor]:
    """Errors (R, P) >= 0 of each row in falling order, and their places."""
    if errors.device.type != "cpu" or errors.dtype != torch.float32:
        return errors.sort(dim=1, descending=True)
    # As whole numbers, whose order is that of the bits of floats >= 0, torch sorts a row by radix: 7 times as fast.
    # The 0 that is added turns -0, which has other bits, into 0.
    infinity = 0x7F800000
    ordered, order = (
        errors.new_empty(errors.shape, dtype=torch.int32),
        errors.new_empty(errors.shape, dtype=torch.int64),
    )
    for number, row in enumerate(infinity - (errors + 0.0).view(torch.int32)):
        torch.sort(row, out=(ordered[number], order[number]))
    return (infinity - ordered).view(torch.float32), order
