"""Builds the parts of a run as the experiment says: tiles, model, optimizer, loader. Called by `run` and `check`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from robosat_pink import checkpoint
from robosat_pink.config import Config
from robosat_pink.container import device as devices
from robosat_pink.container.contract import Container
from robosat_pink.container.quantities import count
from robosat_pink.datasets import TilePairs, coverage
from robosat_pink.datasets.loader import TileLoader, bytes_of_a_batch, worker_count
from robosat_pink.datasets.normalisation import normalisation
from robosat_pink.datasets.pairs import IMAGE_KEYS, ImageKeys
from robosat_pink.datasets.split import Split
from robosat_pink.datasets.transforms import EvaluationTransform, TrainingTransform
from robosat_pink.distributed.launcher import ProcessRank
from robosat_pink.distributed.process_group import World
from robosat_pink.errors import ConfigError
from robosat_pink.losses import build_loss
from robosat_pink.models import MODELS, build_model
from robosat_pink.models.blocks import Execution, choose_execution, settled_upsampling
from robosat_pink.training.averaging import AveragedModel
from robosat_pink.training.initial_checkpoint import InitialCheckpoint, saved_upsampling
from robosat_pink.training.state import State
from robosat_pink.training.task import Compute, Data, Objective

log = logging.getLogger(__name__)


def check_world_size(config: Config, world: World) -> None:
    """Raises ConfigError for settings that do not work with several processes."""
    several = f"{world.size} processes"
    if config.model.batch_size < world.size:
        raise ConfigError(
            f"model.batch_size = {config.model.batch_size}: the batch is shared by {several}; accepted: {world.size} "
            "or more, or fewer hosts or runtime.processes"
        )
    if world.size > 1 and config.model.batch_norm == "synchronised" and config.runtime.accumulation > 1:
        raise ConfigError(
            f"runtime.accumulation = {config.runtime.accumulation}: not with model.batch_norm = synchronised and "
            f"{several}, whose shares may have unequal numbers of micro-batches; take more processes or a smaller batch"
        )
    if world.size > 1 and config.dataset.if_changed == "relist":
        raise ConfigError(f"dataset.if_changed = relist: not with {several}; leave it out, and start again if they do")
    if world.size == 1 and config.model.batch_norm == "synchronised":
        log.info("model.batch_norm = synchronised: there is one process, which has whole batches")


def choose_compute(config: Config, world: World) -> Compute:
    device = devices.choose_device(config.runtime.device, world.process.local_rank)
    precision = devices.choose_precision(config.runtime.precision, device)
    devices.prepare(device, world.process.local_size, world.ranks_on_this_machine())
    return Compute(device, precision, devices.choose_layout(device, precision), world)


def list_tiles(config: Config, container: Container, world: World, image_keys: ImageKeys = IMAGE_KEYS) -> TilePairs:
    """List both buckets, and pair images with masks. Errors name the `image_keys`, which the images are from."""
    return TilePairs(
        config.dataset,
        config.channels,
        config.classes,
        tile_size=config.model.tile_size,
        size_multiple=MODELS[config.model.name].size_multiple,
        augmentation=config.model.data_augmentation,
        seed=config.runtime.seed,
        input_channels=container.channels(),
        on_rank_zero=world.on_rank_zero,
        is_listed_here=world.process.size == world.process.local_size,
        image_keys=image_keys,
    )


def find_tiles(config: Config, container: Container, world: World) -> tuple[TilePairs, Split]:
    """List and split the pairs of image and mask."""
    tiles = list_tiles(config, container, world)
    split = tiles.split()
    log.info(
        "pairs: %s (train %s, val %s, holdout %s); without partner: %s, %s",
        *(count(number) for number in (len(tiles), *map(len, split))),
        count(tiles.pairs.unpaired_images, "image"),
        count(tiles.pairs.unpaired_masks, "mask"),
    )
    return tiles, split


def inspect_training_tiles(config: Config, tiles: TilePairs, split: Split, world: World) -> coverage.Look:
    """Read some of the training tiles on rank 0; log the remarks on them, and what was measured."""
    look: coverage.Look = world.on_rank_zero(lambda: coverage.look(config, tiles, split.train))
    for remark in look.remarks:
        log.log(logging.WARNING if remark.startswith("warning: ") else logging.INFO, remark)
    for number, (before, channel) in enumerate(zip(config.channels, look.channels, strict=True)):
        auto = [name for name in ("mean", "std") if getattr(before, name) == "auto"]
        if auto:
            measured = ", ".join(f"{name} {getattr(channel, name)}" for name in auto)
            log.info("channels.%d, measured in the training tiles: %s", number, measured)
    return look


def make_model(
    config: Config,
    initial: InitialCheckpoint | None,
    device: torch.device,
    store: dict[str, Any],
) -> tuple[nn.Module, Execution]:
    """The model, on the CPU, with pretrained or random weights, and how it upsamples.

    A resumed run keeps its form, because the results of the forms differ in the last bits. Pretrained weights are read
    with the options `store`, unless the initial checkpoint replaces them.
    """
    pretrained: Any = config.model.pretrained and not initial
    if pretrained and isinstance(config.model.pretrained, str):
        name = config.model.pretrained
        pretrained = checkpoint.weights_of(checkpoint.read(name, **store), name)
    model = build_model(
        config.model.name,
        num_classes=config.num_classes,
        num_channels=config.num_channels,
        encoder=config.model.encoder,
        pretrained=pretrained,
        pretrained_bands=config.model.pretrained_bands,
        **config.model.options,
    )
    upsampling = settled_upsampling(config.runtime.upsampling, device.type)
    if initial and initial.is_resume_point and config.runtime.upsampling == "auto":
        upsampling = saved_upsampling(initial, upsampling)
    execution = Execution(upsampling)
    choose_execution(model, execution)
    return model, execution


def make_state(model: nn.Module, config: Config, compute: Compute) -> State:
    """The model on its device, with optimizer and scaler, before the first step."""
    model.to(compute.device).to(memory_format=compute.memory_format)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), lr=config.model.lr, weight_decay=config.model.decay, fused=True)
    scaler = GradScaler(compute.device.type, enabled=compute.precision == torch.float16)
    average = AveragedModel(model, config.model.ema) if config.model.ema else None
    return State(model, optimizer, scaler, average=average)


def make_objective(model: nn.Module, config: Config, compute: Compute) -> Objective:
    wrapped_model: Any = model
    if config.runtime.compile:
        devices.check_compiler(compute.device)
        wrapped_model = torch.compile(model, dynamic=False)
        log.info("the network is compiled in the first step: a minute or more on a GPU, some on a CPU, of silence")
    wrapped_model = compute.world.data_parallel(wrapped_model, compute.device, config.runtime.accumulation)
    return Objective(wrapped_model, make_loss(config, compute.device))


def make_loss(config: Config, device: torch.device) -> nn.Module:
    class_weights = [class_.weight for class_ in config.classes]
    return build_loss(config.model.loss, num_classes=config.num_classes, class_weights=class_weights).to(device)


def make_data(config: Config, split: Split, loader: TileLoader, device: torch.device, remarks: list[str]) -> Data:
    mean_and_std = normalisation(config.channels)
    return Data(
        split,
        loader,
        training_transform=TrainingTransform(*mean_and_std).to(device),
        evaluation_transform=EvaluationTransform(*mean_and_std).to(device),
        remarks=tuple(remarks),
    )


def make_loader(
    tiles: TilePairs, config: Config, device: torch.device, interrupt: Callable[[], None], process: ProcessRank
) -> TileLoader:
    is_gpu = device.type == "cuda"
    batch_size = config.model.batch_size
    batch_bytes = bytes_of_a_batch(tiles, math.ceil(batch_size / process.size))
    workers = worker_count(config.runtime.workers, is_gpu, batch_bytes, process.local_size)
    return TileLoader(
        tiles,
        batch_size,
        workers,
        pin_memory=is_gpu,
        interrupt=interrupt,
        process=process,
        tiles_per_epoch=config.sampling.tiles_per_epoch,
    )
