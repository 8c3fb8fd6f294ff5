"""Bounds of tiles, a link to a map, and a small map of the split as SVG. Called by `build`, `summary`, `model_card`."""

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
    cells = _cells(zxy)
    corner = cells.min(axis=0)
    columns, rows = (cells.max(axis=0) - corner + 1).tolist()
    squares, square_of_tile = np.unique(cells - corner, axis=0, return_inverse=True)
    square_of_tile = square_of_tile.reshape(-1)
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
        f'style="max-width:{max(160, min(680, 40 * columns))}px;max-height:520px">{"".join(paths)}</svg>'
    )


def _cells(zxy: np.ndarray) -> np.ndarray:
    """Columns and rows (N, 2) of tiles, at the highest common zoom at which all of them fit into MAX_CELLS."""
    zoom = int(zxy[:, 0].min())
    cells: np.ndarray = parents(zxy, zoom)[:, 1:]
    while (cells.max(axis=0) - cells.min(axis=0)).max() >= MAX_CELLS:
        cells = cells >> 1
    return cells.astype(np.int64)


def _extremes(zxy: np.ndarray) -> list[list[int]]:
    """The tiles of each zoom that are farthest in each direction."""
    extremes = []
    for zoom in np.unique(zxy[:, 0]):
        tiles = zxy[zxy[:, 0] == zoom]
        positions = (*tiles.argmin(axis=0)[1:], *tiles.argmax(axis=0)[1:])
        extremes += [tiles[position].tolist() for position in positions]
    return extremes
