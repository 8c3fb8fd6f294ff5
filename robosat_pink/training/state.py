"""The training state, which is also the content of a resume point. Used by `loop`, `step`, `outputs` and `resume`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from robosat_pink.distributed.process_group import World
from robosat_pink.errors import CheckpointError
from robosat_pink.training import metrics
from robosat_pink.training.averaging import AveragedModel
from robosat_pink.training.phase_metrics import PhaseMetrics


@dataclass
class State:
    """Everything that changes during training.

    It contains no random state: crops, symmetries and permutations are drawn from (seed, epoch, row), and the networks
    draw nothing after they are built.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: GradScaler  # scales the loss in float16; disabled for other dtypes
    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the next epoch
    partial_metrics: list[dict[str, Any]] | None = None  # metrics of these steps, one entry per rank
    train_metrics: dict[str, Any] | None = None  # metrics of the next epoch, once all its steps are finished
    history: list[dict[str, Any]] = field(default_factory=list)  # one row per epoch: {"epoch", "lr", "train", "val"}
    best_epoch: int = 0
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    skipped: int = 0  # batches with a non-finite loss
    average: AveragedModel | None = None  # with model.ema
    is_resumed: bool = False  # this process continues an earlier one's work; not in resume points

    @property
    def evaluated_model(self) -> nn.Module:
        """What is evaluated and kept: the average of the weights, or the weights themselves without model.ema."""
        return self.average.model if self.average else self.model

    def to_content(self) -> dict[str, Any]:
        """The content of a resume point; its keys never change.

        `state_dict` is what is evaluated. With model.ema, the weights that are trained stand beside it.
        """
        trained: dict[str, Any] = {}
        if self.average:
            trained = {"trained_state_dict": self.model.state_dict(), "updates": self.average.updates}
        return trained | {
            "epoch": self.epoch,
            "step": self.step,
            "tallies": self.partial_metrics,
            "train": self.train_metrics,
            "state_dict": self.evaluated_model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_state_dict": self.best_weights,
            "skipped": self.skipped,
        }

    def restore(self, content: Mapping[str, Any]) -> None:
        """Load the content of a resume point; of the optimizer's settings, only the learning rate."""
        try:
            self.model.load_state_dict(content.get("trained_state_dict", content["state_dict"]))
            self.restore_average(content)
            (group,) = self.optimizer.state_dict()["param_groups"]
            group["lr"] = content["optimizer"]["param_groups"][0]["lr"]  # for the history; each step sets it
            moments = {
                number: {key: entry[key] for key in ("step", "exp_avg", "exp_avg_sq")}
                for number, entry in content["optimizer"]["state"].items()
            }
            self.optimizer.load_state_dict({"state": moments, "param_groups": [group]})
            if content.get("scaler") and self.scaler.is_enabled():
                self.scaler.load_state_dict(content["scaler"])
            self.epoch, self.step = content["epoch"], content["step"]
            self.partial_metrics = content["tallies"]
            self.train_metrics = content["train"] and metrics.with_every_name(content["train"])
            phases = ("train", "val")
            self.history = [
                row | {phase: metrics.with_every_name(row[phase]) for phase in phases} for row in content["history"]
            ]
            self.best_epoch, self.best_weights = content["best_epoch"], content["best_state_dict"]
            self.skipped = content["skipped"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"not a resume point of this network and version: {error}") from error

    def restore_average(self, content: Mapping[str, Any]) -> None:
        """Load a checkpoint's average of the weights; without one, it starts anew from the model's weights."""
        if not self.average:
            return
        has_average = "trained_state_dict" in content
        self.average.model.load_state_dict(content["state_dict"] if has_average else self.model.state_dict())
        self.average.updates = content["updates"] if has_average else 0

    def restart_epoch(self) -> None:
        """Forget the steps and metrics of the unfinished epoch."""
        self.step, self.partial_metrics, self.train_metrics = 0, None, None

    def finish_epoch(self, train: dict[str, Any], val: dict[str, Any]) -> None:
        """Append the epoch to the history, and copy the weights if they are the best so far."""
        best = max((row["val"]["iou"] for row in self.history if row["epoch"] == self.best_epoch), default=None)
        self.epoch += 1
        lr = self.optimizer.param_groups[0]["lr"]
        self.history.append({"epoch": self.epoch, "lr": lr, "train": train, "val": val})
        self.restart_epoch()
        if metrics.is_better(val["iou"], best):
            self.best_epoch = self.epoch
            weights = {name: tensor.cpu() for name, tensor in self.evaluated_model.state_dict().items()}
            self.best_weights = copy.deepcopy(weights)

    def save_partial_metrics(self, phase_metrics: PhaseMetrics, world: World) -> None:
        """Gather every rank's metrics of the unfinished epoch."""
        self.partial_metrics = world.all_gather(phase_metrics.content())

    def restore_partial_metrics(self, phase_metrics: PhaseMetrics, world: World) -> None:
        """Add the gathered metrics to those of their rank; if the world size has changed, all of them to rank 0's."""
        saved, self.partial_metrics = self.partial_metrics, None
        try:
            if saved and len(saved) == world.size:
                phase_metrics.restore(saved[world.rank])
            elif saved and world.is_rank_zero:
                for content in saved:
                    phase_metrics.restore(content)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"the resume point's sums of its epoch are damaged: {error}") from error
