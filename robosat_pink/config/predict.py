"""The section `predict` of an experiment file, as a frozen dataclass. Imported through `config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from robosat_pink.config.constraints import between, bucket_location, directory_expression, weights_location
from robosat_pink.config.keys import key

MOST_BUFFER = 4096  # pixels


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """The map that `predict` makes: by which model, of which tiles, and where it is written.

    `model` is a folder, a file, s3://… or channel:NAME with best.pth or SageMaker's model.tar.gz. `tiles` are all, val
    or holdout (by the id files beside the model), or the name of an id file.
    """

    model: str | None = key(None, weights_location)
    images: str | None = key(None, bucket_location)
    images_regex: str | None = key(None, directory_expression)
    tiles: str = key("all", weights_location)
    output: str | None = key(None, bucket_location)
    probability: bool = True
    mosaic: bool = True
    threshold: float | Literal["chosen"] = key(0.5, between(0, 1))
    buffer: int = key(64, between(0, MOST_BUFFER))
    symmetries: bool = False
    if_damaged: Literal["error", "skip"] = "error"
