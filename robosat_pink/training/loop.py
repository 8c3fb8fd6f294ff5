"""The training loop: fit and its two phases. Called by `train`, which sets everything up.

With several processes each computes its share of every batch; what they decide, they decide together.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from robosat_pink.config import ModelConfig
from robosat_pink.container.stop_request import Stopped
from robosat_pink.errors import RobosatError
from robosat_pink.training import metrics, progress
from robosat_pink.training.phase_metrics import PhaseMetrics
from robosat_pink.training.state import State, Task
from robosat_pink.training.step import evaluation_step, set_training, training_step

log = logging.getLogger(__name__)

NONFINITE_CHECK_EVERY = {"cpu": 1, "cuda": 50}  # after which the device is asked for losses that are no numbers


def fit(state: State, task: Task, save: Callable[[State], None], after_epoch: Callable[[State], None]) -> None:
    """Train from where `state` stands to the last epoch, evaluating each.

    `save` is called when it is time to, `after_epoch` after each. Raises Stopped after the step in which the watch
    says so; `state` then tells how to go on.
    """
    for epoch in range(state.epoch + 1, task.config.model.epochs + 1):
        if is_patience_over(state, task.config.model):
            break
        train = state.train = state.train or train_epoch(state, task, epoch, save)
        val = evaluate(state, task, task.split.val, "val", epoch, save)
        lr = state.optimizer.param_groups[0]["lr"]
        best = max((row["val"]["iou"] for row in state.history if row["epoch"] == state.best_epoch), default=None)
        state.history.append({"epoch": epoch, "lr": lr, "train": train, "val": val})
        state.epoch = epoch
        state.restart_epoch()
        if metrics.is_better(val["iou"], best):
            state.best_epoch = epoch
            state.best_weights = copy.deepcopy({name: each.cpu() for name, each in state.model.state_dict().items()})
        log.info(progress.epoch_line(state.history, task.config.model.epochs, state.best_epoch))
        after_epoch(state)


def train_epoch(state: State, task: Task, epoch: int, save: Callable[[State], None]) -> dict[str, Any]:
    """One pass over the training tiles, from `state.step` on; its metrics, as they were met along the way."""
    set_training(state.model, task.config.model.batch_norm == "frozen")
    num_batches = task.loader.num_batches(task.split.train)
    phase_metrics = PhaseMetrics(task.config, task.device, "train", epoch, num_batches)
    state.enter_phase(phase_metrics, task.world)
    batches = phase_metrics.timed(task.loader.training(task.split.train, epoch, state.step))
    shown = task.show(batches, num_batches, f"epoch {epoch} train", phase_metrics, state.step)
    try:
        for number, batch in enumerate(shown, state.step):
            for group in state.optimizer.param_groups:
                done = (epoch - 1 + number / num_batches) / task.config.model.epochs
                group["lr"] = learning_rate(task.config.model, done)
            (total,) = task.world.sum_over_ranks(len(batch))
            if total:
                phase_metrics.add(number, batch, *training_step(state, task, batch, total))
            state.step = number + 1
            stop, is_due = task.watch()
            if is_due or state.step % NONFINITE_CHECK_EVERY[task.device.type] == 0:
                check_losses(state, task, phase_metrics)
            if is_due and not stop:
                state.leave_phase(phase_metrics, task.world)
                save(state)
                state.tallies = None
            if stop:
                raise Stopped(stop, is_agreed=True)  # noqa: TRY301 - so is the wait for a batch ended
    except Stopped:  # by the watch, or alone, during the wait for a batch
        check_losses(state, task, phase_metrics)
        state.leave_phase(phase_metrics, task.world)
        raise
    check_losses(state, task, phase_metrics)
    return phase_metrics.finish(task.world)


def check_losses(state: State, task: Task, phase_metrics: PhaseMetrics) -> None:
    """Warn of batches that were passed over; RobosatError, with their tiles, where they are more than may be."""
    steps = phase_metrics.is_unfit.nonzero().flatten().tolist()
    known = phase_metrics.steps_told
    if len(steps) == len(known):
        return
    new = [step for step in steps if step not in known]
    known.update(new)
    state.skipped += len(new)
    rows = [row for step in new for row in task.loader.rows_of(task.split.train, phase_metrics.epoch, step)]
    ids = ", ".join(task.loader.tiles.id(row) for row in rows)
    what = f"epoch {phase_metrics.epoch}, step(s) {', '.join(str(step + 1) for step in new)}: the loss is not a number"
    if state.skipped > task.config.runtime.skipped_batches:
        raise RobosatError(
            f"{what}, and {task.config.runtime.skipped_batches} batch(es) have been passed over before "
            f"(runtime.skipped_batches); check these tiles, channels[].scale, mean and std, or lower model.lr: {ids}"
        )
    log.warning("warning: %s; passed over: %s", what, ids)


@torch.inference_mode()
def evaluate(
    state: State,
    task: Task,
    rows: np.ndarray,
    phase: str,
    epoch: int,
    save: Callable[[State], None] | None = None,
) -> dict[str, Any]:
    """Metrics over whole tiles as they are: no augmentation, no shuffling, none left out.

    `save` is called when it is time to; a run that goes on from there evaluates from the beginning.
    """
    task.world.broadcast_buffers(state.model)
    state.model.eval()
    num_batches = task.loader.num_batches(rows)
    phase_metrics = PhaseMetrics(task.config, task.device, phase, epoch, num_batches)
    batches = phase_metrics.timed(task.loader.evaluation(rows))
    for number, batch in enumerate(task.show(batches, num_batches, f"epoch {epoch} {phase}", phase_metrics)):
        if len(batch):
            phase_metrics.add(number, batch, *evaluation_step(state, task, batch))
        stop, is_due = task.watch()
        if stop:
            raise Stopped(stop, is_agreed=True)
        if is_due and save:
            save(state)
    return phase_metrics.finish(task.world)


def is_patience_over(state: State, model: ModelConfig) -> bool:
    """Whether so many epochs have passed without a better one; said once."""
    if model.patience is None or not state.best_epoch or state.epoch - state.best_epoch < model.patience:
        return False
    log.info("ended early: no better epoch than %d for model.patience = %d epochs", state.best_epoch, model.patience)
    return True


def learning_rate(model: ModelConfig, done: float) -> float:
    """The rate when the share `done` (0 to 1) of all steps is done; cosine falls to 0 at 1.

    Loshchilov, Hutter, "SGDR", arXiv 1608.03983, equation 5 without restarts.
    """
    return model.lr if model.schedule == "constant" else model.lr * 0.5 * (1 + math.cos(math.pi * done))
