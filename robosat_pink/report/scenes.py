"""Numbers by scene, a directory of tiles: for `scenes.csv` and the report's table. Called by `report`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from robosat_pink.datasets.tiles import TileFiles
from robosat_pink.report.evaluate import Inspection
from robosat_pink.training import metrics

NAMES = tuple(name for name in metrics.NAMES if name != "loss")  # which is a tile's, not a pixel's


class Scene(NamedTuple):
    part: str  # holdout or val
    name: str
    tiles: int  # with a valid pixel
    empty: int  # without
    counts: np.ndarray  # (K, K) int64
    scores: dict[str, Any]


def by_scene(
    part: str, rows: np.ndarray, found: Inspection, images: TileFiles, class_names: Sequence[str]
) -> list[Scene]:
    """Of the scenes that have tiles among `rows`, in the order of their names; their counts sum up to the part's."""
    of_tiles, of_all = images.directory[found.rows], images.directory[rows]
    scenes = []
    for number in np.unique(of_all).tolist():
        counts = found.counts[of_tiles == number].sum(axis=0)
        tiles = int((of_tiles == number).sum())
        empty = int((of_all == number).sum()) - tiles
        scores = metrics.scores(counts, class_names, math.nan)
        scenes.append(Scene(part, images.directories[number], tiles, empty, counts, scores))
    return sorted(scenes, key=lambda scene: scene.name)


def truths(class_names: Sequence[str]) -> list[str]:
    """What the rows and columns of a confusion matrix stand for."""
    return ["background", *class_names] if len(class_names) == 1 else list(class_names)


def to_csv(scenes: Sequence[Scene], class_names: Sequence[str]) -> str:
    """A line a scene: tiles, metrics, the IoU of each class, and the pixels of each truth by prediction."""
    names = truths(class_names)
    text = io.StringIO()
    pairs = [f"pixels_{truth}_as_{prediction}" for truth in names for prediction in names]
    of_classes = [] if len(class_names) == 1 else [f"iou_{name}" for name in class_names]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["part", "scene", "tiles", "empty", "pixels", *NAMES, *of_classes, *pairs])
    for scene in scenes:
        values = [scene.scores[name] for name in NAMES]
        if of_classes:
            values += [scene.scores["per_class"][name]["iou"] for name in class_names]
        row = [scene.part, scene.name, scene.tiles, scene.empty, int(scene.counts.sum())]
        writer.writerow([*row, *("" if math.isnan(each) else each for each in values), *scene.counts.ravel().tolist()])
    return text.getvalue()
