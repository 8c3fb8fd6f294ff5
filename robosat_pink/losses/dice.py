"""One minus the soft Dice coefficient.

Milletari, Navab, Ahmadi, "V-Net", arXiv 1606.04797, section 3, without squares in the denominator.
"""

from torch import Tensor, nn

from robosat_pink.losses.soft_counts import soft_counts

SMOOTH_PIXELS = 1.0  # added to numerator and denominator: a class neither present nor predicted has D = 1


class Dice(nn.Module):
    """The loss per sample, over its valid pixels: 1 - mean over classes of D, the soft Dice coefficient."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The scalar mean over N samples, from logits (N, K, H, W) and mask (N, H, W) with 255 = ignore."""
        intersection, predicted, present = soft_counts(logits, mask)
        dice = (2 * intersection + SMOOTH_PIXELS) / (predicted + present + SMOOTH_PIXELS)
        return (1 - dice).mean()
