"""The training loop: fit, its two phases, and the state they share. Called by `train`, which sets everything up."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from robosat_pink import memory, metrics, progress
from robosat_pink.config import Config, ModelConfig
from robosat_pink.container import Stopped
from robosat_pink.errors import CheckpointError
from robosat_pink.loader import Batch, TileLoader
from robosat_pink.progress import Running
from robosat_pink.tally import Tally
from robosat_pink.tiles import Split
from robosat_pink.transforms import EvaluationTransform

log = logging.getLogger(__name__)


@dataclass
class State:
    """Everything that changes while training, and so everything a resume point must hold.

    Nothing random is among it: crops, symmetries and order are drawn from (seed, epoch, row).
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: GradScaler  # of the loss in float16; in other types it is off
    epoch: int = 0  # finished
    step: int = 0  # batches done of the epoch after that one
    tally: dict[str, Any] | None = None  # what these batches have summed up to
    train: dict[str, Any] | None = None  # the metrics of that epoch's training, once it is whole
    history: list[dict[str, Any]] = field(default_factory=list)  # a row an epoch: {"epoch", "lr", "train": M, "val": M}
    best_epoch: int = 0
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def to_content(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "step": self.step,
            "tally": self.tally,
            "train": self.train,
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_state_dict": self.best_weights,
        }

    def begin_epoch_anew(self) -> None:
        """Forget where in an epoch this is: the tiles are no longer those it was begun with."""
        self.step, self.tally, self.train = 0, None, None

    def restore(self, content: dict[str, Any]) -> None:
        try:
            self.model.load_state_dict(content["state_dict"])
            self.optimizer.load_state_dict(content["optimizer"])
            if content.get("scaler") and self.scaler.is_enabled():
                self.scaler.load_state_dict(content["scaler"])
            self.epoch, self.step = content["epoch"], content["step"]
            self.tally, self.train, self.history = content["tally"], content["train"], content["history"]
            self.best_epoch, self.best_weights = content["best_epoch"], content["best_state_dict"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"not a resume point of this network and version: {error}") from error


@dataclass(frozen=True)
class Task:
    """Everything that does not change while training."""

    config: Config
    split: Split
    loader: TileLoader
    loss: nn.Module
    training_transform: EvaluationTransform
    evaluation_transform: EvaluationTransform
    device: torch.device
    autocast: torch.dtype | None  # None computes in float32
    memory_format: torch.memory_format
    show: Progress
    check: Callable[[], None]  # called after each step; raises Stopped, or what went wrong in the background


class Progress(Protocol):
    """Wraps the batches of a phase, to show a bar or nothing."""

    def __call__(
        self, batches: Iterable[Batch], total: int, phase: str, tally: Running | None = None
    ) -> Iterable[Batch]: ...


def fit(state: State, task: Task, after_epoch: Callable[[State, bool], None]) -> None:
    """Train from where `state` stands to the last epoch, evaluating each; `after_epoch` gets state and "is best".

    Raises what `task.check` raises, after the step in which it does; `state` then tells how to go on.
    """
    epochs = task.config.model.epochs
    for epoch in range(state.epoch + 1, epochs + 1):
        train = state.train = state.train or train_epoch(state, task, epoch)
        val = evaluate(state.model, task, task.split.val, "val", epoch)
        lr = state.optimizer.param_groups[0]["lr"]
        best = max((row["val"]["iou"] for row in state.history if row["epoch"] == state.best_epoch), default=None)
        is_best = metrics.is_better(val["iou"], best)
        state.epoch, state.step, state.tally, state.train = epoch, 0, None, None
        state.history.append({"epoch": epoch, "lr": lr, "train": train, "val": val})
        if is_best:
            state.best_epoch = epoch
            state.best_weights = copy.deepcopy({name: each.cpu() for name, each in state.model.state_dict().items()})
        log.info(progress.epoch_line(state.history, epochs, state.best_epoch))
        after_epoch(state, is_best)


