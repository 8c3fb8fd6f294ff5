"""What an experiment would find and take, in words, before anything is trained: `train --check`. Called by `train`.

It reads some tiles, and takes some steps with weights that it throws away.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from robosat_pink.config import ChannelConfig, Config, to_tree
from robosat_pink.container import device as devices
from robosat_pink.container.contract import Container
from robosat_pink.container.redaction import redacted_tree
from robosat_pink.datasets import TilePairs, coverage
from robosat_pink.datasets.normalisation import normalisation
from robosat_pink.datasets.split import Split
from robosat_pink.datasets.store_options import store_options
from robosat_pink.distributed import launcher
from robosat_pink.distributed.launcher import ProcessRank
from robosat_pink.distributed.process_group import World
from robosat_pink.losses import build_loss
from robosat_pink.report.scenes import confusion_labels
from robosat_pink.survey import Survey, survey
from robosat_pink.training import out_of_memory, resume
from robosat_pink.training.setup import build_network, check_processes, find_tiles
from robosat_pink.training.state import State

log = logging.getLogger(__name__)

LISTED = 20  # directories
PROBE_PIXELS = 256  # a side, of what is stepped through on a CPU: with 512 a large network takes a minute
STEPS = 4
EVALUATION_SHARE = 1 / 3  # of the time of a step: forward, without backward
FLAT = 1e-6  # of the mean, or of 1: a smaller std is rounding
FAR_MEAN, FAR_STD = 0.25, 1.5  # from the measured ones, in deviations and as a ratio: then these are suggested
SCALES = (1, 255, 10000, 65535)
USUAL = (0.05, 2.0)  # where the brightest pixels lie after scaling
SPARSE = 0.02
GB = 1e9


def check(config: Config, container: Container) -> None:
    """Log all there is to say. Writes nothing but the cache of tiles.

    Raises what a training would raise at the experiment, the tiles it reads, what it starts from, and a step. Resume
    points and full disks are of the folder, not of the experiment.
    """
    processes = launcher.ranks_of_this_host(container, config.runtime)
    check_processes(config, World(processes[0]))
    where = store_options(config.dataset, container.channels())
    start = resume.find(config, None, where)
    config = resume.with_scales_settled(config, start)
    log.info("experiment: %s", json.dumps(redacted_tree(to_tree(config))))
    tiles, split = find_tiles(config, container, World())
    if config.model.pretrained is True:
        log.info("the encoder's ImageNet weights are not fetched for this")
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, pretrained=False))
    model, _ = build_network(config, start, torch.device("cpu"), where)
    if start:
        state = State(model, torch.optim.Adam(model.parameters()), GradScaler("cpu", enabled=False))
        resume.restore(state, start, config, tiles, split)
        del state, start
    for line in directories(tiles, split):
        log.info(line)
    found = survey(config, tiles, split.train)
    for line in (*balance(config, tiles, found), *bands(config, found)):
        log.info(line)
    for line in (*duration(config, split, found, model, processes[0]), *room(container, tiles, found, model)):
        log.info(line)
    log.info("checked; nothing was trained")


def directories(tiles: TilePairs, split: Split) -> Iterator[str]:
    """How the pairs are spread over directories and parts."""
    images = tiles.pairs.images
    counts = np.stack([np.bincount(images.directory[rows], minlength=len(images.directories)) for rows in split])
    there = np.flatnonzero(counts.sum(axis=0)).tolist()
    for number in there[:LISTED]:
        train, val, holdout = counts[:, number].tolist()
        parts = f"train {train}, val {val}" + (f", holdout {holdout}" if len(split.holdout) else "")
        yield f"  {images.directories[number]}: {train + val + holdout} pairs ({parts})"
    if len(there) > LISTED:
        yield f"  and {len(there) - LISTED} more directories"


def balance(config: Config, tiles: TilePairs, found: Survey) -> Iterator[str]:
    """Classes by their share of pixels."""
    names = confusion_labels([each.name for each in config.classes])
    covered = found.coverage
    shares = ", ".join(f"{name} {share:.2%}" for name, share in zip(names, found.shares, strict=True))
    yield (
        f"classes, in {len(covered.rows)} training tiles of {found.side} x {found.side}: {shares}; "
        f"{covered.ignored / covered.everything:.2%} of all pixels have no data"
    )
    yield from coverage.remarks(config, tiles, covered)
    is_lovasz_alone = config.num_classes == 1 and config.model.loss == "lovasz"
    for name, share in zip(names, found.shares, strict=True):
        if 0 < share < SPARSE and is_lovasz_alone:
            yield (
                f"warning: {name} is sparse; lovasz alone may stall, so consider model.loss: "
                "{lovasz: 0.5, cross_entropy: 1}"
            )


def bands(config: Config, found: Survey) -> Iterator[str]:
    """Each band's numbers, and channels as they might be written where the experiment's do not fit."""
    configured = normalisation(config.channels)
    number = 0
    for place, channel in enumerate(config.channels):
        where = slice(number, number + len(channel.bands))
        number += len(channel.bands)
        scales = sorted({float(each[where][0]) for each in found.scales})
        mean, std, low, high = (values[where] for values in (found.mean, found.std, found.low, found.high))
        divided = " and ".join(f"{each:g}" for each in scales)
        by = (
            "by the files' own scale and offset" if channel.scale == "tags" else f"digital numbers divided by {divided}"
        )
        yield f"channels.{place}: {by}, over valid pixels"
        for band, *values in zip(channel.bands, low, high, mean, std, strict=True):
            spread = "2nd to 98th percentile {:.4g} to {:.4g}, mean {:.4f}, std {:.4f}".format(*values)
            yield f"  band {band}: {spread}"
        if channel.scale == "raw":
            continue
        if not found.coverage.pixels.any():
            yield "  no pixel is valid: there is nothing to suggest"
            continue
        is_flat = std <= FLAT * np.maximum(np.abs(mean), 1)
        std = np.where(is_flat, 1, std)  # nothing can be divided by less
        if is_flat.any():
            flat = ", ".join(str(band) for band, one in zip(channel.bands, is_flat, strict=True) if one)
            yield f"  the same value everywhere, so that nothing can be learnt from it: band {flat}"
        # Types of several scales are as they shall be, and so are physical values.
        is_single = len(scales) == 1 and channel.scale != "tags"
        better = _better_scale(scales[0], scales[0] * float(high.max())) if is_single else scales[0]
        far_mean = np.abs(np.array(configured.mean[where]) - mean) > FAR_MEAN * std
        ratio = np.array(configured.std[where]) / np.maximum(std, 1e-12)
        far_std = (ratio > FAR_STD) | (ratio < 1 / FAR_STD)
        if better != scales[0] or far_mean.any() or far_std.any():
            factor = scales[0] / better
            scale = f"{better:g}" if is_single else str(channel.scale)
            factors = np.where(is_flat, 1, factor)
            yield f"  suggested: {_written(channel, mean * factor, std * factors, scale)}"
        else:
            yield "  mean, std and scale fit"


def duration(config: Config, split: Split, found: Survey, model: nn.Module, process: ProcessRank) -> Iterator[str]:
    """How long an epoch and the run would take on this machine, or so many like it, given one process's ranks."""
    device = devices.choose_device(config.runtime.device)
    precision = devices.choose_precision(config.runtime.precision, device)
    devices.prepare(device)
    if config.runtime.compile:
        devices.check_compiler(device)
    one = step_seconds(config, model, device, precision, process.size)  # a tile's
    at_once = (
        process.size if device.type == "cuda" else process.size // process.local_size
    )  # processes share a host's cores
    evaluated = len(split.val) * (found.padded_side / config.model.tile_size) ** 2 * EVALUATION_SHARE
    epoch = one * (len(split.train) + evaluated) / at_once
    reading = found.seconds / len(found.coverage.rows) * (len(split.train) + len(split.val)) / at_once
    tiles_read = len(found.coverage.rows)
    whole = config.model.epochs * epoch + max(0.0, reading - epoch)
    by = f", by {process.size} processes" if process.size > 1 else ""
    by += ", not compiled (which takes a minute or more)" * config.runtime.compile
    yield (
        f"time, on {device} in {precision or torch.float32}{by}: about {_printed(epoch)} an epoch, "
        f"{_printed(whole)} for {config.model.epochs}; {tiles_read} tiles were read in {found.seconds:.1f} s "
        f"({tiles_read / found.seconds:.1f} tiles/s)"
    )


