"""Puts a tile and a border of its neighbours together. Called by `neighbours`; no I/O, no torch.

Where there is no neighbour, the border mirrors the data at their edge: the neighbour beside it if there is one,
otherwise the tile itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Pixels(NamedTuple):
    """A decoded tile."""

    image: np.ndarray  # (C, H, W), 0 where missing
    missing: np.ndarray  # (H, W) bool
    scale: np.ndarray  # (C,) float32, divisor of each band's numbers


Around = Sequence[Sequence[Pixels | None]]  # 3 x 3 tiles of one size [1 + dy][1 + dx]; the middle one is never None


class Canvas(NamedTuple):
    border: int  # pixels on each side of a tile
    height: int  # of a tile of the largest size, with its borders and with padding on the right and below
    width: int


def canvas_of(sizes: Sequence[tuple[int, int]], buffer: int, size_multiple: int) -> Canvas:
    """The canvas for tiles of these sizes (H, W), whose sides are multiples of `size_multiple`.

    The border is the smallest one from `buffer` on that needs no padding and is no wider than a tile; `buffer` if there
    is none. `buffer` 0 stays 0: neighbours are not read then. No tile has a side below `buffer`.
    """
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    widest = min(buffer + size_multiple, *itertools.chain.from_iterable(sizes)) if buffer else 0
    fitting = (
        border
        for border in range(buffer, widest + 1)
        if not (height + 2 * border) % size_multiple and not (width + 2 * border) % size_multiple
    )
    border = next(fitting, buffer)
    height, width = (math.ceil((side + 2 * border) / size_multiple) * size_multiple for side in (height, width))
    return Canvas(border, height, width)


def fill(image: np.ndarray, missing: np.ndarray, tiles: Around, border: int) -> None:
    """Copy the middle tile (C, H, W) and its border to `image` (C, H + 2 b, W + 2 b) and `missing` (H + 2 b, W + 2 b).

    Where a neighbour has another scale, its numbers are multiplied to have the middle tile's. `border` is at most the
    tile's smaller side; if it is equal to a side, what would be mirrored there is the edge, repeated.
    """
    middle = tiles[1][1]
    assert middle is not None
    height, width = middle.missing.shape
    rows, columns = _targets(height, border), _targets(width, border)
    for row, column in itertools.product(range(3), range(3)):
        tile = _piece(tiles, row, column, border)
        is_same_scale = np.array_equal(tile.scale, middle.scale)
        values = tile.image if is_same_scale else tile.image * (middle.scale / tile.scale)[:, None, None]
        image[:, rows[row], columns[column]] = values
        missing[rows[row], columns[column]] = tile.missing


def _targets(side: int, border: int) -> tuple[slice, slice, slice]:
    """Which pixels of a bordered side the three tiles cover."""
    return slice(0, border), slice(border, border + side), slice(border + side, side + 2 * border)


def _piece(tiles: Around, row: int, column: int, border: int) -> Pixels:
    """What the border shows of a neighbour: its own pixels, or those of the nearest tile that there is, mirrored.

    A corner without a neighbour mirrors the tile above or below it, otherwise the tile beside it, otherwise the middle.
    """
    for from_row, from_column in ((row, column), (1, column), (row, 1), (1, 1)):
        tile = tiles[from_row][from_column]
        if tile is None:
            continue
        height, width = tile.missing.shape
        ys = _own(height, row, border) if from_row == row else _mirrored(height, row, border)
        xs = _own(width, column, border) if from_column == column else _mirrored(width, column, border)
        return Pixels(tile.image[:, ys][:, :, xs], tile.missing[ys][:, xs], tile.scale)
    raise AssertionError("there is no middle tile")


def _own(side: int, position: int, border: int) -> slice:
    """The pixels of a tile before (0) the middle one, of this itself (1), or of one after it (2)."""
    return (slice(side - border, side), slice(0, side), slice(0, border))[position]


def _mirrored(side: int, position: int, border: int) -> slice:
    """The pixels of a tile in reverse that stand for a tile before (0) or after (2) it; without its edge."""
    if border == side:
        return slice(0, 1) if position == 0 else slice(side - 1, side)
    return slice(border, 0, -1) if position == 0 else slice(-2, -2 - border, -1)
