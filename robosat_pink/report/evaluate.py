"""Evaluates the best weights on each tile: confusion, probabilities, and pixels of example tiles. Called by `build`.

It runs the evaluation loop once more after training, so that results for the report take no time during training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from robosat_pink.losses import IGNORE
from robosat_pink.training.loop import evaluated_batches
from robosat_pink.training.metrics import Confusion
from robosat_pink.training.task import Task

BINS = 200  # number of bins of probability
THRESHOLDS = np.arange(1, BINS) / BINS
# Share of an example's pixels that must be valid, and of its valid pixels that must be of the class or predicted as it.
LEAST_SHARE = 0.01
MAX_EXAMPLES = 3  # tiles of each kind


class TileResults(NamedTuple):
    """Results of the tiles of one split, one row for each tile that has a valid pixel."""

    rows: np.ndarray  # (N,) rows of the pairs
    confusions: np.ndarray  # (N, K, K) int64 pixels, truth by prediction, as `metrics.Confusion` counts them
    pixels: np.ndarray  # (N,) int64, all pixels of each tile, valid or not
    histogram: np.ndarray | None  # (2, BINS) int64 pixels, truth by probability; None for several classes
    empty: int  # tiles without a valid pixel
    seconds: float

    @property
    def confusion(self) -> np.ndarray:
        """The confusion matrix (K, K) over all tiles."""
        confusion: np.ndarray = self.confusions.sum(axis=0)
        return confusion


class TilePixels(NamedTuple):
    image: np.ndarray  # (C, H, W), digital numbers of the selected bands
    mask: np.ndarray  # (H, W) uint8, 255 = ignore
    predicted: np.ndarray  # (H, W) uint8


class ThresholdCurve(NamedTuple):
    """Scores of a single class above each threshold of probability, (BINS - 1,) each."""

    threshold: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    iou: np.ndarray


class Evaluation(NamedTuple):
    results: Mapping[str, TileResults]  # by split
    examples: Mapping[str, list[int]]  # best, median, worst: positions in results["val"]
    pixels: Mapping[int, TilePixels]  # pixels of the examples, by row of the pairs


def evaluate_splits(model: nn.Module, task: Task, rows: Mapping[str, np.ndarray]) -> Evaluation:
    """Evaluate the tiles of each split, and choose examples among the val tiles. `rows` must have val."""
    results = {split: evaluate_tiles(model, task, rows[split]) for split in rows}
    examples = choose_examples(results["val"], is_single=task.config.num_classes == 1)
    positions = [position for kind in examples.values() for position in kind]
    return Evaluation(results, examples, predict_tiles(model, task, results["val"].rows[positions]))


def evaluate_tiles(model: nn.Module, task: Task, rows: np.ndarray) -> TileResults:
    """Evaluate the tiles in `rows`. Counts stay on the device until the end."""
    started = time.monotonic()
    num_classes, device = task.config.num_classes, task.compute.device
    confusions: list[torch.Tensor] = []
    histogram = torch.zeros(2 * BINS + 1, dtype=torch.int64, device=device)
    valid_rows: list[int] = []
    pixels: list[int] = []
    empty = 0
    for batch, result in evaluated_batches(model, task, rows, "report"):
        empty += batch.empty
        valid_rows += batch.rows
        pixels += [height * width for height, width in batch.sizes]
        if not result:
            continue
        for number in range(len(batch)):
            confusion = Confusion(num_classes, device)
            confusion.add(result.logits[number : number + 1], result.mask[number : number + 1])
            confusions.append(confusion.counts)
        if num_classes == 1:
            histogram += _histogram(result.logits[:, 0], result.mask)
    size = max(num_classes, 2)
    no_tile = np.zeros((0, size, size), dtype=np.int64)
    return TileResults(
        rows=np.array(valid_rows, dtype=np.int64),
        confusions=torch.stack(confusions).cpu().numpy() if confusions else no_tile,
        pixels=np.array(pixels, dtype=np.int64),
        histogram=histogram[:-1].reshape(2, BINS).cpu().numpy() if num_classes == 1 else None,
        empty=empty,
        seconds=time.monotonic() - started,
    )


def predict_tiles(model: nn.Module, task: Task, rows: np.ndarray) -> dict[int, TilePixels]:
    """The pixels and predictions of tiles, by row."""
    tiles = {}
    for batch, result in evaluated_batches(model, task, rows, "report"):
        if not result:
            continue
        logits = result.logits
        classes = (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)
        predicted = classes.byte().cpu()
        for number, (row, (height, width)) in enumerate(zip(batch.rows, batch.sizes, strict=True)):
            padded = (batch.image[number], batch.mask[number], predicted[number])
            tiles[row] = TilePixels(*(pixels[..., :height, :width].numpy().copy() for pixels in padded))
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


def threshold_curve(histogram: np.ndarray) -> ThresholdCurve:
    """Scores of a single class from its histogram (2, BINS); nan if nothing is predicted, or no pixel is of the class.

    At 0.5 they agree with the confusion matrix: a pixel is of the class if its logit is above 0.
    """
    predicted = histogram[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:].astype(np.float64)
    false, true = predicted
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(false + true > 0, true / (false + true), np.nan)
        recall = np.where(histogram[1].sum() > 0, true / histogram[1].sum(), np.nan)
        iou = np.where(histogram[1].sum() + false > 0, true / (histogram[1].sum() + false), np.nan)
    return ThresholdCurve(THRESHOLDS, precision, recall, iou)


def _histogram(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Count the pixels of logits and mask (N, H, W): (2 * BINS + 1,), truth by probability, then the ignored pixels.

    It compares logits, not probabilities, whose rounding would move pixels across 0.5.
    """
    edges = torch.from_numpy(np.log(THRESHOLDS / (1 - THRESHOLDS))).to(logits.device, torch.float32)
    bins = torch.bucketize(logits.float(), edges) + BINS * mask.long()  # bucketize counts the edges below
    bins = bins.masked_fill(mask == IGNORE, 2 * BINS)
    return torch.bincount(bins.flatten(), minlength=2 * BINS + 1)
