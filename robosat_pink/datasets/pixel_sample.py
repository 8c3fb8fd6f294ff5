"""Some valid pixels of the training tiles with their classes, evenly spread. Taken by `coverage`; no torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MOST_PIXELS = 4096  # of a tile
MOST_NUMBERS = 1 << 18  # of a tile: of images with many bands, fewer pixels are taken


class PixelSample(NamedTuple):
    values: np.ndarray  # (P, C) float32, divided by their scale
    classes: np.ndarray  # (P,) uint8


class Sampling:
    """Takes pixels tile by tile."""

    def __init__(self, num_channels: int) -> None:
        self._values = [np.zeros((0, num_channels), dtype=np.float32)]
        self._classes = [np.zeros(0, dtype=np.uint8)]
        self._most = max(1, min(MOST_PIXELS, MOST_NUMBERS // num_channels))

    def add(self, values: np.ndarray, classes: np.ndarray) -> None:
        """Take pixels of one tile from its values (C, N) and their classes (N,)."""
        count = len(classes)
        chosen = np.linspace(0, count - 1, min(count, self._most)).round().astype(int)
        self._values.append(values[:, chosen].T.astype(np.float32))
        self._classes.append(classes[chosen])

    def finish(self) -> PixelSample:
        return PixelSample(np.concatenate(self._values), np.concatenate(self._classes))
