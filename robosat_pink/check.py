"""A dry run, `train --check`: logs the tiles, their statistics, and the time and disk a run needs. Called by `train`.

It reads some tiles, and times a few forward and backward passes without updating the weights.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from robosat_pink.config import ChannelConfig, Config, to_tree
from robosat_pink.container import device as devices
from robosat_pink.container.contract import Container
from robosat_pink.container.log_lines import IN_LOG
from robosat_pink.container.quantities import count, duration, size
from robosat_pink.container.redaction import redacted_tree
from robosat_pink.datasets import TilePairs, coverage
from robosat_pink.datasets.loader import crops_of_an_epoch
from robosat_pink.datasets.normalisation import FLAT, better_scale, normalisation, without_flat
from robosat_pink.datasets.reader import SYMMETRIES
from robosat_pink.datasets.split import Split
from robosat_pink.datasets.store_options import store_options
from robosat_pink.distributed import launcher
from robosat_pink.distributed.launcher import ProcessRank
from robosat_pink.distributed.process_group import World
from robosat_pink.losses import LOSSES, build_loss
from robosat_pink.models.blocks import Execution
from robosat_pink.report.scenes import confusion_labels
from robosat_pink.survey import Survey, limit_line, suggested_classes, survey
from robosat_pink.training import initial_checkpoint, out_of_memory, resume
from robosat_pink.training.channel_scales import resolve_scales
from robosat_pink.training.loggers import check_installed
from robosat_pink.training.recomputation import choose_recompute
from robosat_pink.training.setup import check_world_size, find_tiles, make_model
from robosat_pink.training.state import State
from robosat_pink.training.task import Compute

log = logging.getLogger(__name__)

SHOWN_DIRECTORIES = 20
PROBE_PIXELS = 256  # tile side in a step on a CPU: with 512, a large model takes a minute
STEPS = 4
EVALUATION_SHARE = 1 / 3  # time of an evaluation step relative to a training step: forward without backward
FAR_MEAN, FAR_STD = 0.25, 1.5  # measured values are suggested beyond this distance in stds, or this ratio of stds
SPARSE = 0.02  # a class with a smaller share of the pixels is sparse


def check(config: Config, container: Container) -> None:
    """Log the tiles, time and disk of a run. Writes only the cache of tiles.

    Raises the errors that training would raise for the experiment, the tiles that it reads, the initial checkpoint and
    a step. Ignores resume points and full disks, because they are not part of the experiment.
    """
    process = launcher.ranks_of_this_host(container, config.runtime)[0]
    check_world_size(config, World(process))
    check_installed(config.runtime.loggers)
    store = store_options(config.dataset, container.channels())
    initial = initial_checkpoint.find(config, None, store)
    config = resolve_scales(config, initial)
    log.info("experiment: %s", json.dumps(redacted_tree(to_tree(config))), extra=IN_LOG)
    tiles, split = find_tiles(config, container, World())
    if config.model.pretrained is True:
        log.info("the encoder's ImageNet weights are not downloaded for a check")
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, pretrained=False))
    model, execution = make_model(config, initial, torch.device("cpu"), store)
    if initial:
        state = State(model, torch.optim.Adam(model.parameters()), GradScaler("cpu", enabled=False))
        resume.restore(state, initial, config, tiles, split)
        del state, initial
    for line in directory_lines(tiles, split):
        log.info(line)
    surveyed = survey(config, tiles, split.train)
    pixels = int(surveyed.coverage.pixels.sum())
    channels = coverage.measured_channels(config.channels, pixels, surveyed.mean, surveyed.std)
    config = dataclasses.replace(config, channels=channels)
    for line in (*class_lines(config, tiles, surveyed), *channel_lines(config, surveyed)):
        log.info(line)
    for line in time_lines(config, tiles, split, surveyed, model, execution, process):
        log.info(line)
    for line in disk_lines(container, tiles, surveyed, model, config.model.ema is not None):
        log.info(line)
    log.info("checked; nothing was trained")


def directory_lines(tiles: TilePairs, split: Split) -> Iterator[str]:
    """One line per directory: its number of pairs in each split."""
    images = tiles.pairs.images
    counts = np.stack([np.bincount(images.directory[rows], minlength=len(images.directories)) for rows in split])
    directories = np.flatnonzero(counts.sum(axis=0)).tolist()
    for directory in directories[:SHOWN_DIRECTORIES]:
        train, val, holdout = counts[:, directory].tolist()
        splits = f"train {count(train)}, val {count(val)}" + (
            f", holdout {count(holdout)}" if len(split.holdout) else ""
        )
        yield f"  {images.directories[directory]}: {count(train + val + holdout, 'pair')} ({splits})"
    if len(directories) > SHOWN_DIRECTORIES:
        yield f"  and {count(len(directories) - SHOWN_DIRECTORIES)} more directories"


def class_lines(config: Config, tiles: TilePairs, surveyed: Survey) -> Iterator[str]:
    """A line with each class's share of pixels, then remarks and warnings about the classes, and better weights."""
    names = confusion_labels([class_.name for class_ in config.classes])
    covered = surveyed.coverage
    shares = ", ".join(f"{name} {share:.2%}" for name, share in zip(names, surveyed.shares, strict=True))
    yield (
        f"classes, in {len(covered.rows)} training tiles of {surveyed.side} x {surveyed.side}: {shares}; "
        f"{covered.ignored / covered.everything:.2%} of all pixels have no data"
    )
    yield from coverage.remarks(config, tiles, covered)
    may_stall = config.num_classes == 1 and config.model.loss == "lovasz"
    sparse = [name for name, share in zip(names, surveyed.shares, strict=True) if may_stall and 0 < share < SPARSE]
    for name in sparse:
        yield (
            f"warning: {name} is sparse; lovasz alone may stall, so consider model.loss: "
            "{lovasz: 0.5, cross_entropy: 1}"
        )
    takes_weights = any(LOSSES[name].takes_class_weights for name in config.model.losses)
    if (takes_weights or sparse) and (classes := suggested_classes(config, covered.pixels)):
        yield (
            f"  suggested{', with that loss' if sparse else ''}, to balance the classes: classes: {classes}; "
            "take it if rare classes matter most: probabilities and threshold shift towards them, and the IoU may fall"
        )


