"""Tiles and their files, as rows of NumPy arrays, because a collection may have a million files. No I/O, no torch.

A tile is z/x/y in the slippy-map scheme; images of several days may show it. Called by `sides`, `pairing`, `split`,
`images`, `reading_order` and `neighbours`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from robosat_pink.datasets.file_names import FILE, SUFFIXES
from robosat_pink.errors import DataError


class Tile(NamedTuple):
    x: int
    y: int
    z: int


@dataclass(frozen=True)
class TileFiles:
    """The tile files of some directories: row i is in `directories[directory[i]]`, at `path(i)` in its location."""

    directories: tuple[str, ...]
    directory: np.ndarray  # (N,) index into directories, of the smallest unsigned dtype
    zxy: np.ndarray  # (N, 3) int32
    suffix: np.ndarray  # (N,) uint8, index into SUFFIXES
    version: np.ndarray  # (N,) uint64, `version_of` the content
    size: np.ndarray  # (N,) uint32, bytes, capped at LARGEST
    modified: np.ndarray  # (N,) uint32, seconds since 1970
    sidecars: np.ndarray  # (N,) uint8, a bit for each of SIDECARS

    def __len__(self) -> int:
        return len(self.directory)

    def tile(self, row: int) -> Tile:
        z, x, y = self.zxy[row].tolist()
        return Tile(x, y, z)

    def path(self, row: int) -> str:
        z, x, y = self.zxy[row].tolist()
        return f"{self.directories[self.directory[row]]}/{z}/{x}/{y}{SUFFIXES[self.suffix[row]]}"

    def take(self, rows: np.ndarray) -> TileFiles:
        columns = (field.name for field in dataclasses.fields(self) if field.name != "directories")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in columns})

    @classmethod
    def from_tables(cls, tables: Mapping[str, Sequence[np.ndarray]]) -> TileFiles:
        """The files in tables of `parse_names`, by directory; the rows are sorted by directory and tile."""
        empty = np.empty(0, dtype=FILE)
        directories = [_with_sidecar_bits(np.concatenate([*pages, empty])) for pages in tables.values()]
        table = np.concatenate([*directories, empty])
        return cls(
            directories=tuple(tables),
            directory=np.repeat(compact_range(len(directories)), [len(files) for files in directories]),
            zxy=table["zxy"].copy(),
            suffix=table["suffix"].copy(),
            version=table["version"].copy(),
            size=table["size"].copy(),
            modified=table["modified"].copy(),
            sidecars=table["sidecar"].copy(),
        )


def _with_sidecar_bits(table: np.ndarray) -> np.ndarray:
    """The tiles of one directory, sorted, with their sidecars' bits. If a name occurs twice, the latest file counts."""
    table = table[np.lexsort((table["modified"], table["sidecar"], table["suffix"], *table["zxy"].T[::-1]))]
    is_followed = _is_same_tile(table[:-1], table[1:]) & (table["sidecar"][:-1] == table["sidecar"][1:])
    table = table[np.append(~is_followed, len(table) > 0)[: len(table)]]
    is_tile = table["sidecar"] == 0
    tiles, sidecars = table[is_tile], table[~is_tile]
    before = np.cumsum(is_tile)[~is_tile] - 1  # the last tile before each sidecar, perhaps not its own
    sidecars, before = sidecars[before >= 0], before[before >= 0]
    is_its_own = _is_same_tile(tiles[before], sidecars)
    np.bitwise_or.at(tiles["sidecar"], before[is_its_own], sidecars["sidecar"][is_its_own])
    return tiles


def _is_same_tile(table: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(N,) bool: whether row i has the same tile and suffix in both tables."""
    is_same: np.ndarray = (table["zxy"] == other["zxy"]).all(axis=1) & (table["suffix"] == other["suffix"])
    return is_same


def compact_range(count: int) -> np.ndarray:
    """0 to count - 1 in the smallest unsigned dtype, to save memory for a million tiles."""
    return np.arange(count, dtype=np.min_scalar_type(max(count - 1, 0)))


def parents(zxy: np.ndarray, zoom: int) -> np.ndarray:
    """The tiles (N, 3) at `zoom` that contain the given ones. Raises DataError if one of these has a lower zoom."""
    if len(zxy) and zxy[:, 0].min() < zoom:
        raise DataError(
            f"dataset.split.zoom = {zoom}: there are tiles of zoom {zxy[:, 0].min()}; use a zoom up to that"
        )
    up = zxy[:, 0] - zoom
    return np.column_stack([np.full(len(zxy), zoom, dtype=zxy.dtype), zxy[:, 1] >> up, zxy[:, 2] >> up])


def around(files: TileFiles, rows: np.ndarray) -> np.ndarray:
    """The rows (N, 3, 3) of each tile's neighbours in its directory: [i, 1 + dy, 1 + dx], itself in the middle.

    -1 where there is none. East of the antimeridian follows x = 0. All `rows` (N,), N > 0, are of one directory, which
    has one zoom; the files are sorted by directory and tile.
    """
    directory = int(files.directory[rows[0]])
    assert (files.directory[rows] == directory).all()
    first, last = np.searchsorted(files.directory, [directory, directory + 1])
    z, x, y = files.zxy[first:last].astype(np.int64).T
    keys = x << 32 | y  # sorted, as the tiles are
    steps = np.arange(-1, 2)
    columns = (x[rows - first, None, None] + steps) % (1 << min(int(z[0]), 32))
    lines = y[rows - first, None, None] + steps[:, None]
    wanted = (columns << 32) + lines
    found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[found] == wanted, found + first, -1)


def zooms_in_words(zxy: np.ndarray) -> str:
    zooms, counts = np.unique(zxy[:, 0], return_counts=True)
    return ", ".join(f"{zoom} ({count} tiles)" for zoom, count in zip(zooms, counts, strict=True))


def tile_id(root: str, tile: Tile) -> str:
    """The id used in train_ids.txt and test_ids.txt, as planet-snowcover wrote it."""
    return f"{root.replace('/', '_')}-{tile.x}-{tile.y}-{tile.z}"