def train_epoch(state: State, task: Task, epoch: int) -> dict[str, Any]:
    """One pass over the training tiles, from `state.step` on; its metrics, as they were met along the way."""
    optimizer = state.optimizer
    state.model.train()
    num_batches = task.loader.num_batches(task.split.train)
    tally = Tally(task.config, task.device, "train", epoch, state.tally)
    batches = task.loader.training(task.split.train, epoch, state.step)
    timed = tally.timed(batches)
    try:
        for number, batch in enumerate(task.show(timed, num_batches, f"epoch {epoch} train", tally), state.step):
            done = (epoch - 1 + number / num_batches) / task.config.model.epochs
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(task.config.model, done)
            if len(batch):
                image, mask = to_device(batch, task, task.training_transform)
                loss, logits = backward(state, task, image, mask)
                state.scaler.step(optimizer)
                state.scaler.update()
                tally.add(batch, loss, logits, mask)
            state.step = number + 1
            task.check()
    except Stopped:  # by a signal during a step, or during the wait for a batch
        state.tally = tally.content()
        raise
    return tally.finish()


def backward(state: State, task: Task, image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fill in the gradients of a batch; its mean loss and its logits.

    Raises ContractError, with the settings that fit, where the memory does not suffice.
    """
    parts = task.config.runtime.accumulation
    try:
        return backward_in_parts(state, task, image, mask, parts)
    except Exception as error:
        if not memory.is_exhausted(error):
            raise
        reason = str(error)

    # Not before the error is gone, and what it held with it.
    def step(parts: int) -> None:
        moments = [torch.empty_like(each) for each in state.model.parameters() for _ in range(2)]  # Adam's, to come
        backward_in_parts(state, task, image, mask, parts)
        del moments

    raise memory.explained(reason, len(image), (image.shape[2], image.shape[3]), parts, step)


def backward_in_parts(
    state: State, task: Task, image: torch.Tensor, mask: torch.Tensor, parts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of a batch, added up over so many parts of it. Batch norm takes its statistics from each part."""
    state.optimizer.zero_grad(set_to_none=True)
    size = -(-len(image) // parts)
    losses, logits = [], []
    for some, truth in zip(torch.split(image, size), torch.split(mask, size), strict=True):
        with autocast(task):
            found = state.model(some)
        loss = task.loss(found, truth) * (len(some) / len(image))
        state.scaler.scale(loss).backward()
        losses.append(loss.detach())
        logits.append(found.detach())
    return torch.stack(losses).sum(), torch.cat(logits)


@torch.inference_mode()
def evaluate(model: nn.Module, task: Task, rows: np.ndarray, phase: str, epoch: int) -> dict[str, Any]:
    """Metrics over whole tiles as they are: no augmentation, no shuffling, none left out."""
    model.eval()
    tally = Tally(task.config, task.device, phase, epoch)
    batches = tally.timed(task.loader.evaluation(rows))
    for batch in task.show(batches, task.loader.num_batches(rows), f"epoch {epoch} {phase}", tally):
        if len(batch):
            image, mask = to_device(batch, task, task.evaluation_transform)
            with autocast(task):
                logits = model(image)
            tally.add(batch, task.loss(logits, mask), logits, mask)
        task.check()
    return tally.finish()


def learning_rate(model: ModelConfig, done: float) -> float:
    """The rate when the share `done` (0 to 1) of all steps is done; cosine falls to 0 at 1.

    Loshchilov, Hutter, "SGDR", arXiv 1608.03983, equation 5 without restarts.
    """
    return model.lr if model.schedule == "constant" else model.lr * 0.5 * (1 + math.cos(math.pi * done))


def to_device(batch: Batch, task: Task, transform: EvaluationTransform) -> tuple[torch.Tensor, torch.Tensor]:
    """image (N, C, H, W) float32 normalised, mask (N, H, W) uint8, on the device."""
    image, mask, scale = (each.to(task.device, non_blocking=True) for each in (batch.image, batch.mask, batch.scale))
    image, mask = transform(image, mask, scale, batch.symmetry)
    return image.contiguous(memory_format=task.memory_format), mask


def autocast(task: Task) -> torch.autocast:
    return torch.autocast(task.device.type, dtype=task.autocast or torch.bfloat16, enabled=task.autocast is not None)
