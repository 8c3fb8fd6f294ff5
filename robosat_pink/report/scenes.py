"""Metrics by scene, for `scenes.csv` and the report's table. A scene is a directory of tiles. Called by `build`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from robosat_pink.datasets.tiles import TileFiles
from robosat_pink.training import metrics
from robosat_pink.training.final_evaluation import TileResults

SCENE_METRICS = tuple(name for name in metrics.NAMES if name != "loss")  # a loss is a mean over tiles, not pixels


class Scene(NamedTuple):
    split: str  # holdout, val or evaluated
    name: str
    tiles: int  # tiles with a valid pixel
    empty: int  # tiles without a valid pixel
    confusion: np.ndarray  # (K, K) int64
    scores: dict[str, Any]

    @property
    def pixels(self) -> int:
        return int(self.confusion.sum())


def by_scene(split: str, results: TileResults, images: TileFiles, class_names: Sequence[str]) -> list[Scene]:
    """The scenes of the results' tiles, sorted by name. Their confusion matrices sum to the split's."""
    evaluated, listed = images.directory[results.rows], images.directory[results.listed]
    scenes = []
    for number in np.unique(listed).tolist():
        is_inside = evaluated == number
        confusion = results.confusions[is_inside].sum(axis=0)
        tiles = int(is_inside.sum())
        empty = int((listed == number).sum()) - tiles
        scores = metrics.scores(confusion, class_names, math.nan)
        scenes.append(Scene(split, images.directories[number], tiles, empty, confusion, scores))
    return sorted(scenes, key=lambda scene: scene.name)


def confusion_labels(class_names: Sequence[str]) -> list[str]:
    """Labels of the rows and columns of a confusion matrix."""
    return ["background", *class_names] if len(class_names) == 1 else list(class_names)


def to_csv(scenes: Sequence[Scene], class_names: Sequence[str]) -> str:
    """One line per scene: tiles, metrics, the IoU of each class, and the pixels by truth and prediction."""
    labels = confusion_labels(class_names)
    pixel_columns = [f"pixels_{truth}_as_{prediction}" for truth in labels for prediction in labels]
    iou_classes = [] if len(class_names) == 1 else list(class_names)
    iou_columns = [f"iou_{name}" for name in iou_classes]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["part", "scene", "tiles", "empty", "pixels", *SCENE_METRICS, *iou_columns, *pixel_columns])
    for scene in scenes:
        scores = [scene.scores[name] for name in SCENE_METRICS]
        scores += [scene.scores["per_class"][name]["iou"] for name in iou_classes]
        shown = ["" if math.isnan(score) else score for score in scores]
        row = [scene.split, scene.name, scene.tiles, scene.empty, scene.pixels, *shown]
        writer.writerow([*row, *scene.confusion.ravel().tolist()])
    return text.getvalue()
