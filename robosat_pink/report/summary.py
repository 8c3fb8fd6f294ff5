"""A run or an evaluation as plain data, for report and model card: metrics, scenes, sentences. Called by `build`."""

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
from robosat_pink.report.page import SPLIT_NAMES, SplitResult
from robosat_pink.training.final_evaluation import Evaluation
from robosat_pink.training.run import RunOutcome
from robosat_pink.training.state import State

BASELINE_MARGIN = 0.001  # a network whose IoU exceeds the baseline's by no more than this is no better


@dataclass(frozen=True)
class Summary:
    """The data that reports and model cards contain."""

    class_names: Sequence[str]
    metrics: Mapping[str, Mapping[str, Any]]  # by column title, held-out tiles first
    splits: Mapping[str, SplitResult]
    split_sizes: Mapping[str, int]
    baseline: str
    tile_pixels: int  # side of the median tile that is shown
    time: str


def summarise_run(outcome: RunOutcome, evaluation: Evaluation) -> Summary:
    """The summary of a training run and its best weights."""
    # With symmetries, the epochs' evaluations, which are plain, have other numbers.
    val = None if outcome.task.config.model.symmetries else _best_epoch(outcome.state)["val"]
    sizes = {split: len(rows) for split, rows in outcome.task.data.split._asdict().items()}
    columns = metric_columns(outcome, evaluation.numbers["val"])
    return _summarise(evaluation, columns, sizes, measured={"holdout": outcome.holdout, "val": val})


def summarise_evaluation(evaluation: Evaluation) -> Summary:
    """The summary of an evaluation without a training run."""
    sizes = {split: len(results.listed) for split, results in evaluation.results.items()}
    columns = {f"{SPLIT_NAMES[split]} tiles": numbers for split, numbers in evaluation.numbers.items()}
    return _summarise(evaluation, columns, sizes, measured={})


def _summarise(
    evaluation: Evaluation,
    columns: Mapping[str, Mapping[str, Any]],
    split_sizes: Mapping[str, int],
    measured: Mapping[str, Mapping[str, Any] | None],
) -> Summary:
    """`measured` are the metrics that the run itself has measured on the tiles of a split, if any."""
    config, pixels = evaluation.task.config, evaluation.shown.pixels
    class_names = [class_.name for class_ in config.classes]
    splits = {split: _split_result(split, evaluation, measured.get(split)) for split in evaluation.results}
    return Summary(
        class_names=class_names,
        metrics=columns,
        splits=splits,
        split_sizes=split_sizes,
        baseline=baseline_sentence(next(iter(splits.values())), class_names),
        tile_pixels=round(math.sqrt(np.median(pixels))) if len(pixels) else config.model.tile_size,
        time=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )


def metric_columns(outcome: RunOutcome, val: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The metrics of the run by column title: held-out tiles first, then the validation tiles of the best epoch.

    `val` are the numbers of the best weights, which are the latter with symmetries. The last epoch's are then unknown
    if the run stopped early.
    """
    best, last = _best_epoch(outcome.state), outcome.state.history[-1]
    has_symmetries = outcome.task.config.model.symmetries
    columns: dict[str, Mapping[str, Any]] = {"held-out tiles": outcome.holdout} if outcome.holdout else {}
    columns["validation tiles"] = val if has_symmetries else best["val"]
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


def dataset_rows(evaluation: Evaluation, summary: Summary) -> dict[str, int | str]:
    pairs, shown = evaluation.task.data.loader.tiles.pairs, evaluation.shown
    name = SPLIT_NAMES[evaluation.shown_split]
    valid, side = int(shown.confusion.sum()), summary.tile_pixels
    labels = scenes.confusion_labels(summary.class_names)
    shares = zip(labels, shown.confusion.sum(axis=1) / max(valid, 1), strict=True)
    return {
        "pairs of image and mask": len(pairs),
        "scenes": len(np.unique(pairs.images.directory)),
        "images without mask": pairs.unpaired_images,
        "masks without image": pairs.unpaired_masks,
        "tile zoom": ", ".join(str(zoom) for zoom in np.unique(pairs.images.zxy[:, 0])),
        "tile size": f"{side} x {side} pixels",
        "ground resolution": f"about {maps.metres_per_pixel(pairs.images.zxy, side):.2g} m",
        f"{name} pixels with data": f"{valid / max(int(shown.pixels.sum()), 1):.1%}",
        "of them": ", ".join(f"{label} {share:.1%}" for label, share in shares),
        f"{name} tiles without data": shown.empty,
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


def seconds_of_run(outcome: RunOutcome, evaluation: Evaluation) -> dict[str, float]:
    """The seconds of finished epochs, over all attempts; and of start-up, if this process has made the whole run."""
    state, val, holdout = outcome.state, outcome.val, outcome.holdout
    waited = sum(row["train"].get("waited_s", 0.0) for row in state.history)
    compiling = sum(row["train"].get("compile_s", 0.0) for row in state.history)
    seconds = {
        "training": sum(row["train"]["seconds"] for row in state.history) - waited - compiling,
        "compiling the network": compiling,
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


def seconds_of_evaluation(evaluation: Evaluation) -> dict[str, float]:
    """The seconds of this process so far."""
    evaluating = sum(results.seconds for results in evaluation.results.values())
    return {"start-up, listing tiles": hardware.process_seconds() - evaluating, "evaluating": evaluating}


def _best_epoch(state: State) -> Mapping[str, Any]:
    """The best epoch's row of the history."""
    return next(row for row in state.history if row["epoch"] == state.best_epoch)


def _split_result(split: str, evaluation: Evaluation, measured: Mapping[str, Any] | None) -> SplitResult:
    task, results, numbers = evaluation.task, evaluation.results[split], evaluation.numbers[split]
    class_names = [class_.name for class_ in task.config.classes]
    differences = [abs(numbers[name] - measured[name]) for name in scenes.SCENE_METRICS] if measured else []
    images = task.data.loader.tiles.pairs.images
    return SplitResult(
        scores=numbers,
        confusion=results.confusion.tolist(),
        scenes=scenes.by_scene(split, results, images, class_names),
        largest_difference=max((value for value in differences if not math.isnan(value)), default=0.0),
    )
