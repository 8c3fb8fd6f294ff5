"""What changes while training, and what does not. Made by `train`, used by `loop` and by what saves and resumes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from robosat_pink.config import Config
from robosat_pink.datasets.batch import Batch
from robosat_pink.datasets.loader import TileLoader
from robosat_pink.datasets.split import Split
from robosat_pink.datasets.transforms import EvaluationTransform
from robosat_pink.distributed.process_group import World
from robosat_pink.errors import CheckpointError
from robosat_pink.training.phase_metrics import PhaseMetrics
from robosat_pink.training.progress import Running
from robosat_pink.training.stopping import Watch


@dataclass
class State:
    """Everything that changes while training, and so everything a resume point must hold.

    Nothing random is among it: crops, symmetries and order are drawn from (seed, epoch, row), and the networks draw
    nothing once they are built.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: GradScaler  # of the loss in float16; in other types it is off
    epoch: int = 0  # finished
    step: int = 0  # batches done of the epoch after that one
    tallies: list[dict[str, Any]] | None = None  # what these batches have summed up to, in each process
    train: dict[str, Any] | None = None  # the metrics of that epoch's training, once it is whole
    history: list[dict[str, Any]] = field(default_factory=list)  # a row an epoch: {"epoch", "lr", "train": M, "val": M}
    best_epoch: int = 0
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    skipped: int = 0  # batches whose loss was not a number
    is_resumed: bool = False  # this process goes on with an earlier one's work; no resume point holds that

    def to_content(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "step": self.step,
            "tallies": self.tallies,
            "train": self.train,
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_state_dict": self.best_weights,
            "skipped": self.skipped,
        }

    def restart_epoch(self) -> None:
        """Forget where in an epoch this is: the tiles are no longer those it was begun with."""
        self.step, self.tallies, self.train = 0, None, None

    def restore(self, content: Mapping[str, Any]) -> None:
        """Continue from the content of a resume point; of its optimizer's settings with the learning rate alone."""
        try:
            self.model.load_state_dict(content["state_dict"])
            (group,) = self.optimizer.state_dict()["param_groups"]
            group["lr"] = content["optimizer"]["param_groups"][0]["lr"]  # set in each step; here for the history
            moments = {
                number: {key: entry[key] for key in ("step", "exp_avg", "exp_avg_sq")}
                for number, entry in content["optimizer"]["state"].items()
            }
            self.optimizer.load_state_dict({"state": moments, "param_groups": [group]})
            if content.get("scaler") and self.scaler.is_enabled():
                self.scaler.load_state_dict(content["scaler"])
            self.epoch, self.step = content["epoch"], content["step"]
            self.tallies, self.train, self.history = content["tallies"], content["train"], content["history"]
            self.best_epoch, self.best_weights = content["best_epoch"], content["best_state_dict"]
            self.skipped = content["skipped"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"not a resume point of this network and version: {error}") from error

    def leave_phase(self, phase_metrics: PhaseMetrics, world: World) -> None:
        """Note where an epoch stands, in all processes, to go on from there."""
        self.tallies = world.all_gather(phase_metrics.content())

    def enter_phase(self, phase_metrics: PhaseMetrics, world: World) -> None:
        """Go on with what was noted, by as many processes or by others."""
        noted, self.tallies = self.tallies, None
        try:
            if noted and len(noted) == world.size:
                phase_metrics.restore(noted[world.rank])
            elif noted and world.is_rank_zero:
                for each in noted:
                    phase_metrics.restore(each)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"the resume point's sums of its epoch are damaged: {error}") from error


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
    watch: Watch
    network: (
        nn.Module
    )  # state.model as training calls it: compiled if asked for, averaging several processes' gradients
    world: World = field(default_factory=World)
    remarks: tuple[str, ...] = ()  # what a person should know of the tiles


class Progress(Protocol):
    """Wraps the batches of a phase, to show a bar or nothing."""

    def __call__(
        self, batches: Iterable[Batch], total: int, phase: str, phase_metrics: Running | None = None, first: int = 0
    ) -> Iterable[Batch]: ...
