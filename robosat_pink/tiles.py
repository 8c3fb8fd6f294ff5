"""Tile arithmetic: which image belongs to which mask, and which pairs are trained on. No I/O, no torch.

A tile is a place, z/x/y in the slippy-map scheme. Many images (of different days) may show one tile. Everything is held
in NumPy arrays, a row a pair, because a collection may have a million of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import xxhash

from robosat_pink.errors import DataError

# Of tiles, in every mixture of small and capital letters.
SUFFIXES = tuple(
    "".join(letters)
    for suffix in ("tif", "tiff", "png", "jpg", "jpeg", "webp")
    for letters in itertools.product(*((letter, letter.upper()) for letter in suffix))
)
NUMBER = "(0|[1-9][0-9]{0,8})"  # as it is written back, and within 32 bits
TILE_PATH = re.compile(rf"{NUMBER}/{NUMBER}/{NUMBER}\.({'|'.join(SUFFIXES)})")
PLAIN_NAME = rf"{NUMBER}/{NUMBER}/{NUMBER}\.tif".replace("(", "(?:")
TILE = np.dtype([("zxy", np.int32, 3), ("suffix", np.uint8), ("version", np.uint64)])


class Tile(NamedTuple):
    z: int
    x: int
    y: int


def version_of(etag: str | None, size: int) -> int:
    """64 bits that differ where contents differ, as far as the store tells them apart."""
    return xxhash.xxh3_64_intdigest((etag or "").encode(), size)


def parse_names(prefix: str, paths: Sequence[str], etags: Sequence[str | None], sizes: Sequence[int]) -> np.ndarray:
    """The tiles (N,) of type TILE among files of one directory, by their paths, which begin with the prefix.

    Mostly they are all z/x/y.tif, and then a million are parsed in a second.
    """
    text = "\n" + "\n".join(paths)
    if re.fullmatch(rf"(?:\n{re.escape(prefix)}{PLAIN_NAME})+", text) and text.count("\n") == len(paths):
        numbers = text.replace(f"\n{prefix}", "/").replace(".tif", "")
        table = np.empty(len(paths), dtype=TILE)
        table["zxy"] = np.fromstring(numbers[1:], dtype=np.int64, sep="/").reshape(-1, 3)
        table["suffix"] = SUFFIXES.index("tif")
        table["version"] = list(map(version_of, etags, sizes))
        return table
    rows: list[tuple[tuple[int, ...], int, int]] = []
    for path, etag, size in zip(paths, etags, sizes, strict=True):
        if match := TILE_PATH.fullmatch(path, len(prefix)):
            *place, suffix = match.groups()
            rows.append((tuple(map(int, place)), SUFFIXES.index(suffix), version_of(etag, size)))
    return np.array(rows, dtype=TILE)


@dataclass(frozen=True)
class TileFiles:
    """The tile files of some directories: row i is in `directories[directory[i]]`, at `path(i)` below the bucket."""

    directories: tuple[str, ...]
    directory: np.ndarray  # (N,) int32
    zxy: np.ndarray  # (N, 3) int32
    suffix: np.ndarray  # (N,) uint8, into SUFFIXES
    version: np.ndarray  # (N,) uint64, `version_of` the content

    def __len__(self) -> int:
        return len(self.directory)

    def tile(self, row: int) -> Tile:
        return Tile(*self.zxy[row].tolist())

    def path(self, row: int) -> str:
        z, x, y = self.tile(row)
        return f"{self.directories[self.directory[row]]}/{z}/{x}/{y}.{SUFFIXES[self.suffix[row]]}"

    def take(self, rows: np.ndarray) -> TileFiles:
        return TileFiles(self.directories, self.directory[rows], self.zxy[rows], self.suffix[rows], self.version[rows])

    @classmethod
    def from_tables(cls, tables: Mapping[str, Sequence[np.ndarray]]) -> TileFiles:
        """From what `parse_names` found in each directory; the rows are sorted by directory and tile."""
        found = [np.concatenate([*pages, np.empty(0, dtype=TILE)]) for pages in tables.values()]
        found = [table[np.lexsort((table["suffix"], *table["zxy"].T[::-1]))] for table in found]
        table = np.concatenate([*found, np.empty(0, dtype=TILE)])
        return cls(
            directories=tuple(tables),
            directory=np.repeat(np.arange(len(found), dtype=np.int32), [len(each) for each in found]),
            zxy=table["zxy"].copy(),
            suffix=table["suffix"].copy(),
            version=table["version"].copy(),
        )


@dataclass(frozen=True)
class Pairs:
    """Row i of `images` and row i of `masks` show the same tile; `group[i]` numbers what the named groups matched."""

    images: TileFiles
    masks: TileFiles
    group: np.ndarray  # (N,) int32
    group_values: tuple[Hashable, ...]  # by number
    unpaired_images: int
    unpaired_masks: int

    def __len__(self) -> int:
        return len(self.images)


def pair(
    images: TileFiles,
    masks: TileFiles,
    image_groups: Sequence[Hashable],
    mask_groups: Sequence[Hashable],
) -> Pairs:
    """Join images and masks on the tile and on the value of the named groups that both expressions share.

    The groups are given per directory. Raises DataError where two masks claim one image, or two files one tile of one
    directory: whichever were taken, the other's pixels would be wrong.
    """
    numbers: dict[Hashable, int] = {}
    for value in (*image_groups, *mask_groups):
        numbers.setdefault(value, len(numbers))
    image_number = np.array([numbers[value] for value in image_groups], dtype=np.int32)[images.directory]
    mask_number = np.array([numbers[value] for value in mask_groups], dtype=np.int32)[masks.directory]

    _refuse_twins(images, "images")
    _refuse_twins(masks, "masks")
    place = _ranks(np.concatenate([image_number, mask_number]), np.concatenate([images.zxy, masks.zxy]))
    image_place, mask_place = place[: len(images)], place[len(images) :]

    mask_at = np.full(len(place), -1, dtype=np.int32)
    mask_at[mask_place[::-1]] = np.arange(len(masks))[::-1]  # the first of several wins, to be named below
    rows = np.flatnonzero(mask_at[image_place] >= 0)
    extra = np.flatnonzero(mask_at[mask_place] != np.arange(len(masks)))
    extra = extra[np.isin(mask_place[extra], image_place)]
    if len(extra):
        first, second = masks.path(int(mask_at[mask_place[extra[0]]])), masks.path(int(extra[0]))
        image = images.path(int(np.flatnonzero(image_place == mask_place[extra[0]])[0]))
        raise DataError(
            f"two masks for the image {image}: {first} and {second} ({len(extra)} such masks in all); narrow "
            "mask_directory_regex, or tell the masks apart by a named group in both expressions, such as "
            r"(?P<day>\d{8}), which must then match the same text in the image's and the mask's directory"
        )
    kept = images.take(rows)
    return Pairs(
        images=kept,
        masks=dataclasses.replace(masks.take(mask_at[image_place[rows]]), zxy=kept.zxy),  # equal, and not held twice
        group=image_number[rows],
        group_values=tuple(numbers),
        unpaired_images=len(images) - len(rows),
        unpaired_masks=int((~np.isin(mask_place, image_place)).sum()),
    )


def _ranks(number: np.ndarray, zxy: np.ndarray) -> np.ndarray:
    """A number (N,) for each different (number, z, x, y), by two sorts of plain integers."""
    _, lower = np.unique(zxy[:, 1].astype(np.int64) << 32 | zxy[:, 2], return_inverse=True)
    _, upper = np.unique(number.astype(np.int64) << 32 | zxy[:, 0], return_inverse=True)
    _, ranks = np.unique(upper * len(number) + lower, return_inverse=True)
    return ranks.astype(np.int32)


def _refuse_twins(files: TileFiles, kind: str) -> None:
    keys = np.column_stack([files.directory, files.zxy])
    if len(keys) < 2:
        return
    same = np.flatnonzero((keys[1:] == keys[:-1]).all(axis=1))  # rows are sorted by directory and tile
    if len(same):
        row = int(same[0])
        raise DataError(f"two {kind} of one tile: {files.path(row)} and {files.path(row + 1)}; remove one of them")


class Split(NamedTuple):
    """Rows of the pairs, each in one part only; rising within a part."""

    train: np.ndarray
    val: np.ndarray
    holdout: np.ndarray


def split_pairs(
    pairs: Pairs,
    train_percent: float,
    *,
    by: Literal["tile", "block", "group"] = "tile",
    seed: int = 0,
    zoom: int | None = None,
    holdout_percent: float = 0.0,
) -> Split:
    """Rank the ground tiles by a hash and cut: the first share trains, the last is held out, val lies between.

    All images of a unit fall on one side. A unit is the ground tile; by block, its parent tile at `zoom`, so that
    neighbours stay together; by group, what the shared named groups matched. Each part gets at least one unit. The hash
    depends on seed and unit alone, so that more data does not reshuffle what was there.
    """
    if by == "group":
        units = pairs.group[:, None]
    else:
        units = pairs.images.zxy if by == "tile" else parents(pairs.images.zxy, zoom or 0)
    names, unit_of = np.unique(units, axis=0, return_inverse=True)
    parts = 3 if holdout_percent else 2
    if len(names) < parts:
        ways = {"tile": "by: group (by scene)", "block": "a higher zoom or by: tile", "group": "by: tile"}
        raise DataError(
            f"the {len(pairs)} pairs lie on {len(names)} {'ground tile' if by == 'tile' else by}(s), too few to split "
            f"into {parts} parts; try dataset.split: {ways[by]}, or add tiles"
        )
    spelt = (pairs.group_values[number] for (number,) in _rows(names)) if by == "group" else _rows(names)
    texts = ("/".join(map(str, (seed, *name))) for name in spelt)  # type: ignore[misc]
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    ranks = np.fromiter(map(int.from_bytes, digests), dtype=np.uint64, count=len(names))
    order = np.argsort(ranks, kind="stable")
    held = max(1, round(holdout_percent * len(names))) if holdout_percent else 0
    trained = min(max(1, round(train_percent * len(names))), len(names) - held - 1)
    trained = max(trained, 1)
    held = min(held, len(names) - trained - 1)
    part = np.empty(len(names), dtype=np.uint8)
    part[order] = np.repeat([0, 1, 2], [trained, len(names) - trained - held, held])
    part_of = part[unit_of.reshape(-1)]
    return Split(*(np.flatnonzero(part_of == number).astype(np.int32) for number in range(3)))


def _rows(table: np.ndarray) -> Iterator[list[int]]:
    """Row by row as plain numbers, of which only some are held at a time."""
    for start in range(0, len(table), 1024):
        yield from table[start : start + 1024].tolist()


def parents(zxy: np.ndarray, zoom: int) -> np.ndarray:
    """The tiles (N, 3) at `zoom` that contain the given ones; DataError for tiles above that zoom."""
    if len(zxy) and zxy[:, 0].min() < zoom:
        raise DataError(
            f"dataset.split.zoom = {zoom}: there are tiles of zoom {zxy[:, 0].min()}; use a zoom up to that"
        )
    up = zxy[:, 0] - zoom
    return np.column_stack([np.full(len(zxy), zoom, dtype=zxy.dtype), zxy[:, 1] >> up, zxy[:, 2] >> up])


def tile_id(root: str, tile: Tile) -> str:
    """The id used in train_ids.txt and test_ids.txt, as planet-snowcover wrote it."""
    return f"{root.replace('/', '_')}-{tile.x}-{tile.y}-{tile.z}"
