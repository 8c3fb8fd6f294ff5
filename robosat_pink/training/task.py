"""The parts of a run that training does not change: objective, data, device. Built by `run` and `setup`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import nn

from robosat_pink.config import Config
from robosat_pink.container.stop_request import StopRequest
from robosat_pink.datasets.batch import Batch
from robosat_pink.datasets.loader import TileLoader
from robosat_pink.datasets.split import Split
from robosat_pink.datasets.transforms import EvaluationTransform
from robosat_pink.distributed.process_group import World
from robosat_pink.training.background_writer import BackgroundWriter
from robosat_pink.training.progress import RunningMetrics
from robosat_pink.training.stopping import LoopControl


@dataclass(frozen=True)
class Objective:
    """The model and the loss that a training step uses."""

    wrapped_model: nn.Module  # the model as training calls it: compiled, in DistributedDataParallel, or plain
    loss: nn.Module  # (logits (N, K, H, W), mask (N, H, W)) -> the mean over samples
    compiled_sizes: set[int] = field(default_factory=set)  # numbers of tiles for which this process has compiled it


@dataclass(frozen=True)
class Data:
    """The tiles of a run, and how they are normalised."""

    split: Split
    loader: TileLoader
    training_transform: EvaluationTransform
    evaluation_transform: EvaluationTransform
    remarks: tuple[str, ...] = ()  # remarks on the tiles, for the report


@dataclass(frozen=True)
class Compute:
    """The device of a run, its dtype and memory format, and its ranks."""

    device: torch.device
    precision: torch.dtype | None  # dtype of autocast; None: float32 throughout
    memory_format: torch.memory_format
    world: World = field(default_factory=World)


@dataclass(frozen=True)
class Task:
    config: Config
    objective: Objective
    data: Data
    compute: Compute
    control: LoopControl
    show_progress: Progress

    def on_one_rank(self, stop: StopRequest) -> Task:
        """The task for the report, on this rank only: without collectives, resume points and time limit."""
        world = World()
        control = LoopControl(world, stop, BackgroundWriter())
        data = self.data
        if self.compute.world.size > 1:  # the loader of several ranks reads only this rank's share
            batch_size = self.config.model.batch_size
            loader = TileLoader(data.loader.tiles, batch_size, workers=0, interrupt=control.interrupt)
            data = replace(data, loader=loader)
        return replace(self, data=data, compute=replace(self.compute, world=world), control=control)


class Progress(Protocol):
    """Wraps the batches of a phase in a bar or log lines. `first` batches were done before."""

    def __call__(
        self, batches: Iterable[Batch], total: int, phase: str, metrics: RunningMetrics | None = None, first: int = 0
    ) -> Iterable[Batch]: ...
