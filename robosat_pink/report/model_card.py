"""MODEL_CARD.md beside the model: what it is for, how good it is, how it is applied. Called by `report`.

Its head is as model hubs read it (YAML between dashes). What only people know is left for them to fill in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robosat_pink.config import Config
from robosat_pink.container.some_names import some_names
from robosat_pink.datasets.pairing import Pairs
from robosat_pink.datasets.split import Split
from robosat_pink.report import maps
from robosat_pink.report.scenes import truths
from robosat_pink.training import metrics

SHOWN = 12  # scenes named


@dataclass(frozen=True)
class Facts:
    """All that the card says."""

    config: Config
    pairs: Pairs
    split: Split
    version: str
    epochs: int
    best_epoch: int
    numbers: Mapping[str, Mapping[str, Any]]  # metrics by the words of a column, held-out ones first
    beside: str  # what the first of these are to be compared with
    tile_pixels: int
    finished: str


def render(facts: Facts) -> str:
    config, pairs = facts.config, facts.pairs
    names = [each.name for each in config.classes]
    bands = [band for channel in config.channels for band in channel.bands]
    zooms = sorted({int(zoom) for zoom in pairs.images.zxy[:, 0]})
    zoom = " and ".join(map(str, zooms))
    resolution = maps.metres_per_pixel(pairs.images.zxy, facts.tile_pixels)
    first, scores = next(iter(facts.numbers.items()))
    scenes = some_names([f"`{name}`" for name in pairs.images.directories], SHOWN)
    held = len(facts.split.holdout)
    holdout, lists = (f", {held} held out", ", `holdout_ids.txt`") if held else ("", "")
    chosen = (
        "The held-out tiles were looked at once, at the end."
        if "held-out tiles" in facts.numbers
        else "The validation tiles chose the best epoch."
    )
    return f"""---
license: other            # fill in: the licence of these weights
license_name: to be named # it may depend on that of the imagery, below
library_name: robosat_pink
tags: [image-segmentation, remote-sensing, {", ".join(json.dumps(name) for name in names)}]
---

# {", ".join(names)} by {config.model.name}

Trained {facts.finished} with robosat_pink {facts.version}; `best.pth` holds epoch {facts.best_epoch} of {facts.epochs}.

## Apply it

```python
import rasterio
from robosat_pink.trained import load_model
{_reading(config, bands)}
mask = load_model("best.pth").classify(image)  # (H, W): {_in_words(truths(names))}
```

## What it is meant for

| | |
|---|---|
| classes | {_in_words(truths(names))} |
| bands | {", ".join(map(str, bands))} of the files, in this order |
| digital numbers | {_scales(config)} |
| tile zoom | {zoom}, tiles of {facts.tile_pixels} x {facts.tile_pixels} pixels |
| ground resolution | about {resolution:.2g} m a pixel |
| places | {maps.bounds(pairs.images.zxy)} |

Other sensors, other bands, another zoom, other seasons or landscapes than those below: try before you trust it.

## What it was trained on

{len(pairs)} pairs of tiles: {len(facts.split.train)} trained on, {len(facts.split.val)} for validation{holdout}. Images
from `{config.dataset.image_bucket}`, masks from `{config.dataset.mask_bucket}`. Scenes:
{scenes}.
Which tile was which: `train_ids.txt`, `test_ids.txt` (validation){lists}. Everything else about the run: `config.yml`.

## How well it does

{_table(facts.numbers)}

{_by_class(first, scores)}

{chosen} Pixels without data count nowhere. Scene by scene: `report.html` and
`scenes.csv` in the run's output. {facts.beside}

## Licence

| | |
|---|---|
| code | MIT (robosat_pink) |
| weights | to be filled in |
| imagery and masks | to be filled in |
"""


def _in_words(names: Sequence[str]) -> str:
    return ", ".join(f"{number} {name}" for number, name in enumerate(names))


def _reading(config: Config, bands: Sequence[int | str]) -> str:
    """Python that reads an image of the bands, in the values that the network learnt from."""
    if config.channels[0].scale != "tags" and not any(isinstance(band, str) for band in bands):
        return f'image = rasterio.open("tile.tif").read({list(bands)})'
    numbers = ", ".join(f"names.index({band.lower()!r}) + 1" if isinstance(band, str) else str(band) for band in bands)
    named = ["names = [str(name).lower() for name in file.descriptions]"] if "names." in numbers else []
    lines = ['file = rasterio.open("tile.tif")', *named, f"bands = [{numbers}]"]
    if config.channels[0].scale == "tags":
        band = "file.read(band) * file.scales[band - 1] + file.offsets[band - 1]"
        lines = ["import numpy", *lines, f"image = numpy.array([{band} for band in bands])"]
    else:
        lines.append("image = file.read(bands)")
    return "\n".join(lines)


def _scales(config: Config) -> str:
    """How each channel's numbers are normalised; `load_model` does it by itself."""
    words = []
    for channel in config.channels:
        if channel.scale == "raw":
            words.append("as they are")
            continue
        scale = (
            f"divided by {channel.scale:g}"
            if isinstance(channel.scale, int | float)
            else "by the files' own scale and offset"
            if channel.scale == "tags"
            else "divided by 255 for uint8, 10000 for (u)int16, 1 for floats"
        )
        mean = f", less {list(channel.mean)}" if channel.mean is not None else ""
        std = f", divided by {list(channel.std)}" if channel.std is not None else ""
        words.append(f"{scale}{mean}{std}")
    return "; ".join(words)


def _table(numbers: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [[name, *(_number(scores[name]) for scores in numbers.values())] for name in metrics.NAMES]
    return _rows("", list(numbers), rows)


def _by_class(first: str, scores: Mapping[str, Any]) -> str:
    rows = [
        [name, *(_number(values[each]) for each in metrics.CLASS_NAMES)] for name, values in scores["per_class"].items()
    ]
    return _rows(first, metrics.CLASS_NAMES, rows)


def _rows(corner: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [[corner, *head], ["---"] * (1 + len(head)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.4f}"
