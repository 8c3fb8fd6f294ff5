"""What the report says, as plain data. Filled in by `report`, read by `page`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robosat_pink.report.scenes import Scene


@dataclass(frozen=True)
class TilePictures:
    """One tile as it is shown."""

    kind: str  # best, median, worst
    score: float  # IoU
    tile_id: str
    place: str  # z/x/y
    map_link: str
    words: str  # what the image panel shows
    panels: tuple[tuple[str, str], ...]  # name, data URI


@dataclass(frozen=True)
class Part:
    """What the best weights make of one part of the split."""

    name: str  # holdout or val
    scores: Mapping[str, Any]
    total: np.ndarray  # (K, K)
    scenes: Sequence[Scene]
    differing: float  # largest difference of a score from what the run itself has measured


@dataclass(frozen=True)
class Facts:
    """All that the page says."""

    title: str
    source: str
    ended: str  # when, and if it was stopped, why
    epochs: int
    best_epoch: int
    class_names: Sequence[str]
    class_colors: Sequence[str]
    numbers: Mapping[str, Mapping[str, Any]]  # metrics by the words of a column, held-out ones first
    beside: str  # what the first of these are to be compared with
    parts: Sequence[Part]  # in the same order
    curves: Mapping[str, str]  # data URIs by metric
    threshold_curve: str | None  # a data URI
    threshold_words: str
    tiles: Sequence[TilePictures]
    tiles_of: str  # the part they are of
    split_map: str  # SVG
    place: str
    data: Sequence[tuple[str, int | str]]
    remarks: Sequence[str]  # what a person should know of the tiles, as the log has it
    split: Mapping[str, int]
    seconds: Mapping[str, float]
    machine: Sequence[str]
    config: str  # YAML
