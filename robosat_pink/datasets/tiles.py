"""Tile arithmetic: which image belongs to which mask, and which pairs are trained on. No I/O, no torch.

A tile is a place, z/x/y in the slippy-map scheme. Many images (of different days) may show one tile. Everything is held
in NumPy arrays, a row a pair, because a collection may have a million of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from robosat_pink.datasets.file_names import FILE, SUFFIXES
from robosat_pink.errors import DataError


class Tile(NamedTuple):
    x: int
    y: int
    z: int


@dataclass(frozen=True)
class TileFiles:
    """The tile files of some directories: row i is in `directories[directory[i]]`, at `path(i)` below the bucket."""

    directories: tuple[str, ...]
    directory: np.ndarray  # (N,) of the smallest unsigned type that holds all
    zxy: np.ndarray  # (N, 3) int32
    suffix: np.ndarray  # (N,) uint8, into SUFFIXES
    version: np.ndarray  # (N,) uint64, `version_of` the content
    size: np.ndarray  # (N,) uint32, bytes; LARGEST and more are one
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
        """From what `parse_names` found in each directory; the rows are sorted by directory and tile."""
        found = [_joined(np.concatenate([*pages, np.empty(0, dtype=FILE)])) for pages in tables.values()]
        table = np.concatenate([*found, np.empty(0, dtype=FILE)])
        return cls(
            directories=tuple(tables),
            directory=np.repeat(_numbers(len(found)), [len(each) for each in found]),
            zxy=table["zxy"].copy(),
            suffix=table["suffix"].copy(),
            version=table["version"].copy(),
            size=table["size"].copy(),
            modified=table["modified"].copy(),
            sidecars=table["sidecar"].copy(),
        )


def _joined(table: np.ndarray) -> np.ndarray:
    """The tiles of one directory, sorted, with the bits of their sidecars. Of a name that comes twice, the latest."""
    table = table[np.lexsort((table["modified"], table["sidecar"], table["suffix"], *table["zxy"].T[::-1]))]
    is_followed = _is_of_one_tile(table[:-1], table[1:]) & (table["sidecar"][:-1] == table["sidecar"][1:])
    table = table[np.append(~is_followed, len(table) > 0)[: len(table)]]
    is_tile = table["sidecar"] == 0
    tiles, sidecars = table[is_tile], table[~is_tile]
    before = np.cumsum(is_tile)[~is_tile] - 1  # the last tile before each sidecar, which may be another one's
    sidecars, before = sidecars[before >= 0], before[before >= 0]
    is_its_own = _is_of_one_tile(tiles[before], sidecars)
    np.bitwise_or.at(tiles["sidecar"], before[is_its_own], sidecars["sidecar"][is_its_own])
    return tiles


def _is_of_one_tile(table: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Row by row."""
    is_one: np.ndarray = (table["zxy"] == other["zxy"]).all(axis=1) & (table["suffix"] == other["suffix"])
    return is_one


def _numbers(count: int) -> np.ndarray:
    """0 to count - 1, in a type that takes little memory for each of a million tiles."""
    return np.arange(count, dtype=np.min_scalar_type(max(count - 1, 0)))


