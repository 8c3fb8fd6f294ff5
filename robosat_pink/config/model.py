"""The section `model` of an experiment file, as a frozen dataclass. Imported through `config`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from robosat_pink import losses, models
from robosat_pink.config.constraints import MOST_BANDS, between, one_of, weights_location
from robosat_pink.config.keys import key
from robosat_pink.config.problems import Problems
from robosat_pink.config.recipes import RECIPES

MOST_EPOCHS = 99_999  # the names of checkpoints have five digits


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network, its loss and its optimizer."""

    name: str = key(rule=one_of(models.MODELS))
    recipe: str = key("original", one_of(RECIPES))
    encoder: str | None = None
    num_filters: int | None = key(None, between(1, 1024))
    pixel_steps: int | None = key(None, between(0, 100_000))
    is_deconv: bool = False
    pretrained: bool | str = key(False, weights_location)
    pretrained_bands: tuple[int, ...] | None = key(None, between(1, MOST_BANDS))
    loss: str | dict[str, float] = key("lovasz", one_of(losses.LOSSES))
    batch_size: int = key(7, between(1, 10_000))
    tile_size: int = key(512, between(1, 16_384))
    epochs: int = key(50, between(1, MOST_EPOCHS))
    lr: float = key(0.000025, between(0, 1000, low_open=True))
    data_augmentation: float = key(0.75, between(0, 1))
    decay: float = key(0.0, between(0, 100))
    schedule: Literal["constant", "cosine"] = "constant"
    ema: float | None = key(None, between(0, 1, low_open=True, high_open=True))
    patience: int | None = key(None, between(1, MOST_EPOCHS))
    batch_norm: Literal["batch", "synchronised", "frozen"] = "batch"
    symmetries: bool = False

    def __post_init__(self) -> None:
        for name in ("num_filters", "pixel_steps"):
            if getattr(self, name) is None and self.name in models.MODELS:
                object.__setattr__(self, name, getattr(models.MODELS[self.name], name))

    def check(self, problems: Problems, prefix: str) -> None:
        entry = models.MODELS[self.name]
        if self.encoder is not None and self.encoder not in entry.encoders:
            problems.add(f"{prefix}encoder", self.encoder, f"{self.name} accepts: {', '.join(entry.encoders)}")
        if self.is_deconv and "is_deconv" not in entry.options:
            problems.add(f"{prefix}is_deconv", True, f"{self.name} has no such decoder; leave it out")
        if self.pixel_steps and entry.pixel_parts is None:
            advice = f"{self.name} has no path of single pixels; leave it out"
            problems.add(f"{prefix}pixel_steps", self.pixel_steps, advice)
        if self.pretrained and entry.pretrained_part is None:
            problems.add(f"{prefix}pretrained", self.pretrained, models.NO_PRETRAINED.format(name=self.name))
        if self.pretrained_bands and not self.pretrained:
            advice = "acts with model.pretrained only; set that or leave pretrained_bands out"
            problems.add(f"{prefix}pretrained_bands", self.pretrained_bands, advice)
        if self.pretrained_bands and self.pretrained is True and max(self.pretrained_bands) > 3:
            advice = "accepted: numbers from 1 to 3, for ImageNet's weights have the bands red, green and blue"
            problems.add(f"{prefix}pretrained_bands", self.pretrained_bands, advice)
        if self.tile_size % entry.size_multiple:
            fitting = math.ceil(self.tile_size / entry.size_multiple) * entry.size_multiple
            advice = f"{self.name} needs a multiple of {entry.size_multiple}; try {fitting}"
            problems.add(f"{prefix}tile_size", self.tile_size, advice)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of the network beyond its encoder."""
        return {"num_filters": self.num_filters} | ({"is_deconv": True} if self.is_deconv else {})

    @property
    def losses(self) -> tuple[str, ...]:
        return (self.loss,) if isinstance(self.loss, str) else tuple(self.loss)
