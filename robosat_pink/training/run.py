"""A training run, from the checked experiment to the metrics of held-out tiles. Called by `train` in each process."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from typing import Any, NamedTuple

import torch

from robosat_pink.checkpoint import ResumePoints
from robosat_pink.config import Config, to_tree
from robosat_pink.container import hardware
from robosat_pink.container.contract import Container
from robosat_pink.container.log_lines import IN_LOG, ON_TERMINAL
from robosat_pink.container.redaction import redacted_tree
from robosat_pink.container.stop_request import Stopped, StopRequest
from robosat_pink.datasets import TilePairs
from robosat_pink.datasets.coverage import Look
from robosat_pink.datasets.split import Split
from robosat_pink.datasets.store_options import store_options
from robosat_pink.datasets.tile_file import START_AGAIN, Changed
from robosat_pink.distributed.process_group import World
from robosat_pink.models.synchronisation import synchronise
from robosat_pink.training import initial_checkpoint, loop, pixel_start, progress, resume, setup
from robosat_pink.training.background_writer import BackgroundWriter, snapshot
from robosat_pink.training.channel_scales import resolve_scales
from robosat_pink.training.loggers import Loggers, check_installed
from robosat_pink.training.outputs import NoOutputs, Outputs
from robosat_pink.training.recomputation import choose_recompute
from robosat_pink.training.state import State
from robosat_pink.training.stopping import LoopControl
from robosat_pink.training.task import Task

log = logging.getLogger(__name__)

MOST_RELISTINGS = 10  # repeated listings in one run, if tiles keep changing


class RunOutcome(NamedTuple):
    """The outcome of a run with at least one finished epoch."""

    state: State
    task: Task
    val: dict[str, Any] | None  # metrics of val tiles with model.symmetries and the last weights; None without
    holdout: dict[str, Any] | None  # metrics of held-out tiles; None if there are none, or the run stopped earlier
    stopped: Stopped | None  # if runtime.max_seconds ended the run
    loggers: Loggers  # still open


def run(config: Config, container: Container, stop: StopRequest, world: World) -> RunOutcome:
    """Find the tiles, build the model, resume if there is a resume point, train and evaluate."""
    hardware.log_report(container)
    setup.check_world_size(config, world)
    check_installed(config.runtime.loggers)
    points = ResumePoints(container.checkpoints) if container.checkpoints else None
    store = store_options(config.dataset, container.channels())
    initial = world.on_rank_zero(lambda: initial_checkpoint.find(config, points, store))
    config = resolve_scales(config, initial)
    log.info("experiment: %s", json.dumps(redacted_tree(to_tree(config))), extra=IN_LOG)

    torch.manual_seed(config.runtime.seed)
    compute = setup.choose_compute(config, world)
    tiles, split, look = find_and_inspect_tiles(config, container, world)
    config = dataclasses.replace(config, channels=look.channels)
    model, execution = setup.make_model(config, initial, compute.device, store)
    choose_recompute(model, execution, config, compute)
    if config.model.batch_norm == "synchronised" and world.size > 1:
        synchronise(model)
    if not initial:
        pixel_start.fit_single_pixels(model, look.pixels, config, world)
    state = setup.make_state(model, config, compute)
    objective = setup.make_objective(model, config, compute)
    if initial:
        resume.restore(state, initial, config, tiles, split)
    del initial  # frees the tensors that `state` does not use

    with BackgroundWriter() as writer:
        save_every_s = 60 * config.checkpoint.every_minutes if points else None
        control = LoopControl(world, stop, writer, save_every_s, config.runtime.max_seconds)
        loader = setup.make_loader(tiles, config, compute.device, control.interrupt, world.process)
        data = setup.make_data(config, split, loader, compute.device, look.remarks)
        show_progress = progress.bar if container.is_interactive() and world.is_rank_zero else progress.lines
        task = Task(config, objective, data, compute, control, show_progress)
        outputs = NoOutputs()
        if world.is_rank_zero:
            outputs = Outputs(container, config, tiles, split, writer, points, execution.upsampling)
        log.info("training on %s in %s", compute.device, compute.precision or torch.float32)
        steps = loader.num_training_batches(split.train)
        log.info(progress.summary(model, steps, config.model))
        log.info(leaves(container), extra=ON_TERMINAL)
        world.on_rank_zero(lambda: outputs.begin(state))
        stop.is_polled = True
        outcome = train_and_evaluate(state, task, outputs, container, stop)
    log.info("model and metrics are in %s; best epoch %d of %d", container.model, state.best_epoch, state.epoch)
    return outcome


def leaves(container: Container) -> str:
    """What the run will leave, and whether it can be resumed."""
    files = f"leaves the model in {container.model}, the report in {container.output_data}"
    if container.checkpoints:
        return f"{files}, resume points in {container.checkpoints}"
    return f"{files}; no resume points, for there is no folder {container.base / 'checkpoints'}"


def find_and_inspect_tiles(config: Config, container: Container, world: World) -> tuple[TilePairs, Split, Look]:
    """List and split the tiles, and look at some of them.

    If a tile changes meanwhile and dataset.if_changed is "relist", the tiles are listed again.
    """
    for relistings in itertools.count():
        tiles, split = setup.find_tiles(config, container, world)
        try:
            return tiles, split, setup.inspect_training_tiles(config, tiles, split, world)
        except Changed as error:
            if config.dataset.if_changed == "error" or relistings == MOST_RELISTINGS:
                raise
            log.warning("warning: %s", str(error).removesuffix(START_AGAIN))
    raise AssertionError


def train_and_evaluate(
    state: State, task: Task, outputs: NoOutputs, container: Container, stop: StopRequest
) -> RunOutcome:
    """Train, evaluate held-out tiles, write the outputs. At runtime.max_seconds, save and return.

    If a tile changes meanwhile and dataset.if_changed is "relist", the tiles are listed again. Raises Stopped if a
    signal stopped the run, or if it stopped before its first epoch was finished.
    """
    for relistings in itertools.count():
        try:
            stop.raise_if_requested()
            loop.fit(state, task, outputs.save, outputs.save_epoch)
            outputs.fill_model_folder(state)
            val, holdout = evaluate_val_with_symmetries(state, task), evaluate_holdout(state, task)
            outputs.write_final_metrics(state, val, holdout)
            return RunOutcome(state, task, val, holdout, None, outputs.loggers)
        except Stopped as stopped:
            outputs.save_stopped(state, stopped.reason)
            if stopped.reason == Stopped.BY_SIGNAL or not state.history:
                raise
            return RunOutcome(state, task, None, None, stopped, outputs.loggers)
        except Changed as error:
            if task.config.dataset.if_changed == "error" or relistings == MOST_RELISTINGS:
                raise
            log.warning("warning: %s", str(error).removesuffix(START_AGAIN))
            task = list_again(state, task, outputs, container, stop)
    raise AssertionError


def list_again(state: State, task: Task, outputs: NoOutputs, container: Container, stop: StopRequest) -> Task:
    """List the tiles again, restart the unfinished epoch, and return the task with the new tiles."""
    config, compute = task.config, task.compute
    if state.epoch == config.model.epochs or loop.is_patience_over(state, config.model):
        log.warning("listing again; the evaluation after the last epoch restarts")
    else:
        log.warning("listing again; epoch %d restarts", state.epoch + 1)
    task.data.loader.close()
    tiles, split = setup.find_tiles(config, container, compute.world)
    loader = setup.make_loader(tiles, config, compute.device, stop.raise_if_requested, compute.world.process)
    outputs.replace_tiles(tiles, split)
    state.restart_epoch()
    return dataclasses.replace(task, data=dataclasses.replace(task.data, split=split, loader=loader))


def evaluate_val_with_symmetries(state: State, task: Task) -> dict[str, Any] | None:
    """The metrics of the last weights on val tiles with model.symmetries, which epochs do without; None if not set."""
    if not task.config.model.symmetries:
        return None
    return loop.evaluate(state, task, task.data.split.val, "val", state.epoch, symmetries=True)


def evaluate_holdout(state: State, task: Task) -> dict[str, Any] | None:
    """The metrics of the best weights on held-out tiles; None if there are none. The model keeps its last weights."""
    rows = task.data.split.holdout
    if not len(rows):
        return None
    model = state.evaluated_model
    last_weights = snapshot(model.state_dict())
    model.load_state_dict(state.best_weights)
    try:
        symmetries = task.config.model.symmetries
        return loop.evaluate(state, task, rows, "holdout", state.best_epoch, symmetries=symmetries)
    finally:
        model.load_state_dict(last_weights)
