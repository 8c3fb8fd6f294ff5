"""A finished run as plain data, for the report and the model card: metrics, scenes, sentences. Called by `build`."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robosat_pink.container import hardware
from robosat_pink.datasets.coverage import is_about_class
from robosat_pink.report import maps, scenes
from robosat_pink.report.page import SplitResult
from robosat_pink.training.final_evaluation import BestEvaluation, TileResults
from robosat_pink.training.run import RunOutcome
from robosat_pink.training.state import State
from robosat_pink.training.task import Task

BASELINE_MARGIN = 0.001  # a network whose IoU exceeds the baseline's by no more than this is no better


@dataclass(frozen=True)
class Summary:
    """The data that both the report and the model card contain."""

    class_names: Sequence[str]
    metrics: Mapping[str, Mapping[str, Any]]  # by column title, held-out tiles first
    splits: Mapping[str, SplitResult]
    split_sizes: Mapping[str, int]
    baseline: str
    tile_pixels: int  # side of the median validation tile
    time: str


def summarise(outcome: RunOutcome, evaluation: BestEvaluation) -> Summary:
    config = outcome.task.config
    class_names = [class_.name for class_ in config.classes]
    # With symmetries, the epochs' evaluations, which are plain, have other numbers.
    val = None if config.model.symmetries else _best_epoch(outcome.state)["val"]
    measured = {"holdout": outcome.holdout, "val": val}
    splits = {
        split: _split_result(split, results, evaluation.numbers[split], measured[split], outcome.task)
        for split, results in evaluation.results.items()
    }
    pixels = evaluation.results["val"].pixels
    return Summary(
        class_names=class_names,
        metrics=metric_columns(outcome, splits["val"]),
        splits=splits,
        split_sizes={split: len(rows) for split, rows in outcome.task.data.split._asdict().items()},
        baseline=baseline_sentence(next(iter(splits.values())), class_names),
        tile_pixels=round(math.sqrt(np.median(pixels))) if len(pixels) else config.model.tile_size,
        time=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )


def metric_columns(outcome: RunOutcome, val: SplitResult) -> dict[str, Mapping[str, Any]]:
    """The metrics of the run by column title: held-out tiles first, then the validation tiles of the best epoch.

    With symmetries, `val` has the latter. The last epoch's are then unknown if the run stopped early.
    """
    best, last = _best_epoch(outcome.state), outcome.state.history[-1]
    has_symmetries = outcome.task.config.model.symmetries
    columns: dict[str, Mapping[str, Any]] = {"held-out tiles": outcome.holdout} if outcome.holdout else {}
    columns["validation tiles"] = val.scores if has_symmetries else best["val"]
    last_val = outcome.val if has_symmetries else last["val"]
    if last is not best and last_val:
        columns["validation, last epoch"] = last_val
    columns["training, last epoch"] = last["train"]
    return columns


def baseline_sentence(result: SplitResult, class_names: Sequence[str]) -> str:
    """A sentence on the IoU of calling every pixel the single class. Empty for several classes or no valid pixel."""
    if len(class_names) > 1 or not result.pixels:
        return ""
    baseline = sum(result.confusion[1]) / result.pixels
    verdict = ": this network is no better" if result.scores["iou"] <= baseline + BASELINE_MARGIN else ""
    return f"Calling every pixel {class_names[0]} would score an IoU of {baseline:.4f}{verdict}."


def dataset_rows(task: Task, val: TileResults, summary: Summary) -> dict[str, int | str]:
    pairs = task.data.loader.tiles.pairs
    valid, side = int(val.confusion.sum()), summary.tile_pixels
    labels = scenes.confusion_labels(summary.class_names)
    shares = zip(labels, val.confusion.sum(axis=1) / max(valid, 1), strict=True)
    return {
        "pairs of image and mask": len(pairs),
        "scenes": len(np.unique(pairs.images.directory)),
        "images without mask": pairs.unpaired_images,
        "masks without image": pairs.unpaired_masks,
        "tile zoom": ", ".join(str(zoom) for zoom in np.unique(pairs.images.zxy[:, 0])),
        "tile size": f"{side} x {side} pixels",
        "ground resolution": f"about {maps.metres_per_pixel(pairs.images.zxy, side):.2g} m",
        "validation pixels with data": f"{valid / max(int(val.pixels.sum()), 1):.1%}",
        "of them": ", ".join(f"{label} {share:.1%}" for label, share in shares),
        "validation tiles without data": val.empty,
    }


def remarks_after_training(remarks: Sequence[str], state: State) -> list[str]:
    """The remarks on a sample of the training tiles, corrected by the last epoch, which has read all of them."""
    per_class = state.history[-1]["train"]["per_class"]
    absent = [name for name, scores in per_class.items() if math.isnan(scores["recall"])]  # classes without a pixel
    present = per_class.keys() - set(absent)
    kept = [
        remark
        for remark in remarks
        if not ("no pixel of" in remark and any(is_about_class(remark, class_name) for class_name in present))
    ]
    unsaid = [name for name in absent if not any(is_about_class(remark, name) for remark in kept)]
    return kept + [f"warning: no pixel that the last epoch has trained on is {name}" for name in unsaid]


def seconds_by_activity(outcome: RunOutcome, evaluation: BestEvaluation) -> dict[str, float]:
    """The seconds of finished epochs, over all attempts; and of start-up, if this process has made the whole run."""
    state, val, holdout = outcome.state, outcome.val, outcome.holdout
    waited = sum(row["train"].get("waited_s", 0.0) for row in state.history)
    seconds = {
        "training": sum(row["train"]["seconds"] for row in state.history) - waited,
        "waiting for tiles, in training": waited,
        "evaluating after each epoch": sum(row["val"]["seconds"] for row in state.history),
        "evaluating validation tiles with symmetries": val["seconds"] if val else 0.0,
        "evaluating held-out tiles": holdout["seconds"] if holdout else 0.0,
    }
    seconds = {activity: spent for activity, spent in seconds.items() if spent > 0}
    for_report = sum(results.seconds for results in evaluation.results.values())
    if not state.is_resumed and not outcome.stopped:
        known = sum(seconds.values()) + for_report
        seconds["start-up, listing tiles, writing"] = hardware.process_seconds() - known
    return seconds | {"evaluating for the report": for_report}


def _best_epoch(state: State) -> Mapping[str, Any]:
    """The best epoch's row of the history."""
    return next(row for row in state.history if row["epoch"] == state.best_epoch)


def _split_result(
    split: str, results: TileResults, numbers: Mapping[str, Any], measured: Mapping[str, Any] | None, task: Task
) -> SplitResult:
    """The result of one split. `measured` are the metrics that the run itself measured on its tiles, if any."""
    class_names = [class_.name for class_ in task.config.classes]
    rows = task.data.split.holdout if split == "holdout" else task.data.split.val
    differences = [abs(numbers[name] - measured[name]) for name in scenes.SCENE_METRICS] if measured else []
    images = task.data.loader.tiles.pairs.images
    return SplitResult(
        scores=numbers,
        confusion=results.confusion.tolist(),
        scenes=scenes.by_scene(split, rows, results, images, class_names),
        largest_difference=max((value for value in differences if not math.isnan(value)), default=0.0),
    )