def channel_lines(config: Config, surveyed: Survey) -> Iterator[str]:
    """Each band's statistics, and better values for the keys of `channels` that do not fit them."""
    first = 0
    for number, channel in enumerate(config.channels):
        bands = slice(first, first + len(channel.bands))
        first += len(channel.bands)
        scales = sorted({float(scale[bands][0]) for scale in surveyed.scales})
        divided = "digital numbers divided by " + " and ".join(f"{scale:g}" for scale in scales)
        scaling = "by the files' own scale and offset" if channel.scale == "tags" else divided
        yield f"channels.{number}, valid pixels: {scaling}"
        statistics = (surveyed.low[bands], surveyed.high[bands], surveyed.mean[bands], surveyed.std[bands])
        for band, low, high, mean, std in zip(channel.bands, *statistics, strict=True):
            yield f"  band {band}: 2nd to 98th percentile {low:.4g} to {high:.4g}, mean {mean:.4f}, std {std:.4f}"
        if channel.scale == "raw":
            continue
        if surveyed.coverage.pixels.any():
            yield from suggestion_lines(config, surveyed, channel, bands, scales)
        else:
            yield "  no pixel is valid: there is nothing to suggest"


def suggestion_lines(
    config: Config, surveyed: Survey, channel: ChannelConfig, bands: slice, scales: Sequence[float]
) -> Iterator[str]:
    """Say that a channel's mean, std and scale fit the survey, or suggest better ones.

    `bands` are the channel's columns in the survey.
    """
    configured_mean, configured_std = (np.array(values[bands]) for values in normalisation(config.channels))
    mean, std, brightest = surveyed.mean[bands], surveyed.std[bands], float(surveyed.high[bands].max())
    is_flat = std <= FLAT * np.maximum(np.abs(mean), 1)
    std = without_flat(mean, std)
    if is_flat.any():
        flat = ", ".join(str(band) for band, is_flat_band in zip(channel.bands, is_flat, strict=True) if is_flat_band)
        yield f"  the same value everywhere, so that nothing can be learnt from it: band {flat}"
    # No single scale fits several data types, and with `tags` the values are physical ones.
    is_single = len(scales) == 1 and channel.scale != "tags"
    better = better_scale(scales[0], scales[0] * brightest) if is_single else scales[0]
    is_mean_far = np.abs(configured_mean - mean) > FAR_MEAN * std
    ratio = configured_std / np.maximum(std, 1e-12)
    is_std_far = (ratio > FAR_STD) | (ratio < 1 / FAR_STD)
    if better == scales[0] and not is_mean_far.any() and not is_std_far.any():
        yield "  mean, std and scale fit"
        return
    factor = scales[0] / better
    scale = f"{better:g}" if is_single else str(channel.scale)
    yield f"  suggested: {_as_yaml(channel, mean * factor, std * np.where(is_flat, 1, factor), scale)}"


