"""Pairs each image with the mask of the same tile and named-group values. Called by `pairs` and `images`; no I/O."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from robosat_pink.datasets.tiles import TileFiles, compact_range, zooms_in_words
from robosat_pink.errors import DataError


@dataclass(frozen=True)
class Pairs:
    """Row i of `images` and `masks` shows one tile; `group_values[group[i]]` is what the named groups matched."""

    images: TileFiles
    masks: TileFiles
    group: np.ndarray  # (N,) index into group_values, of the smallest unsigned dtype
    group_values: tuple[Hashable, ...]
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
    """Join images and masks on the tile and on the named groups that both directory expressions share.

    `image_groups` and `mask_groups` have one value per directory. Raises DataError if an image has two masks, or if a
    directory has two files of one tile: choosing either could be wrong.
    """
    refuse_duplicates(images, "images")
    refuse_duplicates(masks, "masks")
    numbers: dict[Hashable, int] = {}
    for value in (*image_groups, *mask_groups):
        numbers.setdefault(value, len(numbers))
    group_numbers = compact_range(len(numbers))
    image_group = group_numbers[[numbers[value] for value in image_groups]][images.directory]
    mask_group = group_numbers[[numbers[value] for value in mask_groups]][masks.directory]
    keys = _keys(np.concatenate([image_group, mask_group]), np.concatenate([images.zxy, masks.zxy]))
    image_keys, mask_keys = keys[: len(images)], keys[len(images) :]

    mask_row = np.full(len(keys), -1, dtype=np.int32)  # by key
    mask_row[mask_keys[::-1]] = np.arange(len(masks))[::-1]  # the first of several masks with one key
    _refuse_second_masks(images, masks, image_keys, mask_keys, mask_row)
    rows = np.flatnonzero(mask_row[image_keys] >= 0)
    paired_images = images.take(rows)
    paired_masks = masks.take(mask_row[image_keys[rows]])
    return Pairs(
        images=paired_images,
        masks=dataclasses.replace(paired_masks, zxy=paired_images.zxy),  # the masks' own are equal; this saves memory
        group=image_group[rows],
        group_values=tuple(numbers),
        unpaired_images=len(images) - len(rows),
        unpaired_masks=int((~np.isin(mask_keys, image_keys)).sum()),
    )


def _keys(group: np.ndarray, zxy: np.ndarray) -> np.ndarray:
    """Keys (N,) that are equal for equal (group, z, x, y). Sorts integers, not rows."""
    _, lower = np.unique(zxy[:, 1].astype(np.int64) << 32 | zxy[:, 2], return_inverse=True)
    _, upper = np.unique(group.astype(np.int64) << 32 | zxy[:, 0], return_inverse=True)
    _, keys = np.unique(upper * len(group) + lower, return_inverse=True)
    return keys.astype(np.int32)


def _refuse_second_masks(
    images: TileFiles, masks: TileFiles, image_keys: np.ndarray, mask_keys: np.ndarray, mask_row: np.ndarray
) -> None:
    """Raises DataError if an image has a second mask, besides the one in `mask_row`."""
    second = np.flatnonzero(mask_row[mask_keys] != np.arange(len(masks)))
    second = second[np.isin(mask_keys[second], image_keys)]
    if len(second):
        key = mask_keys[second[0]]
        image = images.path(int(np.flatnonzero(image_keys == key)[0]))
        raise DataError(
            f"two masks for the image {image}: {masks.path(int(mask_row[key]))} and {masks.path(int(second[0]))} "
            f"(second masks in all: {len(second)}); narrow mask_directory_regex, or tell the masks apart by a named "
            r"group in both expressions, such as (?P<day>\d{8}), which must then match the same text in the image's "
            "directory and the mask's"
        )


def refuse_duplicates(files: TileFiles, kind: str) -> None:
    """Raises DataError if a directory has two files of one tile. `kind` names the files in its text."""
    keys = np.column_stack([files.directory, files.zxy])
    if len(keys) < 2:
        return
    same = np.flatnonzero((keys[1:] == keys[:-1]).all(axis=1))  # rows are sorted by directory and tile
    if len(same):
        row = int(same[0])
        raise DataError(f"two {kind} of one tile: {files.path(row)} and {files.path(row + 1)}; remove one of them")


def seeming_cause(images: np.ndarray, masks: np.ndarray) -> str:
    """The likely cause if images (N, 3) and masks (M, 3) share no tile, to append to an error; empty if unknown."""
    if not np.isin(images[:, 0], masks[:, 0]).any():
        return f". The images are of zoom {zooms_in_words(images)}, the masks of {zooms_in_words(masks)}: use one zoom"
    from_south = masks.copy()
    from_south[:, 2] = (1 << masks[:, 0].astype(np.int64)) - 1 - masks[:, 2]
    keys = _keys(np.zeros(len(images) + len(masks), dtype=np.uint8), np.concatenate([images, from_south]))
    if np.isin(keys[: len(images)], keys[len(images) :]).any():
        return ". One side's y seems to count from the south (TMS): rename its files, y to 2^z - 1 - y"
    return ""
