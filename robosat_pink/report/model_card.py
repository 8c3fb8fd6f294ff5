"""Renders MODEL_CARD.md: what the model is for, how good it is, how to apply it. Called by `build`.

Model hubs read the card's front matter (YAML between dashes). People must fill in the licences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robosat_pink.config import ChannelConfig, Config
from robosat_pink.container.some_names import some_names
from robosat_pink.report import maps, templating
from robosat_pink.report.scenes import confusion_labels
from robosat_pink.training import metrics
from robosat_pink.training.intervals import INTERVAL_METRICS

MAX_SCENES = 12  # scenes that the card names


@dataclass(frozen=True)
class ModelCard:
    """The content of the card. Nothing is escaped."""

    config: Config
    scenes: Sequence[str]
    zxy: np.ndarray  # (N, 3), zoom, x and y of the pairs
    split_sizes: Mapping[str, int]
    version: str
    epochs: int
    best_epoch: int
    metrics: Mapping[str, Mapping[str, Any]]  # by column title, held-out tiles first
    best: Mapping[str, Any]  # the numbers of the best weights on the tiles of the first column, as in metrics.json
    threshold: float | None  # chosen on val tiles; None for several classes
    meanings: Sequence[str]  # sentences on these numbers
    baseline: str  # a sentence about the first column, or empty
    tile_pixels: int
    finished: str


def render(card: ModelCard) -> str:
    config = card.config
    class_names = [class_.name for class_ in config.classes]
    bands = [band for channel in config.channels for band in channel.bands]
    first_column, first_scores = next(iter(card.metrics.items()))
    environment = templating.markdown_environment()
    environment.filters["score"] = lambda value: "undefined" if math.isnan(value) else f"{value:.4f}"
    environment.filters["interval"] = lambda ends: " to ".join(f"{end:.4f}" for end in ends or ()) or "none"
    return environment.get_template("MODEL_CARD.md.j2").render(
        card=card,
        config=config,
        recipe=config.model.recipe,
        class_names=class_names,
        mask_values=", ".join(f"{value} {label}" for value, label in enumerate(confusion_labels(class_names))),
        bands=bands,
        reading_code=_reading_code(config, bands),
        needs_dtype=any(channel.scale in ("auto", None) for channel in config.channels),
        scales="; ".join(map(_scale, config.channels)),
        zooms=sorted({int(zoom) for zoom in card.zxy[:, 0]}),
        resolution_m=maps.metres_per_pixel(card.zxy, card.tile_pixels),
        bounds=maps.bounds(card.zxy),
        scenes=some_names([templating.code_span(name) for name in card.scenes], MAX_SCENES),
        metric_names=metrics.NAMES,
        class_metrics=metrics.CLASS_NAMES,
        interval_metrics=INTERVAL_METRICS,
        first_column=first_column,
        first_scores=first_scores,
    )


def _reading_code(config: Config, bands: Sequence[int | str]) -> str:
    """Python code that reads these bands of an image, with the values that the network was trained on."""
    has_names = any(isinstance(band, str) for band in bands)
    has_tags = config.channels[0].scale == "tags"
    if not has_names and not has_tags:
        return f'image = rasterio.open("tile.tif").read({list(bands)})'
    numbers = ", ".join(f"names.index({band.lower()!r}) + 1" if isinstance(band, str) else str(band) for band in bands)
    lines = ['file = rasterio.open("tile.tif")']
    if has_names:
        lines.append("names = [str(name).lower() for name in file.descriptions]")
    lines.append(f"bands = [{numbers}]")
    if not has_tags:
        return "\n".join([*lines, "image = file.read(bands)"])
    band = "file.read(band) * file.scales[band - 1] + file.offsets[band - 1]"
    return "\n".join(["import numpy", *lines, f"image = numpy.array([{band} for band in bands])"])


def _scale(channel: ChannelConfig) -> str:
    """The normalisation of a channel in words, for readers: `load_model` normalises by itself."""
    if channel.scale == "raw":
        return "as they are"
    if isinstance(channel.scale, int | float):
        scale = f"divided by {channel.scale:g}"
    elif channel.scale == "tags":
        scale = "by the files' own scale and offset"
    else:
        scale = "divided by 255 for uint8, 10000 for (u)int16, 1 for floats"
    mean = f", less {list(channel.mean)}" if channel.mean is not None else ""
    std = f", divided by {list(channel.std)}" if channel.std is not None else ""
    return f"{scale}{mean}{std}"
