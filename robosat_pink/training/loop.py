"""The training loop, from epochs down to steps, and the evaluation loop. Called by `run` and by the report.

With several ranks, each rank computes its share of every batch, and all stop and save after the same step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from robosat_pink.config import ModelConfig
from robosat_pink.container.stop_request import Stopped
from robosat_pink.datasets.batch import Batch
from robosat_pink.datasets.symmetry_average import predictor
from robosat_pink.errors import RobosatError
from robosat_pink.training import progress
from robosat_pink.training.phase_metrics import PhaseMetrics
from robosat_pink.training.state import State
from robosat_pink.training.step import compiles, evaluation_step, set_training_mode, training_step
from robosat_pink.training.task import Data, Task

log = logging.getLogger(__name__)

NONFINITE_CHECK_EVERY = {"cpu": 1, "cuda": 50}  # steps between checks: on a GPU, a check waits for the device


def fit(state: State, task: Task, save: Callable[[State], None], save_epoch: Callable[[State], None]) -> None:
    """Train and evaluate from the position of `state` to the last epoch.

    `save` is called when a resume point is due, `save_epoch` after each epoch. Raises Stopped after the step in which
    `task.control` decides to stop; `state` can then be saved and resumed.
    """
    epochs = task.config.model.epochs
    for epoch in range(state.epoch + 1, epochs + 1):
        if is_patience_over(state, task.config.model):
            patience = task.config.model.patience
            log.info("ended early: no better epoch than %d for model.patience = %d epochs", state.best_epoch, patience)
            break
        if state.train_metrics is None:  # a run resumed during the evaluation has them
            state.train_metrics = train_epoch(state, task, epoch, save)
        val = evaluate(state, task, task.data.split.val, "val", epoch, save)
        state.finish_epoch(state.train_metrics, val)
        log.info(progress.epoch_line(state.history, epochs, state.best_epoch))
        save_epoch(state)


def train_epoch(state: State, task: Task, epoch: int, save: Callable[[State], None]) -> dict[str, Any]:
    """Train for one epoch, from step `state.step` on. Returns the metrics of all steps of the epoch."""
    config, compute, rows = task.config, task.compute, task.data.split.train
    set_training_mode(state.model, is_frozen=config.model.batch_norm == "frozen")
    steps = task.data.loader.num_training_batches(rows)
    phase_metrics = PhaseMetrics(config, compute.device, "train", epoch, steps)
    state.restore_partial_metrics(phase_metrics, compute.world)
    batches = phase_metrics.timed(task.data.loader.training(rows, epoch, state.step), partial(compiles, task))
    try:
        for batch in task.show_progress(batches, steps, f"epoch {epoch} train", phase_metrics, state.step):
            set_learning_rate(state, config.model, (epoch - 1 + state.step / steps) / config.model.epochs)
            (samples,) = compute.world.sum_over_ranks(len(batch))
            if samples:
                loss, logits, mask, is_finite = training_step(state, task, batch, samples)
                phase_metrics.add(batch, loss, logits, mask, is_finite, state.step)
            state.step += 1
            stop_or_save(state, task, phase_metrics, save)
    except Stopped:  # after a step or, with one rank, during the wait for a batch
        check_losses(state, task.data, phase_metrics, config.runtime.skipped_batches)
        state.save_partial_metrics(phase_metrics, compute.world)
        raise
    check_losses(state, task.data, phase_metrics, config.runtime.skipped_batches)
    return phase_metrics.finish(compute.world)


def stop_or_save(state: State, task: Task, phase_metrics: PhaseMetrics, save: Callable[[State], None]) -> None:
    """After a training step, stop or save if `task.control` decides so, on all ranks alike."""
    stop_reason, should_save = task.control.after_step()
    if should_save or state.step % NONFINITE_CHECK_EVERY[task.compute.device.type] == 0:
        check_losses(state, task.data, phase_metrics, task.config.runtime.skipped_batches)
    if stop_reason:
        raise Stopped(stop_reason, is_agreed=True)
    if should_save:
        state.save_partial_metrics(phase_metrics, task.compute.world)
        save(state)
        state.partial_metrics = None


def check_losses(state: State, data: Data, phase_metrics: PhaseMetrics, most_skipped: int) -> None:
    """Warn of batches skipped for a non-finite loss, with their tiles; RobosatError after more than `most_skipped`."""
    steps = phase_metrics.new_nonfinite_steps()
    if not steps:
        return
    state.skipped += len(steps)
    rows = [row for step in steps for row in data.loader.rows_of(data.split.train, phase_metrics.epoch, step)]
    ids = ", ".join(data.loader.tiles.id(row) for row in rows)
    numbers = ", ".join(str(step + 1) for step in steps)
    where = f"epoch {phase_metrics.epoch}, step(s) {numbers}: the loss is non-finite (NaN or inf)"
    if state.skipped > most_skipped:
        raise RobosatError(
            f"{where}, and only {most_skipped} batch(es) may be skipped for that (runtime.skipped_batches); check "
            f"these tiles, channels[].scale, mean and std, or lower model.lr: {ids}"
        )
    log.warning("warning: %s; skipped: %s", where, ids)


def evaluate(
    state: State,
    task: Task,
    rows: np.ndarray,
    phase: str,
    epoch: int,
    save: Callable[[State], None] | None = None,
    symmetries: bool = False,
) -> dict[str, Any]:
    """The metrics over whole tiles, without augmentation or shuffling; no tile is left out.

    With `symmetries`, predictions are averages over the symmetries of the square. `save` is called when a resume point
    is due; a run resumed from that point repeats the evaluation.
    """
    world, model = task.compute.world, state.evaluated_model
    world.broadcast_buffers(model)
    steps = task.data.loader.num_batches(rows)
    phase_metrics = PhaseMetrics(task.config, task.compute.device, phase, epoch, steps)
    on_save = (lambda: save(state)) if save else None
    predicting = predictor(model, symmetries)
    for batch, result in evaluated_batches(predicting, task, rows, f"epoch {epoch} {phase}", phase_metrics, on_save):
        if result:
            phase_metrics.add(batch, *result)
    return phase_metrics.finish(world)


class EvaluatedBatch(NamedTuple):
    """The model's output for the tiles of a batch, on the device."""

    loss: Tensor  # (), mean over tiles
    logits: Tensor  # (N, K, H, W)
    mask: Tensor  # (N, H, W) uint8, 255 = ignore


