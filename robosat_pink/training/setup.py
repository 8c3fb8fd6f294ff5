"""The parts of a run, put together as the experiment says: tiles, network, loader. Called by `train` and `check`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from robosat_pink import checkpoint
from robosat_pink.config import Config
from robosat_pink.container.contract import Container
from robosat_pink.datasets import TilePairs
from robosat_pink.datasets.loader import TileLoader, bytes_of_a_batch, worker_count
from robosat_pink.datasets.split import Split
from robosat_pink.distributed.launcher import ProcessRank
from robosat_pink.distributed.process_group import World
from robosat_pink.errors import ConfigError
from robosat_pink.models import MODELS, build_model
from robosat_pink.models.blocks import Execution, choose_execution, settled_upsampling
from robosat_pink.models.synchronisation import synchronise
from robosat_pink.training.resume import Start, noted_upsampling

log = logging.getLogger(__name__)


def check_processes(config: Config, world: World) -> None:
    """ConfigError for what several processes cannot do."""
    several = f"{world.size} processes"
    if config.model.batch_size < world.size:
        raise ConfigError(
            f"model.batch_size = {config.model.batch_size}: is that of all {several} together; accepted: {world.size} "
            "or more, or fewer hosts or runtime.processes"
        )
    if world.size > 1 and config.model.batch_norm == "synchronised" and config.runtime.accumulation > 1:
        raise ConfigError(
            f"runtime.accumulation = {config.runtime.accumulation}: not with model.batch_norm = synchronised and "
            f"{several}, whose shares have unequal numbers of parts; take more processes, or a smaller batch"
        )
    if world.size > 1 and config.dataset.if_changed == "relist":
        raise ConfigError(f"dataset.if_changed = relist: not with {several}; leave it out, and start again if they do")
    if world.size == 1 and config.model.batch_norm == "synchronised":
        log.info("model.batch_norm = synchronised: there is one process, whose batches are whole")


def find_tiles(config: Config, container: Container, world: World) -> tuple[TilePairs, Split]:
    """List both buckets, pair images with masks, and say which of them are trained on."""
    tiles = TilePairs(
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
    )
    split = tiles.split()
    log.info(
        "pairs: %d (train %d, val %d, holdout %d); without partner: %d images, %d masks",
        *(len(tiles), len(split.train), len(split.val), len(split.holdout)),
        *(tiles.pairs.unpaired_images, tiles.pairs.unpaired_masks),
    )
    return tiles, split


def build_network(
    config: Config, start: Start | None, device: torch.device, where: dict[str, Any], is_synchronised: bool = False
) -> tuple[nn.Module, str | int]:
    """The experiment's network with weights to begin with, pretrained or random, and the form of its upsampling.

    A run goes on with the form that it has begun with: the forms differ in the last bits.
    """
    pretrained: Any = config.model.pretrained and not start  # nothing is fetched to be replaced
    if pretrained and isinstance(config.model.pretrained, str):
        pretrained = checkpoint.read(config.model.pretrained, **where)
    model = build_model(
        config.model.name,
        num_classes=config.num_classes,
        num_channels=config.num_channels,
        encoder=config.model.encoder,
        pretrained=pretrained,
        **config.model.options,
    )
    upsampling = settled_upsampling(config.runtime.upsampling, device.type)
    if start and start.is_whole and config.runtime.upsampling == "auto":
        upsampling = noted_upsampling(start, upsampling)
    choose_execution(model, Execution(upsampling, config.runtime.recompute))
    if is_synchronised:
        synchronise(model)
    return model, upsampling


def make_loader(
    tiles: TilePairs, config: Config, device: torch.device, interrupt: Callable[[], None], process: ProcessRank
) -> TileLoader:
    is_gpu = device.type == "cuda"
    batch_size = config.model.batch_size
    batch_bytes = bytes_of_a_batch(tiles, -(-batch_size // process.size))
    workers = worker_count(config.runtime.workers, is_gpu, batch_bytes, process.local_size)
    return TileLoader(tiles, batch_size, workers, pin_memory=is_gpu, interrupt=interrupt, process=process)
