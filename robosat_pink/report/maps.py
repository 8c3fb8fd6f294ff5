"""Bounds of tiles, a link to a map, the squares of a map as SVG, and the map of the split.

Called by `build`, `error_map`, `summary`, `model_card` and `prediction.page`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from robosat_pink.datasets.mercator import latitude, longitude, side_m
from robosat_pink.datasets.tiles import Tile, parents

MAX_CELLS = 160  # columns or rows of the map; tiles that span more are drawn as their parent tiles
CELL = 10  # SVG units


class Bounds(NamedTuple):
    """The bounds of tiles in degrees."""

    west: float
    south: float
    east: float
    north: float

    def __str__(self) -> str:
        latitudes = [f"{abs(degrees):.3f}° {'N' if degrees >= 0 else 'S'}" for degrees in (self.south, self.north)]
        longitudes = [f"{abs(degrees):.3f}° {'E' if degrees >= 0 else 'W'}" for degrees in (self.west, self.east)]
        return f"{' to '.join(latitudes)}, {' to '.join(longitudes)}"


class Grid(NamedTuple):
    """The squares of a map: the tiles of one zoom that contain all tiles (N, 3)."""

    zoom: int
    columns: int
    rows: int
    squares: np.ndarray  # (M, 2) int64, column and row of each square that contains a tile
    square_of_tile: np.ndarray  # (N,) int64, index into squares


def link(tile: Tile) -> str:
    """The address of a page that shows the tile's centre on a map."""
    centre_lat, centre_lon = latitude(tile.y + 0.5, tile.z), longitude(tile.x + 0.5, tile.z)
    view = f"{min(tile.z, 19)}/{centre_lat:.5f}/{centre_lon:.5f}"
    return f"https://www.openstreetmap.org/?mlat={centre_lat:.5f}&mlon={centre_lon:.5f}#map={view}"


def bounds(zxy: np.ndarray) -> Bounds:
    """The bounds of tiles (N, 3)."""
    corners = [(longitude(x, z), latitude(y + 1, z), longitude(x + 1, z), latitude(y, z)) for z, x, y in _extremes(zxy)]
    west, south, east, north = zip(*corners, strict=True)
    return Bounds(min(west), min(south), max(east), max(north))


def metres_per_pixel(zxy: np.ndarray, tile_pixels: int) -> float:
    """Metres on the ground per pixel, at the middle latitude and the median zoom of tiles (N, 3)."""
    box = bounds(zxy)
    middle = math.radians((box.south + box.north) / 2)
    return side_m(int(np.median(zxy[:, 0]))) * math.cos(middle) / tile_pixels


def split_map(zxy: np.ndarray, splits: Mapping[str, np.ndarray], colors: Mapping[str, str]) -> str:
    """An SVG of tiles (N, 3), with squares in the color of their split; `splits` has the rows of each split.

    A square with tiles of several splits (several days of a tile, several tiles of a parent) shows the shares as
    columns.
    """
    _, columns, rows, squares, square_of_tile = grid(zxy)
    tiles = np.bincount(square_of_tile, minlength=len(squares))
    filled = np.zeros(len(squares))
    paths = []
    for split, split_rows in splits.items():
        share = np.bincount(square_of_tile[split_rows], minlength=len(squares)) / tiles
        columns_drawn = [
            f"M{CELL * x + 0.5 + (CELL - 1) * start:.4g} {CELL * y + 0.5:.4g}"
            f"h{(CELL - 1) * width:.3g}v{CELL - 1}h-{(CELL - 1) * width:.3g}z"
            for (x, y), start, width in zip(squares.tolist(), filled.tolist(), share.tolist(), strict=True)
            if width > 0
        ]
        filled += share
        paths.append(f'<path fill="{colors[split]}" d="{"".join(columns_drawn)}"/>')
    sizes = ", ".join(f"{len(split_rows)} {split}" for split, split_rows in splits.items())
    return (
        f'<svg viewBox="0 0 {CELL * columns} {CELL * rows}" role="img" aria-label="Map of the tiles: {sizes}" '
        f'style="{shown_size(CELL * columns)}">{"".join(paths)}</svg>'
    )


def grid(zxy: np.ndarray) -> Grid:
    """The squares of tiles (N, 3), at the highest common zoom at which all of them fit into MAX_CELLS."""
    zoom = int(zxy[:, 0].min())
    cells: np.ndarray = parents(zxy, zoom)[:, 1:]
    while (cells.max(axis=0) - cells.min(axis=0)).max() >= MAX_CELLS:
        zoom, cells = zoom - 1, cells >> 1
    corner = cells.min(axis=0)
    columns, rows = (cells.max(axis=0) - corner + 1).tolist()
    squares, square_of_tile = np.unique((cells - corner).astype(np.int64), axis=0, return_inverse=True)
    return Grid(zoom, columns, rows, squares, square_of_tile.reshape(-1))


def shown_size(width: float) -> str:
    """The style of a map that is `width` SVG units wide."""
    return f"max-width:{max(160, min(680, 4 * width)):.4g}px;max-height:520px"


def _extremes(zxy: np.ndarray) -> list[list[int]]:
    """The tiles of each zoom that are farthest in each direction."""
    extremes = []
    for zoom in np.unique(zxy[:, 0]):
        tiles = zxy[zxy[:, 0] == zoom]
        positions = (*tiles.argmin(axis=0)[1:], *tiles.argmax(axis=0)[1:])
        extremes += [tiles[position].tolist() for position in positions]
    return extremes