@torch.inference_mode()
def evaluated_batches(
    model: nn.Module,
    task: Task,
    rows: np.ndarray,
    title: str,
    phase_metrics: PhaseMetrics | None = None,
    save: Callable[[], None] | None = None,
) -> Iterator[tuple[Batch, EvaluatedBatch | None]]:
    """The evaluation loop: every batch of `rows` with the model's output, or None for a batch without valid tiles.

    Raises Stopped after the batch in which `task.control` decides to stop.
    """
    model.eval()
    batches = task.data.loader.evaluation(rows)
    if phase_metrics:
        batches = phase_metrics.timed(batches)
    for batch in task.show_progress(batches, task.data.loader.num_batches(rows), title, phase_metrics):
        yield batch, EvaluatedBatch(*evaluation_step(model, task, batch)) if len(batch) else None
        stop_reason, should_save = task.control.after_step()
        if stop_reason:
            raise Stopped(stop_reason, is_agreed=True)
        if should_save and save:
            save()


def is_patience_over(state: State, model: ModelConfig) -> bool:
    """Whether model.patience epochs have passed since the best one."""
    return model.patience is not None and 0 < state.best_epoch <= state.epoch - model.patience


def set_learning_rate(state: State, model: ModelConfig, done: float) -> None:
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(model, done)


def learning_rate(model: ModelConfig, done: float) -> float:
    """The rate after the share `done` (0 to 1) of all steps. The cosine schedule ends at 0.

    Loshchilov, Hutter, "SGDR", arXiv 1608.03983, equation 5 without restarts.
    """
    return model.lr if model.schedule == "constant" else model.lr * 0.5 * (1 + math.cos(math.pi * done))
