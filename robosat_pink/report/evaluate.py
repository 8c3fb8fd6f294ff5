"""How one network does on each tile: confusion, probabilities, and the pixels of a few tiles. Called by `report`.

A pass of its own with the evaluation loop of training, so that what a person looks at costs training nothing.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from robosat_pink.losses import IGNORE
from robosat_pink.training.loop import evaluated_batches
from robosat_pink.training.metrics import Confusion
from robosat_pink.training.task import Task

BINS = 200  # of probability
THRESHOLDS = np.arange(1, BINS) / BINS
LEAST_SHARE = 0.01  # of a tile that must be valid, and of its valid pixels that must be of the class, to be shown
SHOWN = 3  # tiles of a kind


class Inspection(NamedTuple):
    """What was found on the tiles of one part of the split, a row each, without those that have no valid pixel."""

    rows: np.ndarray  # (N,) of the pairs
    counts: np.ndarray  # (N, K, K) int64 pixels, truth by prediction, as `metrics.Confusion` counts them
    pixels: np.ndarray  # (N,) int64 of each tile, with data or without
    histogram: np.ndarray | None  # (2, BINS) int64 pixels, truth by probability, of a single class
    empty: int  # tiles without a valid pixel
    seconds: float

    @property
    def total(self) -> np.ndarray:
        """(K, K)"""
        total: np.ndarray = self.counts.sum(axis=0)
        return total


class Look(NamedTuple):
    """The pixels of a tile."""

    row: int
    image: np.ndarray  # (C, H, W), digital numbers of the selected bands
    mask: np.ndarray  # (H, W) uint8, 255 = ignore
    predicted: np.ndarray  # (H, W) uint8


class Curve(NamedTuple):
    """What other thresholds than 0.5 would give; each (BINS - 1,)."""

    threshold: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    iou: np.ndarray


def inspect(model: nn.Module, task: Task, rows: np.ndarray) -> Inspection:
    """Evaluate the network on every tile of `rows`; from the device, one transfer at the end."""
    started = time.monotonic()
    single = task.config.num_classes == 1
    found: list[torch.Tensor] = []
    histogram = torch.zeros(2 * BINS + 1, dtype=torch.int64, device=task.compute.device)
    seen: list[int] = []
    pixels: list[int] = []
    empty = 0
    for batch, result in evaluated_batches(model, task, rows, "report"):
        empty += batch.empty
        seen += batch.rows
        pixels += [height * width for height, width in batch.sizes]
        if not result:
            continue
        for number in range(len(batch)):
            confusion = Confusion(task.config.num_classes, task.compute.device)
            confusion.add(result.logits[number : number + 1], result.mask[number : number + 1])
            found.append(confusion.counts)
        if single:
            histogram += _histogram(result.logits[:, 0], result.mask)
    size = max(task.config.num_classes, 2)
    counts = torch.stack(found).cpu().numpy() if found else np.zeros((0, size, size), dtype=np.int64)
    return Inspection(
        rows=np.array(seen, dtype=np.int64),
        counts=counts,
        pixels=np.array(pixels, dtype=np.int64),
        histogram=histogram[:-1].reshape(2, BINS).cpu().numpy() if single else None,
        empty=empty,
        seconds=time.monotonic() - started,
    )


def look(model: nn.Module, task: Task, rows: np.ndarray) -> dict[int, Look]:
    """The pixels of these tiles, and what the network makes of them."""
    looks = {}
    for batch, result in evaluated_batches(model, task, rows, "report"):
        if not result:
            continue
        logits = result.logits
        predicted = (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)
        for number, (row, (height, width)) in enumerate(zip(batch.rows, batch.sizes, strict=True)):
            image, mask, found = (each[number, ..., :height, :width] for each in (batch.image, batch.mask, predicted))
            looks[row] = Look(row, image.numpy().copy(), mask.numpy().copy(), found.byte().cpu().numpy())
    return looks


def tile_scores(counts: np.ndarray) -> np.ndarray:
    """The IoU (N, K) of each class in each tile's matrix (N, K, K); nan where it is neither there nor predicted."""
    right = np.diagonal(counts, axis1=1, axis2=2).astype(np.float64)
    union = counts.sum(axis=1) + counts.sum(axis=2) - right
    with np.errstate(divide="ignore", invalid="ignore"):
        iou: np.ndarray = np.where(union > 0, right / union, np.nan)
    return iou


def mean_scores(counts: np.ndarray, single: bool) -> np.ndarray:
    """One IoU (N,) a tile: that of the only class, or the mean over those that are there or predicted."""
    by_class = tile_scores(counts)
    if single:
        return by_class[:, 1]
    defined = ~np.isnan(by_class)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean: np.ndarray = np.nansum(by_class, axis=1) / defined.sum(axis=1)
    return mean


def pick(found: Inspection, single: bool) -> dict[str, list[int]]:
    """The tiles to show, `best`, `median` and `worst`, as places in `found`; none stands twice.

    By IoU, of tiles with enough to see: an IoU of 0 for three missed pixels is no tile to learn from. Where too few
    have that, of all that have an IoU.
    """
    scores = mean_scores(found.counts, single)
    valid = found.counts.sum(axis=(1, 2))
    there = valid - found.counts[:, 0, 0] if single else valid
    telling = (valid >= LEAST_SHARE * found.pixels) & (there >= LEAST_SHARE * valid) & ~np.isnan(scores)
    if telling.sum() < 3 * SHOWN:
        telling = ~np.isnan(scores)
    order = np.flatnonzero(telling)[np.argsort(-scores[telling], kind="stable")]
    each = min(SHOWN, -(-len(order) // 3))
    best, rest = order[:each], order[each:]
    worst = rest[max(len(rest) - each, 0) :][::-1]
    rest = rest[: max(len(rest) - each, 0)]
    first = max(len(rest) - each + 1, 0) // 2
    return {"best": best.tolist(), "median": rest[first : first + each].tolist(), "worst": worst.tolist()}


def precision_recall(histogram: np.ndarray) -> Curve:
    """Of a single class, from (2, BINS) pixels; nan where nothing is predicted, or the class is nowhere.

    At 0.5 it is what the confusion matrix has: a pixel is of the class if its logit is above 0.
    """
    predicted = histogram[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:].astype(np.float64)
    false, true = predicted
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(false + true > 0, true / (false + true), np.nan)
        recall = np.where(histogram[1].sum() > 0, true / histogram[1].sum(), np.nan)
        iou = np.where(histogram[1].sum() + false > 0, true / (histogram[1].sum() + false), np.nan)
    return Curve(THRESHOLDS, precision, recall, iou)


def _histogram(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Pixels (2 * BINS + 1,) of logits and mask (N, H, W), truth by probability; the last are those that count nowhere.

    By logits, not probabilities, whose rounding would move pixels across 0.5.
    """
    edges = torch.from_numpy(np.log(THRESHOLDS / (1 - THRESHOLDS))).to(logits.device, torch.float32)
    place = torch.bucketize(logits.float(), edges) + BINS * mask.long()  # how many thresholds lie below
    place = place.masked_fill(mask == IGNORE, 2 * BINS)
    return torch.bincount(place.flatten(), minlength=2 * BINS + 1)
