"""Crops image and mask together to a random window, or pads them. Called by `reader` and `packing`."""

from __future__ import annotations

import numpy as np

from robosat_pink.losses import IGNORE


def random_crop(
    image: np.ndarray, mask: np.ndarray, size: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A random window of at most `size` x `size`, with a valid pixel in it if the tile has one."""
    height, width = mask.shape
    if height <= size and width <= size:
        return image, mask
    last_top, last_left = max(height - size, 0), max(width - size, 0)
    top, left = int(random.integers(last_top + 1)), int(random.integers(last_left + 1))
    if not (mask[top : top + size, left : left + size] != IGNORE).any() and (mask != IGNORE).any():
        valid = np.argwhere(mask != IGNORE)
        y, x = valid[random.integers(len(valid))].tolist()
        top = int(random.integers(max(y - size + 1, 0), min(y, last_top) + 1))
        left = int(random.integers(max(x - size + 1, 0), min(x, last_left) + 1))
    return image[:, top : top + size, left : left + size], mask[top : top + size, left : left + size]


def pad(image: np.ndarray, mask: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad on the right and below, with zeros in the image and IGNORE in the mask."""
    below, right = height - mask.shape[0], width - mask.shape[1]
    if not below and not right:
        return image, mask
    return (
        np.pad(image, ((0, 0), (0, below), (0, right))),
        np.pad(mask, ((0, below), (0, right)), constant_values=IGNORE),
    )
