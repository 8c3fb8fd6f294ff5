"""Chooses example tiles, after training among the validation tiles, and predicts their pixels. Called by `build`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from robosat_pink.training.final_evaluation import Evaluation, TileResults
from robosat_pink.training.loop import evaluated_batches
from robosat_pink.training.metrics import predicted_classes

# Share of an example's pixels that must be valid, and of its valid pixels that must be of the class or predicted as it.
LEAST_SHARE = 0.01
MAX_EXAMPLES = 3  # tiles of each kind


class TilePixels(NamedTuple):
    image: np.ndarray  # (C, H, W), digital numbers of the selected bands
    mask: np.ndarray  # (H, W) uint8, 255 = ignore
    predicted: np.ndarray  # (H, W) uint8


class Examples(NamedTuple):
    positions: Mapping[str, list[int]]  # best, median, worst: positions in the results that are shown
    pixels: Mapping[int, TilePixels]  # by row of the pairs


def find_examples(evaluation: Evaluation) -> Examples:
    """Choose examples among the tiles whose results are shown, and predict them."""
    shown = evaluation.shown
    examples = choose_examples(shown, is_single=evaluation.task.config.num_classes == 1)
    positions = [position for kind in examples.values() for position in kind]
    return Examples(examples, predict_tiles(evaluation, shown.rows[positions]))


def predict_tiles(evaluation: Evaluation, rows: np.ndarray) -> dict[int, TilePixels]:
    """The pixels and predictions of tiles, by row."""
    tiles = {}
    for batch, result in evaluated_batches(evaluation.model, evaluation.task, rows, "report"):
        if not result:
            continue
        predicted = predicted_classes(result.logits).byte().cpu()
        for number, (row, (height, width)) in enumerate(zip(batch.rows, batch.sizes, strict=True)):
            inner = ..., slice(batch.border, batch.border + height), slice(batch.border, batch.border + width)
            padded = (batch.image[number], batch.mask[number], predicted[number])
            tiles[row] = TilePixels(*(pixels[inner].numpy().copy() for pixels in padded))
    return tiles


def class_ious(confusions: np.ndarray) -> np.ndarray:
    """IoU (N, K) by tile and class, from confusions (N, K, K); nan for a class in neither truth nor prediction."""
    correct = np.diagonal(confusions, axis1=1, axis2=2).astype(np.float64)
    union = confusions.sum(axis=1) + confusions.sum(axis=2) - correct
    with np.errstate(divide="ignore", invalid="ignore"):
        iou: np.ndarray = np.where(union > 0, correct / union, np.nan)
    return iou


def tile_ious(confusions: np.ndarray, is_single: bool) -> np.ndarray:
    """One IoU (N,) per tile: that of the single class, or the mean over classes whose IoU is defined."""
    by_class = class_ious(confusions)
    if is_single:
        return by_class[:, 1]
    defined = ~np.isnan(by_class)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean: np.ndarray = np.nansum(by_class, axis=1) / defined.sum(axis=1)
    return mean


def choose_examples(results: TileResults, is_single: bool) -> dict[str, list[int]]:
    """The `best`, `median` and `worst` tiles by IoU, as positions in `results`; no tile twice.

    Tiles with few valid pixels, or few of the class, are left out: an IoU of 0 for three missed pixels teaches nothing.
    If too few tiles remain, all tiles with an IoU are considered.
    """
    ious = tile_ious(results.confusions, is_single)
    valid = results.confusions.sum(axis=(1, 2))
    of_a_class = valid - results.confusions[:, 0, 0] if is_single else valid
    is_telling = (valid >= LEAST_SHARE * results.pixels) & (of_a_class >= LEAST_SHARE * valid) & ~np.isnan(ious)
    if is_telling.sum() < 3 * MAX_EXAMPLES:
        is_telling = ~np.isnan(ious)
    ranking = np.flatnonzero(is_telling)[np.argsort(-ious[is_telling], kind="stable")]
    count = min(MAX_EXAMPLES, math.ceil(len(ranking) / 3))
    best, rest = ranking[:count], ranking[count:]
    middle, worst = np.split(rest, [max(len(rest) - count, 0)])
    first = max(len(middle) - count + 1, 0) // 2
    return {"best": best.tolist(), "median": middle[first : first + count].tolist(), "worst": worst[::-1].tolist()}
