"""The training loop: fit, its two phases, and the state they share. Called by `train`, which sets everything up."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from robosat_pink import metrics
from robosat_pink.config import Config, ModelConfig
from robosat_pink.container import Stopped, StopRequest
from robosat_pink.errors import CheckpointError, DataError, RobosatError
from robosat_pink.loader import Batch, TileLoader
from robosat_pink.metrics import Confusion
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
    stop: StopRequest

    @property
    def class_names(self) -> list[str]:
        return [each.name for each in self.config.classes]


class Progress(Protocol):
    """Wraps the batches of a phase, to show a bar or nothing."""

    def __call__(self, batches: Iterable[Batch], total: int, phase: str) -> Iterable[Batch]: ...


def fit(state: State, task: Task, after_epoch: Callable[[State, bool], None]) -> None:
    """Train from where `state` stands to the last epoch, evaluating each; `after_epoch` gets state and "is best".

    Raises Stopped after the step in which a stop was requested; `state` then tells how to go on.
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
        after_epoch(state, is_best)


def train_epoch(state: State, task: Task, epoch: int) -> dict[str, Any]:
    """One pass over the training tiles, from `state.step` on; its metrics, as they were met along the way."""
    model, optimizer = state.model.train(), state.optimizer
    num_batches = task.loader.num_batches(task.split.train)
    tally = Tally(task, "train", epoch, state.tally)
    batches = task.loader.training(task.split.train, epoch, state.step)
    timed = tally.timed(batches)
    try:
        for number, batch in enumerate(task.show(timed, num_batches, f"epoch {epoch} train"), state.step):
            done = (epoch - 1 + number / num_batches) / task.config.model.epochs
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(task.config.model, done)
            if len(batch):
                image, mask = to_device(batch, task, task.training_transform)
                with autocast(task):
                    logits = model(image)
                loss = task.loss(logits, mask)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                tally.add(batch, loss.detach(), logits.detach(), mask)
            state.step = number + 1
            task.stop.raise_if_requested()
    except Stopped:  # by a signal during a step, or during the wait for a batch
        state.tally = tally.content()
        raise
    return tally.finish()


@torch.inference_mode()
def evaluate(model: nn.Module, task: Task, rows: np.ndarray, phase: str, epoch: int) -> dict[str, Any]:
    """Metrics over whole tiles as they are: no augmentation, no shuffling, none left out."""
    model.eval()
    tally = Tally(task, phase, epoch)
    batches = tally.timed(task.loader.evaluation(rows))
    for batch in task.show(batches, task.loader.num_batches(rows), f"epoch {epoch} {phase}"):
        if len(batch):
            image, mask = to_device(batch, task, task.evaluation_transform)
            with autocast(task):
                logits = model(image)
            tally.add(batch, task.loss(logits, mask), logits, mask)
        task.stop.raise_if_requested()
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


class Tally:
    """Loss, confusion, time and traffic of one phase; one transfer from the device, at its end."""

    COUNTS = ("samples", "empty", "cached", "fetched", "fetched_bytes", "retries", "waited_s")

    def __init__(self, task: Task, phase: str, epoch: int, content: dict[str, Any] | None = None) -> None:
        """`content` is that of an earlier tally, to be added to."""
        self.task, self.phase, self.epoch = task, phase, epoch
        self.confusion = Confusion(task.config.num_classes, task.device)
        self.loss = torch.zeros((), dtype=torch.float64, device=task.device)
        self.samples = self.empty = self.cached = self.fetched = self.fetched_bytes = self.retries = 0
        self.waited_s = 0.0
        self.started = time.monotonic()
        if content is not None:
            self.confusion.counts += content["counts"].to(task.device)
            self.loss += content["loss"].to(task.device)
            for name in self.COUNTS:
                setattr(self, name, content[name])
            self.started -= content["seconds"]

    def content(self) -> dict[str, Any]:
        return {
            "counts": self.confusion.counts.cpu(),
            "loss": self.loss.cpu(),
            **{name: getattr(self, name) for name in self.COUNTS},
            "seconds": time.monotonic() - self.started,
        }

    def add(self, batch: Batch, loss: torch.Tensor, logits: torch.Tensor, mask: torch.Tensor) -> None:
        """`loss` is the mean over the batch's samples."""
        self.loss += loss.double() * len(batch)
        self.samples += len(batch)
        self.confusion.add(logits, mask)

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, while the time it takes to get each is summed up, and what it took from cache and store."""
        iterator = iter(batches)
        while True:
            asked = time.monotonic()
            batch = next(iterator, None)
            self.waited_s += time.monotonic() - asked
            if batch is None:
                return
            self.empty += batch.empty
            self.cached += batch.cached
            self.fetched += len(batch) + batch.empty - batch.cached
            self.fetched_bytes += batch.fetched_bytes
            self.retries += batch.retries
            yield batch

    def finish(self) -> dict[str, Any]:
        """The metrics of the phase, logged. Raises where there is nothing to measure, or the loss is not a number."""
        if not self.samples:
            raise DataError(f"none of the {self.empty} {self.phase} tiles has a pixel with both image and mask data")
        loss = self.loss.item() / self.samples
        if not math.isfinite(loss):
            raise RobosatError(
                f"epoch {self.epoch}: the {self.phase} loss is {loss}; check channels[].scale, mean and std, "
                "or lower model.lr"
            )
        seconds = time.monotonic() - self.started
        counts = self.confusion.counts.cpu().numpy()
        if (counts.sum(axis=1) > 0).sum() == 1:
            log.warning(
                "warning: every valid pixel of the %s tiles is of one class, and so their metrics say nothing; do the "
                "masks declare another class's value as nodata?",
                self.phase,
            )
        values = metrics.scores(counts, self.task.class_names, loss)
        values |= {"tiles": self.samples, "empty": self.empty, "seconds": seconds}
        log.info(
            metrics.log_line(
                self.phase,
                self.epoch,
                self.task.config.model.epochs,
                values,
                tiles=self.samples,
                empty=self.empty,
                seconds=f"{seconds:.2f}",
                tiles_per_s=f"{self.samples / seconds:.2f}",
                waited=f"{self.waited_s / seconds:.3f}",
                requests=2 * self.fetched + self.retries,
                retries=self.retries,
                megabytes=f"{self.fetched_bytes / 1e6:.2f}",
                cached=self.cached,
            )
        )
        return values