def time_lines(
    config: Config,
    tiles: TilePairs,
    split: Split,
    surveyed: Survey,
    model: nn.Module,
    execution: Execution,
    process: ProcessRank,
) -> Iterator[str]:
    """The time of a run on machines like this one, with the world size of `process`, and what it will wait for."""
    device = devices.choose_device(config.runtime.device)
    precision = devices.choose_precision(config.runtime.precision, device)
    devices.prepare(device)
    if config.runtime.compile:
        devices.check_compiler(device)
    compute = Compute(device, precision, devices.choose_layout(device, precision), World(process))
    choose_recompute(model, execution, config, compute)
    tile_s = step_seconds(config, model, compute)
    # Ranks on a CPU share the cores of their host.
    parallel = process.size if device.type == "cuda" else process.size // process.local_size
    evaluated = len(split.val) * (surveyed.padded_side / config.model.tile_size) ** 2 * EVALUATION_SHARE
    crops = crops_of_an_epoch(len(split.train), config.sampling.tiles_per_epoch)
    epoch_s = tile_s * (crops + evaluated) / parallel
    tiles_read = len(surveyed.coverage.rows)
    reading_s = surveyed.seconds / tiles_read * (len(split.train) + len(split.val)) / parallel
    run_s = config.model.epochs * epoch_s + max(0.0, reading_s - epoch_s)
    if config.model.symmetries:  # the val tiles with the last weights, then on one rank with the best ones
        run_s += SYMMETRIES * tile_s * evaluated * (1 / parallel + 1)
    remark = f", by {process.size} processes" if process.size > 1 else ""
    if config.runtime.compile:
        remark += ", not compiled (which takes a minute or more)"
    yield (
        f"time, on {device} in {precision or torch.float32}{remark}: about {duration(epoch_s)} per "
        f"epoch, {duration(run_s)} for {count(config.model.epochs, 'epoch')}; {tiles_read} tiles were read in "
        f"{duration(surveyed.seconds)} ({tiles_read / surveyed.seconds:.1f} tiles/s)"
    )
    yield limit_line(tiles, surveyed, parallel / process.size / tile_s, process.local_size)


def step_seconds(config: Config, model: nn.Module, compute: Compute) -> float:
    """Seconds of forward and backward per training tile, from the fastest of STEPS steps.

    A step has one rank's share of a batch. On a CPU it has smaller tiles, and the time is scaled up. Raises
    ContractError, with the settings that fit, if the device runs out of memory.
    """
    device, processes = compute.device, compute.world.size
    is_gpu = device.type == "cuda"
    side = config.model.tile_size if is_gpu else min(config.model.tile_size, PROBE_PIXELS)
    share = math.ceil(config.model.batch_size / processes)
    share = share if is_gpu else min(share, max(1, 2 * (PROBE_PIXELS // side) ** 2))
    loss = build_loss(config.model.loss, num_classes=config.num_classes).to(device)
    model.to(device).to(memory_format=compute.memory_format).train()  # type: ignore[call-overload]

    def step(micro_batches: int) -> float:
        """Seconds per tile."""
        size = math.ceil(share / micro_batches)
        model.zero_grad()
        # Takes the memory of Adam's moments, and of the average of the weights.
        copies = 3 if config.model.ema else 2
        moments = [torch.empty_like(parameter) for parameter in model.parameters() for _ in range(copies)]
        image = torch.randn(size, config.num_channels, side, side, device=device).contiguous(
            memory_format=compute.memory_format
        )
        mask = (torch.arange(side, device=device) * max(config.num_classes, 2) // side).byte().expand(size, side, side)
        started = time.monotonic()
        with devices.autocast(device, compute.precision):
            logits = model(image)
        loss(logits, mask).backward()
        if is_gpu:
            torch.cuda.synchronize()
        del moments
        return (time.monotonic() - started) / size

    seconds = [out_of_memory.with_advice(config, processes, share, (side, side), step) for _ in range(STEPS)]
    return min(seconds) * (config.model.tile_size / side) ** 2


def disk_lines(
    container: Container, tiles: TilePairs, surveyed: Survey, model: nn.Module, is_averaged: bool
) -> Iterator[str]:
    """The needed and the free disk space. A checkpoint with Adam's moments takes three times the weights.

    If their average is kept, it takes once more.
    """
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    epoch = 4 if is_averaged else 3
    yield _disk_line("model", container.model, (epoch + 1) * weights, (2 * epoch + 1) * weights)
    if container.checkpoints:
        yield _disk_line("resume points", container.checkpoints, 2 * (epoch + 1) * weights, 3 * (epoch + 1) * weights)
    cache = tiles.reader.cache
    if cache:
        decoded = surveyed.decoded_bytes / len(surveyed.coverage.rows) * len(tiles)
        fetched = surveyed.fetched_bytes / len(surveyed.coverage.rows) * len(tiles)
        more = f"; {size(fetched)} to download" if fetched else ""
        yield f"cache: up to {size(decoded)} of decoded tiles in {cache.folder}{more}"


def _disk_line(what: str, folder: Path, needed: int, at_peak: int) -> str:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return f"disk, {what}: {size(needed)} ({size(at_peak)} at peak) in {folder}, where {size(free)} are free"


def _as_yaml(channel: ChannelConfig, mean: np.ndarray, std: np.ndarray, scale: str) -> str:
    """An entry of `channels` for the experiment file."""
    means, stds = (", ".join(f"{value:.4g}" for value in values) for values in (mean, std))
    return f"{{bands: {list(channel.bands)}, mean: [{means}], std: [{stds}], scale: {scale}}}"
