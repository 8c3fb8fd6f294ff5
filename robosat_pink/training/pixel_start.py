"""Fits the part of a network that sees single pixels, before training: training then starts from its map.

The map that a pixel's own bands allow is learnt from single pixels in seconds; in crops it takes as many steps, each a
hundred times as long. docs/accuracy.md has what this is worth. Called by `run`.
"""

from __future__ import annotations

import logging
import math
import time

import torch
from torch import Tensor, nn

from robosat_pink.config import Config
from robosat_pink.container.quantities import count, duration
from robosat_pink.datasets.normalisation import normalisation
from robosat_pink.datasets.pixel_sample import PixelSample
from robosat_pink.distributed.process_group import World
from robosat_pink.losses import build_loss
from robosat_pink.models import MODELS

log = logging.getLogger(__name__)

PIXELS_PER_STEP = 4096
LEARNING_RATE = 0.01  # of Adam, falling to 0 along half a cosine
AVERAGED_STEPS = 100  # the last, for the loss that is logged


def fit_single_pixels(model: nn.Module, pixels: PixelSample, config: Config, world: World) -> None:
    """Fit a network's first `pixel_parts` in model.pixel_steps steps, on the CPU of rank 0, for all ranks.

    The same pixels and seed give the same weights: one thread computes them, with random numbers of their own.
    """
    parts = MODELS[config.model.name].pixel_parts
    if parts is None or not config.model.pixel_steps or not len(pixels.classes):
        return
    network, rest = map(model.get_submodule, parts)
    network.load_state_dict(world.on_rank_zero(lambda: _fitted_weights(network, pixels, config)))
    for parameter in rest.parameters():
        nn.init.zeros_(parameter)


def _fitted_weights(network: nn.Module, pixels: PixelSample, config: Config) -> dict[str, Tensor]:
    started = time.monotonic()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other longer than they compute
    try:
        losses = _fit(network, pixels, config)
    finally:
        torch.set_num_threads(threads)
    loss = sum(losses[-AVERAGED_STEPS:]) / len(losses[-AVERAGED_STEPS:])
    values = (count(len(pixels.classes)), count(len(losses)), duration(time.monotonic() - started), loss)
    log.info("fitted to %s single pixels of training tiles in %s steps, %s: cross entropy %.3f", *values)
    return network.state_dict()


def _fit(network: nn.Module, pixels: PixelSample, config: Config) -> list[float]:
    """Returns the loss of each step."""
    mean, std = map(torch.tensor, normalisation(config.channels))
    values = (torch.from_numpy(pixels.values) - mean) / std
    classes = torch.from_numpy(pixels.classes)
    class_weights = [class_.weight for class_ in config.classes]
    cross_entropy = build_loss("cross_entropy", num_classes=config.num_classes, class_weights=class_weights)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)
    generator = torch.Generator().manual_seed(config.runtime.seed)
    steps = config.model.pixel_steps or 0
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
        chosen = torch.randint(len(classes), (min(PIXELS_PER_STEP, len(classes)),), generator=generator)
        logits = network(values[chosen].T[None, :, :, None])  # (1, K, P, 1)
        loss = cross_entropy(logits, classes[chosen][None, :, None])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