def step_seconds(
    config: Config, model: nn.Module, device: torch.device, precision: torch.dtype | None, processes: int
) -> float:
    """What forward and backward take for one tile of training. The quickest of some; on a CPU, of a smaller tile.

    Of as many tiles as one of the processes computes at a time. Raises ContractError, with the settings that fit, where
    the memory does not suffice for them.
    """
    is_gpu = device.type == "cuda"
    side = config.model.tile_size if is_gpu else min(config.model.tile_size, PROBE_PIXELS)
    share = -(-config.model.batch_size // processes)
    share = share if is_gpu else min(share, max(1, 2 * (PROBE_PIXELS // side) ** 2))
    loss = build_loss(config.model.loss, num_classes=config.num_classes).to(device)
    layout = devices.choose_layout(device, precision)
    model.to(device).to(memory_format=layout).train()  # type: ignore[call-overload]

    def step(parts: int) -> float:
        """Seconds a tile."""
        size = -(-share // parts)
        model.zero_grad()
        moments = [torch.empty_like(each) for each in model.parameters() for _ in range(2)]  # Adam's
        image = torch.randn(size, config.num_channels, side, side, device=device).contiguous(memory_format=layout)
        mask = (torch.arange(side, device=device) * max(config.num_classes, 2) // side).byte().expand(size, side, side)
        started = time.monotonic()
        with devices.autocast(device, precision):
            logits = model(image)
        loss(logits, mask).backward()
        if is_gpu:
            torch.cuda.synchronize()
        del moments
        return (time.monotonic() - started) / size

    seconds = [out_of_memory.explained(config, processes, share, (side, side), step) for _ in range(STEPS)]
    return min(seconds) * (config.model.tile_size / side) ** 2


def room(container: Container, tiles: TilePairs, found: Survey, model: nn.Module) -> Iterator[str]:
    """What the run would write, and what is free there. Weights once, and three times with the optimizer's means."""
    weights = sum(each.nbytes for each in model.state_dict().values())
    yield _place("model", container.model, 4 * weights, f" (for moments {7 * weights / GB:.2f} GB)")
    if container.checkpoints:
        yield _place("resume points", container.checkpoints, 8 * weights, f" (for moments {12 * weights / GB:.2f} GB)")
    cache = tiles.reader.cache
    if cache:
        decoded = found.decoded_bytes / len(found.coverage.rows) * len(tiles)
        fetched = found.fetched_bytes / len(found.coverage.rows) * len(tiles)
        more = f"; {fetched / GB:.2f} GB to download" if fetched else ""
        yield f"cache: up to {decoded / GB:.2f} GB of decoded tiles in {cache.folder}{more}"


def _place(what: str, folder: Path, needed: int, more: str) -> str:
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(there).free
    return f"disk, {what}: {needed / GB:.2f} GB{more} in {folder}, where {free / GB:.1f} GB are free"


def _better_scale(scale: float, brightest: float) -> float:
    """The scale itself where the brightest pixels then lie as networks expect, else a usual one that does that."""
    if USUAL[0] <= brightest / scale <= USUAL[1] or brightest <= 0:
        return scale
    return next((float(each) for each in SCALES if USUAL[0] <= brightest / each <= USUAL[1]), scale)


def _written(channel: ChannelConfig, mean: np.ndarray, std: np.ndarray, scale: str) -> str:
    """As the experiment file would have it."""
    means, stds = (", ".join(f"{each:.4g}" for each in values) for values in (mean, std))
    return f"{{bands: {list(channel.bands)}, mean: [{means}], std: [{stds}], scale: {scale}}}"


def _printed(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 5400 else f"{seconds / 3600:.3g} h"
