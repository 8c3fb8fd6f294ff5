"""Evaluates a trained model on pairs of image and mask, from the checked experiment to the files. Called by `evaluate`.

Numbers and report are made as after a training. Nothing is chosen on the evaluated tiles.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn

from robosat_pink.config import Config, to_tree
from robosat_pink.container import hardware
from robosat_pink.container.atomic_write import write_atomically
from robosat_pink.container.contract import Container
from robosat_pink.container.log_lines import IN_LOG, ON_TERMINAL
from robosat_pink.container.quantities import count
from robosat_pink.container.redaction import redacted, redacted_tree
from robosat_pink.container.stop_request import StopRequest
from robosat_pink.datasets import TilePairs, coverage
from robosat_pink.datasets.bordered_loader import BorderedLoader
from robosat_pink.datasets.loader import TileLoader
from robosat_pink.datasets.pairs import IMAGE_KEYS, ImageKeys
from robosat_pink.datasets.split import Split
from robosat_pink.datasets.store_options import store_options
from robosat_pink.distributed.launcher import SINGLE_PROCESS
from robosat_pink.distributed.process_group import World
from robosat_pink.errors import ConfigError, DataError, RobosatError
from robosat_pink.prediction import remarks
from robosat_pink.prediction.model import Model, find_model
from robosat_pink.prediction.plan import list_images, refuse_other_zooms
from robosat_pink.prediction.selection import selected_rows
from robosat_pink.training import final_evaluation, metrics, progress, setup
from robosat_pink.training.background_writer import BackgroundWriter
from robosat_pink.training.earlier_results import move_reports_away
from robosat_pink.training.final_evaluation import Evaluation, TileResults
from robosat_pink.training.metrics import EVALUATED
from robosat_pink.training.phase_metrics import ONE_CLASS, has_one_class
from robosat_pink.training.stopping import LoopControl
from robosat_pink.training.task import Compute, Data, Objective, Task
from robosat_pink.training.thresholds import BINS

log = logging.getLogger(__name__)

STEP_TOLERANCE = 1e-6  # of a threshold in steps of 1 / BINS


class Plan(NamedTuple):
    """What is to be evaluated."""

    model: Model
    tiles: TilePairs
    rows: np.ndarray  # (N,) the selected pairs
    threshold: float | None  # of probability, to compare with 0.5; None for several classes, and where none was chosen
    threshold_origin: str  # a clause on where it is from
    remarks: tuple[str, ...]


def run(config: Config, container: Container, stop: StopRequest) -> None:
    """Evaluate in this process, and write metrics.json, scenes.csv and report.html. Raises Stopped at a stop."""
    hardware.log_report(container)
    found = plan(config, container)
    log.info("experiment: %s", json.dumps(redacted_tree(to_tree(found.model.config))), extra=IN_LOG)
    compute = setup.choose_compute(found.model.config, World())
    stop.is_polled = True
    network = found.model.network(compute.device, compute.memory_format)
    task = make_task(found, network, compute, container, stop)
    log.info("evaluating on %s in %s", compute.device, compute.precision or "torch.float32")
    log.info("leaves metrics.json and report.html in %s", container.output_data, extra=ON_TERMINAL)
    results = final_evaluation.evaluate_tiles(network, task, found.rows, EVALUATED)
    refuse_unusable(results)
    numbers = final_evaluation.numbers_of(results, found.threshold, task)
    evaluation = Evaluation(network, task, {EVALUATED: results}, found.threshold, {EVALUATED: numbers})
    log_results(evaluation, found)
    move_reports_away(container)
    write_metrics(container.output_data / "metrics.json", evaluation, found)
    from robosat_pink.report import build  # imported late: a broken matplotlib costs only the report

    build.report_evaluation(evaluation, about_in_words(found), found.threshold_origin, container)


def plan(config: Config, container: Container) -> Plan:
    """Find model and pairs. Raises ConfigError for settings that do not apply, DataError for tiles that do not fit."""
    settings = config.predict
    if settings.if_damaged == "skip":
        raise ConfigError(
            "predict.if_damaged = skip: not in an evaluation, whose numbers would leave out tiles; accepted: error. To "
            "evaluate without a damaged tile, name the others in a file for predict.tiles"
        )
    model = find_model(config, store_options(config.dataset, container.channels()))
    threshold, origin = threshold_of(model)
    dataset = dataclasses.replace(
        model.config.dataset,
        image_bucket=settings.images or config.dataset.image_bucket,
        imagery_directory_regex=settings.images_regex or config.dataset.imagery_directory_regex,
    )
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, dataset=dataset))
    keys = ImageKeys(
        "predict.images" if settings.images else IMAGE_KEYS.bucket,
        "predict.images_regex" if settings.images_regex else IMAGE_KEYS.expression,
    )
    tiles = setup.list_tiles(model.config, container, World(), keys)
    ids = tiles.ids
    rows = selected_rows(settings.tiles, ids, model.files)
    refuse_other_zooms(model, tiles, rows)
    log.info(
        "pairs: %s, to be evaluated: %s; without partner: %s, %s",
        count(len(tiles)),
        count(len(rows)),
        count(tiles.pairs.unpaired_images, "image"),
        count(tiles.pairs.unpaired_masks, "mask"),
    )
    learnt_from = remarks.about_training_tiles(model.files, [ids[row] for row in rows.tolist()])
    all_remarks = (*(f"warning: {remark}" for remark in learnt_from), *remarks.about_images(model, tiles, rows))
    for remark in all_remarks:
        log.warning(remark)
    return Plan(model, tiles, rows, threshold, origin, all_remarks)


def threshold_of(model: Model) -> tuple[float | None, str]:
    """The threshold whose scores stand beside those at 0.5, and where it is from.

    It is predict.threshold, unless that is 0.5: then the checkpoint's own, if it has one. Raises ConfigError for one
    between the steps of 1 / BINS in which pixels are counted, and for `chosen` where there is none.
    """
    setting = model.config.predict.threshold
    if setting == "chosen" or (setting == 0.5 and model.config.num_classes == 1):
        value = model.threshold if setting == "chosen" else model.chosen_threshold
        origin = "the threshold is the model's, chosen on the validation tiles of its training"
    elif model.config.num_classes == 1:
        value, origin = model.threshold, "the threshold is that of predict.threshold"
    else:
        return None, ""
    if value is None:
        return None, ""
    step = min(max(round(value * BINS), 1), BINS - 1)
    if abs(value * BINS - step) > STEP_TOLERANCE:
        raise ConfigError(
            f"predict.threshold = {setting}: {value:g} is none of the thresholds for which pixels are counted; "
            f"accepted: from {1 / BINS:g} to {1 - 1 / BINS:g} in steps of {1 / BINS:g}, such as {step / BINS:g}"
        )
    return value, origin


def make_task(found: Plan, network: nn.Module, compute: Compute, container: Container, stop: StopRequest) -> Task:
    """The task whose loader yields the pairs: training's own or, with predict.buffer, one with neighbours."""
    config = found.model.config
    control = LoopControl(compute.world, stop, BackgroundWriter(), max_seconds=config.runtime.max_seconds)
    loader: TileLoader
    if config.predict.buffer:
        images = list_images(config, container, compute.world)
        batch_size, buffer = config.model.batch_size, config.predict.buffer
        loader = BorderedLoader(found.tiles, images, batch_size, buffer, control.interrupt)
    else:
        loader = setup.make_loader(found.tiles, config, compute.device, control.interrupt, SINGLE_PROCESS)
    no_rows = found.rows[:0]
    transform = found.model.transform(compute.device)
    return Task(
        config=config,
        objective=Objective(network, setup.make_loss(config, compute.device)),
        data=Data(Split(no_rows, found.rows, no_rows), loader, transform, transform, found.remarks),
        compute=compute,
        control=control,
        show_progress=progress.bar if container.is_interactive() else progress.lines,
    )


