"""Where tiles lie: coordinates, a link to a map, and a small map of the split as SVG. Called by `report` and `card`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from robosat_pink.datasets.tiles import Tile, parents

MOST_CELLS = 160  # a side; where tiles lie farther apart, a cell is a parent tile
CELL = 10  # units of the drawing
EQUATOR_M = 40_075_016.686  # round the Earth, of EPSG:3857


class Bounds(NamedTuple):
    """In degrees."""

    west: float
    south: float
    east: float
    north: float

    def __str__(self) -> str:
        south, north = (f"{abs(each):.3f}° {'N' if each >= 0 else 'S'}" for each in (self.south, self.north))
        west, east = (f"{abs(each):.3f}° {'E' if each >= 0 else 'W'}" for each in (self.west, self.east))
        return f"{south} to {north}, {west} to {east}"


def latitude(y: float, zoom: int) -> float:
    """Of the northern edge of row y, in degrees."""
    return math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * y / 2**zoom))))


def longitude(x: float, zoom: int) -> float:
    """Of the western edge of column x, in degrees."""
    return 360 * x / 2**zoom - 180


def link(tile: Tile) -> str:
    """A page that shows the place on a map."""
    north, west = latitude(tile.y + 0.5, tile.z), longitude(tile.x + 0.5, tile.z)
    place = f"{min(tile.z, 19)}/{north:.5f}/{west:.5f}"
    return f"https://www.openstreetmap.org/?mlat={north:.5f}&mlon={west:.5f}#map={place}"


def bounds(zxy: np.ndarray) -> Bounds:
    """Of tiles (N, 3)."""
    places = [(longitude(x, z), latitude(y + 1, z), longitude(x + 1, z), latitude(y, z)) for z, x, y in _extremes(zxy)]
    west, south, east, north = zip(*places, strict=True)
    return Bounds(min(west), min(south), max(east), max(north))


def metres_per_pixel(zxy: np.ndarray, tile_pixels: int) -> float:
    """On the ground, in the middle of the tiles."""
    box = bounds(zxy)
    middle = math.radians((box.south + box.north) / 2)
    return EQUATOR_M * math.cos(middle) / 2 ** int(np.median(zxy[:, 0])) / tile_pixels


def split_map(zxy: np.ndarray, parts: Mapping[str, np.ndarray], colors: Mapping[str, str]) -> str:
    """An SVG of tiles (N, 3), a square each, in the color of its part; `parts` name rows.

    A square that several parts share, many days of one tile or many tiles of one cell, shows their shares as columns.
    """
    cells = _cells(zxy)
    corner = cells.min(axis=0)
    columns, rows = (cells.max(axis=0) - corner + 1).tolist()
    places, number = np.unique(cells - corner, axis=0, return_inverse=True)
    number = number.reshape(-1)
    totals = np.bincount(number, minlength=len(places))
    left = np.zeros(len(places))
    paths = []
    for name, chosen in parts.items():
        share = np.bincount(number[chosen], minlength=len(places)) / totals
        squares = [
            f"M{CELL * x + 0.5 + (CELL - 1) * start:.4g} {CELL * y + 0.5:.4g}"
            f"h{(CELL - 1) * width:.3g}v{CELL - 1}h-{(CELL - 1) * width:.3g}z"
            for (x, y), start, width in zip(places.tolist(), left.tolist(), share.tolist(), strict=True)
            if width > 0
        ]
        left += share
        paths.append(f'<path fill="{colors[name]}" d="{"".join(squares)}"/>')
    words = ", ".join(f"{len(chosen)} {name}" for name, chosen in parts.items())
    return (
        f'<svg viewBox="0 0 {CELL * columns} {CELL * rows}" role="img" aria-label="Map of the tiles: {words}" '
        f'style="max-width:{max(160, min(680, 40 * columns))}px;max-height:520px">{"".join(paths)}</svg>'
    )


def _cells(zxy: np.ndarray) -> np.ndarray:
    """(N, 2) columns and rows of tiles of one zoom that all lie within MOST_CELLS."""
    zoom = int(zxy[:, 0].min())
    cells: np.ndarray = parents(zxy, zoom)[:, 1:]
    while (cells.max(axis=0) - cells.min(axis=0)).max() >= MOST_CELLS:
        cells = cells >> 1
    return cells.astype(np.int64)


def _extremes(zxy: np.ndarray) -> list[list[int]]:
    """Tiles at the four edges, of each zoom."""
    found = []
    for zoom in np.unique(zxy[:, 0]):
        some = zxy[zxy[:, 0] == zoom]
        found += [some[place].tolist() for place in (*some.argmin(axis=0)[1:], *some.argmax(axis=0)[1:])]
    return found
