"""Evaluates a model tile by tile, on one rank: the numbers of `best` in a training's metrics.json, and of `evaluate`.

Called by `train` and `prediction.evaluation`. The report shows these results: no tile is evaluated for it again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from robosat_pink.container.contract import Container
from robosat_pink.container.stop_request import StopRequest
from robosat_pink.datasets.symmetry_average import predictor
from robosat_pink.training import metrics, outputs
from robosat_pink.training.boundaries import BoundaryCounts, boundary_f1
from robosat_pink.training.intervals import intervals
from robosat_pink.training.loop import evaluated_batches
from robosat_pink.training.metrics import Confusion
from robosat_pink.training.reliability import Reliability, calibration_error, reliability_curve
from robosat_pink.training.run import RunOutcome
from robosat_pink.training.task import Task
from robosat_pink.training.thresholds import (
    ProbabilityHistogram,
    choose_threshold,
    confusion_above,
    threshold_curve,
)


class TileResults(NamedTuple):
    """Results of the tiles of one split, one row for each tile that has a valid pixel."""

    listed: np.ndarray  # (M,) rows of the pairs that were read, with a valid pixel or without
    rows: np.ndarray  # (N,) those of them with a valid pixel
    confusions: np.ndarray  # (N, K, K) int64 pixels, truth by prediction, as `metrics.Confusion` counts them
    pixels: np.ndarray  # (N,) int64, all pixels of each tile, valid or not
    histogram: np.ndarray | None  # (2, BINS) int64 pixels, truth by probability; None for several classes
    reliability: np.ndarray  # (3, RELIABILITY_BINS) as `Reliability` sums them up
    boundaries: np.ndarray  # (K, 4) int64 pixels, as `BoundaryCounts` counts them
    loss: float  # mean over tiles
    empty: int  # tiles without a valid pixel
    seconds: float

    @property
    def confusion(self) -> np.ndarray:
        """The confusion matrix (K, K) over all tiles."""
        confusion: np.ndarray = self.confusions.sum(axis=0)
        return confusion


class Evaluation(NamedTuple):
    """A model and its results by split: after training holdout, if it was evaluated, and val; or just `evaluated`."""

    model: nn.Module  # as it predicts: with its weights and, if set, symmetries
    task: Task  # without the other ranks
    results: Mapping[str, TileResults]
    threshold: float | None  # of probability, to compare with 0.5; None without one, and for several classes
    numbers: Mapping[str, Any]  # by split: as in metrics.json, with NaN where it has null

    @property
    def shown_split(self) -> str:
        """The split whose tiles and thresholds the report shows: the last one."""
        return list(self.results)[-1]

    @property
    def shown(self) -> TileResults:
        return self.results[self.shown_split]


def evaluate_best(outcome: RunOutcome, container: Container, stop: StopRequest) -> Evaluation:
    """Evaluate the best weights on val and held-out tiles, and add the numbers to metrics.json and best.pth.

    Leaves the model with these weights. Held-out tiles are left out if the run stopped before it evaluated them.
    """
    state, task = outcome.state, outcome.task.on_one_rank(stop)
    state.evaluated_model.load_state_dict(state.best_weights)
    model = predictor(state.evaluated_model, task.config.model.symmetries)
    splits = {"holdout": task.data.split.holdout} if outcome.holdout else {}
    splits |= {"val": task.data.split.val}
    results = {split: evaluate_tiles(model, task, rows, "best weights") for split, rows in splits.items()}
    histogram = results["val"].histogram
    chosen = None if histogram is None else choose_threshold(threshold_curve(histogram))
    threshold = chosen and chosen.value
    numbers = {split: numbers_of(tiles, threshold, task) for split, tiles in results.items()}
    outputs.add_best(container.model, state.best_epoch, chosen, numbers)
    return Evaluation(model, task, results, threshold, numbers)


def evaluate_tiles(model: nn.Module, task: Task, rows: np.ndarray, title: str) -> TileResults:
    """Evaluate the tiles in `rows`; progress has the title. Counts stay on the device until the end."""
    started = time.monotonic()
    num_classes, device = task.config.num_classes, task.compute.device
    confusions: list[torch.Tensor] = []
    reliability, boundaries = Reliability(device), BoundaryCounts(num_classes, device)
    histogram = ProbabilityHistogram(device) if num_classes == 1 else None
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    valid_rows: list[int] = []
    pixels: list[int] = []
    empty = 0
    for batch, result in evaluated_batches(model, task, rows, title):
        empty += batch.empty
        valid_rows += batch.rows
        pixels += [height * width for height, width in batch.sizes]
        if not result:
            continue
        loss_sum += result.loss.double() * len(batch)
        reliability.add(result.logits, result.mask)
        boundaries.add(result.logits, result.mask)
        if histogram:
            histogram.add(result.logits, result.mask)
        for number in range(len(batch)):
            confusion = Confusion(num_classes, device)
            confusion.add(result.logits[number : number + 1], result.mask[number : number + 1])
            confusions.append(confusion.counts)
    size = max(num_classes, 2)
    no_tile = np.zeros((0, size, size), dtype=np.int64)
    return TileResults(
        listed=rows,
        rows=np.array(valid_rows, dtype=np.int64),
        confusions=torch.stack(confusions).cpu().numpy() if confusions else no_tile,
        pixels=np.array(pixels, dtype=np.int64),
        histogram=histogram.counts() if histogram else None,
        reliability=reliability.sums(),
        boundaries=boundaries.counts(),
        loss=loss_sum.item() / len(valid_rows) if valid_rows else math.nan,
        empty=empty,
        seconds=time.monotonic() - started,
    )


def numbers_of(results: TileResults, threshold: float | None, task: Task) -> dict[str, Any]:
    """The numbers of one split in metrics.json, with NaN where it has null."""
    class_names = [class_.name for class_ in task.config.classes]
    ground = task.data.loader.tiles.pairs.images.zxy[results.rows]
    scores = metrics.scores(results.confusion, class_names, results.loss)
    boundaries = boundary_f1(results.boundaries)
    for name, value in zip(class_names, boundaries.tolist(), strict=True):
        scores["per_class"][name]["boundary_f1"] = value
    above = None
    if threshold and results.histogram is not None:
        confusion = confusion_above(results.histogram, threshold)
        above = metrics.scores(confusion, class_names, math.nan)
    return scores | {
        "boundary_f1": metrics.mean_of_defined(boundaries),
        "ece": calibration_error(results.reliability),
        "ground_tiles": len(np.unique(ground, axis=0)),
        "intervals": intervals(results.confusions, ground, class_names),
        "at_threshold": above and {name: above[name] for name in metrics.NAMES if name != "loss"},
        "reliability": reliability_curve(results.reliability),
    }
