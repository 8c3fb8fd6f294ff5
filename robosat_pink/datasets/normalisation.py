"""The numbers with which `transforms` normalises an image: (number / scale - mean) / std, band by band.

Called by `reader`, `trained` and `export` for the scale of an image, by `coverage` and `survey` for the bands'
statistics, by `setup`, `check` and `probabilities` for mean and std, and by `check` and `drafting` for a scale.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from robosat_pink.config import ChannelConfig
from robosat_pink.errors import DataError

FLAT = 1e-6  # a std up to FLAT * max(|mean|, 1) is rounding error
DIGITS = 6  # significant digits of measured statistics
SCALES = (1, 255, 10000, 65535)
USUAL = (0.05, 2.0)  # range of the brightest pixels after scaling
AUTO_SCALE = {"uint8": 255.0, "uint16": 10000.0, "int16": 10000.0, "float32": 1.0}


class Normalisation(NamedTuple):
    """(number / scale - mean) / std, per selected band; `raw` bands have mean 0 and std 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def normalisation(channels: Sequence[ChannelConfig]) -> Normalisation:
    """The mean and std of the selected bands, in order; 0 and 1 if the experiment sets none.

    A mean or std of "auto" must have been replaced by `with_statistics`.
    """
    mean: list[float] = []
    std: list[float] = []
    for channel in channels:
        assert channel.mean != "auto"
        assert channel.std != "auto"
        count = len(channel.bands)
        plain = channel.scale == "raw"
        mean += [0.0] * count if plain or channel.mean is None else channel.mean
        std += [1.0] * count if plain or channel.std is None else channel.std
    return Normalisation(tuple(mean), tuple(std))


def is_measured(channels: Sequence[ChannelConfig]) -> bool:
    """Whether a mean or std is "auto", which must be measured."""
    return any("auto" in (channel.mean, channel.std) for channel in channels)


def with_statistics(channels: Sequence[ChannelConfig], mean: np.ndarray, std: np.ndarray) -> tuple[ChannelConfig, ...]:
    """The channels with these statistics of the selected bands, in order, for each mean and std of "auto".

    They have DIGITS significant digits. A band that is the same everywhere gets a std of 1.
    """
    replaced, first = [], 0
    for channel in channels:
        bands = slice(first, first + len(channel.bands))
        first = bands.stop
        measured = {"mean": _rounded(mean[bands]), "std": _rounded(without_flat(mean[bands], std[bands]))}
        auto: dict[str, Any] = {name: value for name, value in measured.items() if getattr(channel, name) == "auto"}
        replaced.append(replace(channel, **auto))
    return tuple(replaced)


def without_flat(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """`std`, with 1 for bands that are the same everywhere: dividing by theirs would only magnify rounding errors."""
    return np.where(std <= FLAT * np.maximum(np.abs(mean), 1), 1.0, std)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.{DIGITS}g}") for value in values)


class Moments:
    """Mean and standard deviation of each band, updated tile by tile.

    Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979,
    equation 2.1.
    """

    def __init__(self, bands: int) -> None:
        self.count, self.mean, self._squares = 0, np.zeros(bands), np.zeros(bands)

    def add(self, values: np.ndarray) -> None:
        """Add the values (C, N), float, of one tile."""
        count = values.shape[1]
        if not count:
            return
        values = values.astype(np.float64)
        mean = values.mean(axis=1)
        delta = mean - self.mean
        total = self.count + count
        self._squares += ((values - mean[:, None]) ** 2).sum(axis=1) + delta**2 * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    @property
    def std(self) -> np.ndarray:
        return np.sqrt(self._squares / max(self.count, 1))


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


def better_scale(scale: float, brightest: float) -> float:
    """A scale that brings the brightest pixels into the USUAL range: `scale`, or the first of SCALES that does.

    If none does, `scale`.
    """
    if USUAL[0] <= brightest / scale <= USUAL[1] or brightest <= 0:
        return scale
    return next((float(usual) for usual in SCALES if USUAL[0] <= brightest / usual <= USUAL[1]), scale)
