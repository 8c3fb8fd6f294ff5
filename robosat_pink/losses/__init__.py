"""The losses by name. To add a loss, add one file to this folder and one line to LOSSES.

loss(logits (N, K, H, W), mask (N, H, W) uint8) is a scalar, computed in float32 or wider: the mean over the N samples
of the loss per sample. A sample without a valid pixel has a loss of 0. With one class, K = 1 and mask values are 0 and
1; with several, they are 0 to K - 1; 255 is ignored. `datasets/batch.py` checks axes and dtypes, and
`datasets/pair_decoder.py` the values, so a loss need not. `config` reads LOSSES, so nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from robosat_pink.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

IGNORE = 255  # the mask value of pixels that count in no loss and no metric


@dataclass(frozen=True)
class LossEntry:
    class_path: str  # module:class; the class takes num_classes and, if the next field is true, class_weights
    takes_class_weights: bool = False


LOSSES = {
    "lovasz": LossEntry("robosat_pink.losses.lovasz:Lovasz"),
    "bce_jaccard": LossEntry("robosat_pink.losses.bce_jaccard:BCEJaccard"),
    "dice": LossEntry("robosat_pink.losses.dice:Dice"),
    "focal": LossEntry("robosat_pink.losses.focal:Focal"),
    "cross_entropy": LossEntry("robosat_pink.losses.cross_entropy:CrossEntropy", takes_class_weights=True),
}


def build_loss(
    name: str | Mapping[str, float], *, num_classes: int, class_weights: Sequence[float] | None = None
) -> nn.Module:
    """The loss of that name, or a weighted sum of losses: {"lovasz": 0.5, "cross_entropy": 1}.

    `class_weights`, one per class, go to the losses that take them. Raises ConfigError for an unknown name.
    """
    if isinstance(name, Mapping):
        from robosat_pink.losses.weighted_sum import WeightedSum

        losses = {part: build_loss(part, num_classes=num_classes, class_weights=class_weights) for part in name}
        return WeightedSum(losses, name)
    if name not in LOSSES:
        raise ConfigError(f"loss = {name!r}: accepted: {', '.join(LOSSES)}")
    entry = LOSSES[name]
    module, class_name = entry.class_path.split(":")
    options = {"class_weights": class_weights} if entry.takes_class_weights and class_weights is not None else {}
    loss: nn.Module = getattr(import_module(module), class_name)(num_classes=num_classes, **options)
    return loss