def refuse_unusable(results: TileResults) -> None:
    """Raises DataError if no tile has a valid pixel, RobosatError if the loss is NaN or inf."""
    if not len(results.rows):
        raise DataError(
            f"none of the {results.empty} evaluated tiles has a pixel with both image and mask data; name others by "
            "predict.tiles or predict.images_regex"
        )
    if not math.isfinite(results.loss):
        raise RobosatError(
            f"the loss of the evaluated tiles is {results.loss}; check channels[].scale, mean and std, and the tiles"
        )


def log_results(evaluation: Evaluation, found: Plan) -> None:
    results, config = evaluation.results[EVALUATED], found.model.config
    if has_one_class(results.confusion):
        log.warning("warning: %s", ONE_CLASS.format(EVALUATED))
    line = metrics.log_line(
        EVALUATED,
        found.model.epoch or 0,
        config.model.epochs,
        evaluation.numbers[EVALUATED],
        tiles=len(results.rows),
        empty=results.empty,
        seconds=f"{results.seconds:.2f}",
        tiles_per_s=f"{len(results.listed) / results.seconds:.2f}",
    )
    log.info(line)


def write_metrics(path: Path, evaluation: Evaluation, found: Plan) -> None:
    """Write metrics.json: what was evaluated and how, and the numbers as training writes those of `best`."""
    results, model = evaluation.results[EVALUATED], found.model
    settings, dataset, pairs = model.config.predict, model.config.dataset, found.tiles.pairs
    content = {
        "model": {"name": redacted(model.files.name), "digest": model.digest, "epoch": model.epoch},
        "images": {"location": redacted(dataset.image_bucket), "expression": dataset.imagery_directory_regex},
        "masks": {"location": redacted(dataset.mask_bucket), "expression": dataset.mask_directory_regex},
        "tiles": {
            "selected": redacted(settings.tiles),
            "evaluated": len(results.rows),
            "without_data": results.empty,
            "images_without_mask": pairs.unpaired_images,
            "masks_without_image": pairs.unpaired_masks,
        },
        "settings": {
            "buffer": settings.buffer,
            "symmetries": settings.symmetries,
            "batch_size": model.config.model.batch_size,
        },
        "threshold": found.threshold and {"value": found.threshold, "origin": found.threshold_origin},
        EVALUATED: metrics.as_json(evaluation.numbers[EVALUATED]),
    }
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def about_in_words(found: Plan) -> dict[str, str]:
    """What was evaluated and how, for the page."""
    model = found.model
    settings, dataset = model.config.predict, model.config.dataset
    epoch = f", epoch {model.epoch}" if model.epoch else ""
    buffer = settings.buffer
    neighbours = f"at least {buffer} pixels on each side" if buffer else "none (predict.buffer = 0)"
    threshold = f"{found.threshold:g}: {found.threshold_origin}" if found.threshold else "none"
    return {
        "model": f"{model.files.name}{epoch}",
        "digest of the model": f"{model.digest} (BLAKE2b)",
        "images": f"{dataset.image_bucket}, directories {dataset.imagery_directory_regex}",
        "masks": f"{dataset.mask_bucket}, directories {dataset.mask_directory_regex}",
        "tiles": f"{count(len(found.rows))} of {count(len(found.tiles), 'pair')} (predict.tiles = {settings.tiles})",
        "neighbours seen": neighbours,
        "predicted": "averaged over the eight flips and rotations" if settings.symmetries else "once",
        "threshold beside 0.5": threshold,
    }


def check(config: Config, container: Container) -> None:
    """Log what there is to evaluate. Writes nothing but the cache of tiles; reads a few pairs."""
    found = plan(config, container)
    some = coverage.chosen(found.rows)
    for _ in coverage.read(found.tiles, some):
        pass
    log.info("%d pairs were read; nothing was evaluated", len(some))