@dataclass(frozen=True)
class Pairs:
    """Row i of `images` and row i of `masks` show the same tile; `group[i]` numbers what the named groups matched."""

    images: TileFiles
    masks: TileFiles
    group: np.ndarray  # (N,) of the smallest unsigned type that holds all
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
    number = _numbers(len(numbers))
    image_number = number[[numbers[value] for value in image_groups]][images.directory]
    mask_number = number[[numbers[value] for value in mask_groups]][masks.directory]

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
    _refuse_several_zooms(pairs.images.zxy, by)
    if by == "group":
        units = pairs.group[:, None]
    else:
        units = pairs.images.zxy if by == "tile" else parents(pairs.images.zxy, zoom or 0)
    names, unit_of = np.unique(units, axis=0, return_inverse=True)
    parts = 3 if holdout_percent else 2
    if len(names) < parts:
        zooms = np.unique(pairs.images.zxy[:, 0]).tolist()
        ways = [
            *([f"a higher zoom, at most {zooms[0]}"] if by == "block" and (zoom or 0) < zooms[0] else []),
            *(["by: tile"] if by != "tile" and len(zooms) == 1 else []),
            *(
                ["by: group (of the expressions' named groups)"]
                if by != "group" and len(pairs.group_values) > 1
                else []
            ),
        ]
        advice = f"try dataset.split: {', or '.join(ways)}, or add tiles" if ways else "add tiles"
        raise DataError(
            f"the {len(pairs)} pairs lie on {len(names)} {'ground tile' if by == 'tile' else by}(s), too few to split "
            f"into {parts} parts; {advice}"
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


def seeming_cause(images: np.ndarray, masks: np.ndarray) -> str:
    """Why tiles (N, 3) and (M, 3) have no place in common, where that shows."""
    if not np.isin(images[:, 0], masks[:, 0]).any():
        return f". The images are of zoom {_zooms(images)}, the masks of {_zooms(masks)}: tile both alike"
    turned = masks.copy()
    turned[:, 2] = (1 << masks[:, 0].astype(np.int64)) - 1 - masks[:, 2]
    places = _ranks(np.zeros(len(images) + len(masks), dtype=np.uint8), np.concatenate([images, turned]))
    if np.isin(places[: len(images)], places[len(images) :]).any():
        return ". One side's y seems to count from the south (TMS): rename its files, y to 2^z - 1 - y"
    return ""


def _zooms(zxy: np.ndarray) -> str:
    zooms, counts = np.unique(zxy[:, 0], return_counts=True)
    return ", ".join(f"{zoom} ({count} tiles)" for zoom, count in zip(zooms, counts, strict=True))


def _refuse_several_zooms(zxy: np.ndarray, by: str) -> None:
    """DataError where a tile of val might show ground that is trained on at another zoom."""
    zooms = np.unique(zxy[:, 0])
    if by != "block" and len(zooms) > 1:
        raise DataError(
            f"the pairs are of several zooms: {_zooms(zxy)}; by dataset.split.by = {by}, ground of val tiles would be "
            "trained on at another zoom. Take one zoom, by buckets and expressions that name no other, or set "
            f"dataset.split: {{by: block, zoom: {zooms[0]}}}, or a lower zoom, which keeps a block's tiles together"
        )


def refuse_crossings(pairs: Pairs, split: Split, source: str) -> None:
    """DataError where tiles that are not trained on cover ground of training tiles of another zoom, or lie in it."""
    zxy = pairs.images.zxy
    train, others = zxy[split.train], zxy[np.concatenate([split.val, split.holdout])]
    is_crossing = np.zeros(len(others), dtype=bool)
    for zoom in np.unique(zxy[:, 0])[:-1].tolist():
        coarse, fine, coarse_train, fine_train = (
            *(others[:, 0] == zoom, others[:, 0] > zoom),
            *(train[train[:, 0] == zoom], train[train[:, 0] > zoom]),
        )
        is_crossing[coarse] |= np.isin(_ground(others[coarse], zoom), _ground(fine_train, zoom))
        is_crossing[fine] |= np.isin(_ground(others[fine], zoom), _ground(coarse_train, zoom))
    if is_crossing.any():
        raise DataError(
            f"dataset.split.from: {source}: the pairs are of several zooms: {_zooms(zxy)}; {is_crossing.sum()} of the "
            f"{len(others)} tiles to evaluate or hold out cover ground of training tiles of another zoom, or lie in "
            "it. Take one zoom, by buckets and expressions that name no other, or the ids of a run that split by block"
        )


def _ground(zxy: np.ndarray, zoom: int) -> np.ndarray:
    """A number (N,) for the tile at `zoom` that contains each."""
    _, x, y = parents(zxy, zoom).astype(np.int64).T
    return x << 32 | y


def tile_id(root: str, tile: Tile) -> str:
    """The id used in train_ids.txt and test_ids.txt, as planet-snowcover wrote it."""
    return f"{root.replace('/', '_')}-{tile.x}-{tile.y}-{tile.z}"
