"""Statistics of bands and classes over a sample of an experiment's training tiles. Called by `check`."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from robosat_pink.config import Config
from robosat_pink.datasets import TilePairs, coverage
from robosat_pink.datasets.coverage import Coverage
from robosat_pink.datasets.normalisation import Moments

SAMPLED_PIXELS = 4096  # per tile, for the percentiles
EXTREMES = (2, 98)  # percentiles, `low` and `high`


@dataclass(frozen=True)
class Survey:
    """Statistics of digital numbers divided by their scale, over the valid pixels of the tiles that were read."""

    coverage: Coverage
    scales: tuple[np.ndarray, ...]  # the distinct scales of the tiles, (C,) each
    mean: np.ndarray  # (C,)
    std: np.ndarray  # (C,)
    low: np.ndarray  # (C,)
    high: np.ndarray  # (C,)
    side: int  # median height of the tiles in pixels
    padded_side: int  # the same after padding for evaluation
    seconds: float
    fetched_bytes: int  # 0 if all tiles were in the cache
    decoded_bytes: int

    @property
    def shares(self) -> np.ndarray:
        """(K,) share of each class in the valid pixels; nan if there are none."""
        with np.errstate(invalid="ignore"):
            shares: np.ndarray = self.coverage.pixels / self.coverage.pixels.sum()
        return shares


def survey(config: Config, tiles: TilePairs, rows: np.ndarray) -> Survey:
    """Read whole tiles, evenly spread over `rows`. Raises the errors that training would raise for these tiles."""
    started = time.monotonic()
    counting, moments = coverage.Counting(config.num_classes), Moments(config.num_channels)
    scales: dict[bytes, np.ndarray] = {}
    sampled: list[np.ndarray] = []
    sides: list[tuple[int, int]] = []  # height of each tile, before and after padding
    fetched = decoded = 0
    for sample in coverage.read(tiles, coverage.chosen(rows)):
        counting.add(sample)
        height, width = sample.size
        values = coverage.scaled_values(sample)
        moments.add(values)
        sampled.append(values[:, :: max(1, values.shape[1] // SAMPLED_PIXELS)])
        sides.append((height, len(sample.mask)))
        scales.setdefault(sample.scale.tobytes(), sample.scale)
        fetched += sample.fetched_bytes
        decoded += height * width * (len(sample.image) * sample.image.itemsize + 1)
    side, padded_side = np.median(sides, axis=0).astype(int).tolist()
    pixels = np.concatenate(sampled, axis=1)
    low, high = np.percentile(pixels, EXTREMES, axis=1) if pixels.size else np.zeros((2, config.num_channels))
    return Survey(
        coverage=counting.finish(len(rows)),
        scales=tuple(scales.values()),
        mean=moments.mean,
        std=moments.std,
        low=low,
        high=high,
        side=side,
        padded_side=padded_side,
        seconds=time.monotonic() - started,
        fetched_bytes=fetched,
        decoded_bytes=decoded,
    )
