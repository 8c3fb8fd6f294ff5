"""The numbers with which `transforms` normalises an image: (number / scale - mean) / std, band by band.

Called by `reader` for the scale of each tile, and by `setup`, `check` and `trained` for mean and std.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from robosat_pink.config import ChannelConfig
from robosat_pink.errors import DataError

AUTO_SCALE = {"uint8": 255.0, "uint16": 10000.0, "int16": 10000.0, "float32": 1.0}


class Normalisation(NamedTuple):
    """(number / scale - mean) / std, per selected band; `raw` bands have mean 0 and std 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def normalisation(channels: Sequence[ChannelConfig]) -> Normalisation:
    """The mean and std of the selected bands, in order; 0 and 1 if the experiment sets none."""
    mean: list[float] = []
    std: list[float] = []
    for channel in channels:
        count = len(channel.bands)
        plain = channel.scale == "raw"
        mean += [0.0] * count if plain or channel.mean is None else channel.mean
        std += [1.0] * count if plain or channel.std is None else channel.std
    return Normalisation(tuple(mean), tuple(std))


def scales_of(channels: Sequence[ChannelConfig], dtype: str, name: str) -> np.ndarray:
    """The divisor (C,) float32 of each selected band's numbers, in an image of `dtype`. Errors contain its `name`."""
    scales: list[float] = []
    for channel in channels:
        if isinstance(channel.scale, int | float):
            scale = channel.scale
        elif channel.scale in ("raw", "tags"):  # tags were applied when the file was read
            scale = 1.0
        elif dtype in AUTO_SCALE:
            scale = AUTO_SCALE[dtype]
        else:
            raise DataError(f"{name}: channels[].scale: auto knows {', '.join(AUTO_SCALE)}, not {dtype}; set a number")
        scales += itertools.repeat(scale, len(channel.bands))
    return np.array(scales, dtype=np.float32)
