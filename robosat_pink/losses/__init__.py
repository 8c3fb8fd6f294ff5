"""The losses by name. To add one: a file beside this one and a line in LOSSES.

Like the networks, they are named here and imported when built, so that the table can be read without torch. Each is
called with logits (N, K, H, W) and mask (N, H, W) uint8, 255 = ignore, computes in float32 and returns the mean over
the N samples of a loss per sample, so that it does not depend on how samples are grouped; a sample without a valid
pixel counts 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from robosat_pink.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

IGNORE = 255  # mask value of pixels that count in no loss and no metric


@dataclass(frozen=True)
class LossEntry:
    class_path: str
    takes_class_weights: bool = False


LOSSES = {
    "lovasz": LossEntry("robosat_pink.losses.lovasz:Lovasz"),
    "bce_jaccard": LossEntry("robosat_pink.losses.bce_jaccard:BCEJaccard"),
    "cross_entropy": LossEntry("robosat_pink.losses.cross_entropy:CrossEntropy", takes_class_weights=True),
}


def build_loss(
    name: str | Mapping[str, float], *, num_classes: int, class_weights: Sequence[float] | None = None
) -> nn.Module:
    """The loss of that name, or the weighted sum of several: {"lovasz": 0.5, "cross_entropy": 1}.

    `class_weights`, one a class, go to those that take them. Raises ConfigError for a name that does not exist.
    """
    if isinstance(name, Mapping):
        from robosat_pink.losses.weighted_sum import WeightedSum

        return WeightedSum(
            {each: build_loss(each, num_classes=num_classes, class_weights=class_weights) for each in name}, dict(name)
        )
    if name not in LOSSES:
        raise ConfigError(f"loss = {name!r}: accepted: {', '.join(LOSSES)}")
    entry = LOSSES[name]
    module, class_name = entry.class_path.split(":")
    options = {"class_weights": class_weights} if entry.takes_class_weights and class_weights is not None else {}
    loss: nn.Module = getattr(import_module(module), class_name)(num_classes=num_classes, **options)
    return loss
