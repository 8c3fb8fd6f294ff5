"""Reads some tiles, evenly spread, and keeps what a draft asks of them. Called by `sides` and `draft`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from robosat_pink.datasets import tile_file
from robosat_pink.datasets.rasters import decode
from robosat_pink.datasets.rasters.band_tags import BandTags
from robosat_pink.datasets.rasters.gdal import Damaged
from robosat_pink.datasets.rasters.gdal_bands import tags_of
from robosat_pink.datasets.rasters.selected_bands import all_zero
from robosat_pink.datasets.scans import side_by_side
from robosat_pink.datasets.tile_file import Entry, TileFile
from robosat_pink.datasets.tiles import TileFiles
from robosat_pink.errors import DataError
from robosat_pink.storage import Location

T = TypeVar("T")
THREADS = 8
MOST_VALUES = 32  # more different values are hardly classes
MOST_PIXELS = 4096  # of an image
MOST_BETWEEN = 0.05  # share of the pixels that transparency leaves between 0 and the highest value


class Kind(NamedTuple):
    """What a file may be, by its content."""

    bands: int
    dtype: str
    may_be_mask: bool  # one band of few whole numbers, in a lossless format

    def __str__(self) -> str:
        values = f", at most {MOST_VALUES} different values" if self.may_be_mask else ""
        return f"{self.bands} band{'s' if self.bands > 1 else ''} of {self.dtype}{values}"


class ImageLook(NamedTuple):
    name: str
    dtype: str
    bands: tuple[int, ...]  # those with data, from 1
    alphas: tuple[int, ...]  # those tagged as alpha
    alpha_values: tuple[
        float, ...
    ]  # some that are neither 0 nor the highest, if many are, so that the band may be data
    tags: BandTags
    nodata: str  # in words
    size: tuple[int, int]  # (H, W)
    pixels: np.ndarray  # (C, N) some valid ones
    zero_share: float  # of all pixels, valid and 0 in all bands
    zeros: int  # pixels that count as missing by `dataset.missing: auto`


class MaskLook(NamedTuple):
    name: str
    dtype: str
    values: dict[float, int]  # pixels by value, where the file declares data
    nodata: str  # values that the file declares as nodata, in words
    hidden: int  # pixels of these values
    palette: dict[int, str]  # #rrggbb by value
    description: str  # of its band
    class_names: dict[int, str]  # by value


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the positions below `count`, evenly spread."""
    positions: list[int] = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()
    return positions


def read(
    location: Location,
    files: TileFiles,
    rows: Sequence[int],
    look: Callable[[TileFile, str], T],
    threads: int = THREADS,
) -> list[T]:
    """What `look` sees in the files of these rows."""

    def read_one(row: int) -> T:
        entry = Entry(
            files.path(row),
            *(int(column[row]) for column in (files.version, files.size, files.modified, files.sidecars)),
        )
        return look(tile_file.read(location, entry, is_listed_here=True), f"{location}/{entry.path}")

    return side_by_side(read_one, rows, threads)


def kind_of(file: TileFile, name: str) -> Kind:
    """Raises Damaged if the file cannot be read."""
    try:
        mask = decode.read_mask(file.content, name, file.sidecars)
    except Damaged:
        raise
    except DataError:  # several bands, or lossy
        image = decode.read_image(file.content, [1], name, "declared", file.sidecars)
        return Kind(len(image.tags.names), image.values.dtype.name, may_be_mask=False)
    values = np.unique(mask.values[0][~mask.missing])
    is_whole = bool((values == np.floor(values)).all())
    return Kind(1, mask.values.dtype.name, is_whole and len(values) <= MOST_VALUES)


def look_at_images(location: Location, files: TileFiles, rows: Sequence[int]) -> list[ImageLook]:
    """Read the images of these rows. If an alpha band holds data in one of them, it is data in all."""
    looks = read(location, files, rows, look_at_image)
    if len({look.bands for look in looks}) > 1 and any(look.alpha_values for look in looks):
        return read(location, files, rows, functools.partial(look_at_image, is_alpha_data=True))
    return looks


def look_at_image(file: TileFile, name: str, is_alpha_data: bool = False) -> ImageLook:
    """Raises DataError if the file cannot be read."""
    first = decode.read_image(file.content, [1], name, "declared", file.sidecars)
    tags = first.tags
    alphas = [number for number, color in enumerate(tags.colors, 1) if color == "alpha"]
    between = _between(file, name, alphas) if alphas else np.zeros(0)
    if "palette" in tags.colors:
        bands = [1, 2, 3]
    else:
        left_out = [] if is_alpha_data or len(between) else alphas
        bands = [number for number in range(1, len(tags.names) + 1) if number not in left_out]
    image = decode.read_image(file.content, bands or [1], name, "auto", file.sidecars)
    valid = image.values[:, ~image.missing]
    return ImageLook(
        name=name,
        dtype=image.values.dtype.name,
        bands=tuple(bands or [1]),
        alphas=tuple(alphas),
        alpha_values=tuple(between[:3].tolist()),
        tags=tags,
        nodata=image.nodata,
        size=(image.missing.shape[0], image.missing.shape[1]),
        pixels=valid[:, :: max(1, valid.shape[1] // MOST_PIXELS)].astype(np.float64),
        zero_share=float((all_zero(image.values) & ~image.missing).mean()) if image.values.size else 0.0,
        zeros=image.zeros,
    )


def _between(file: TileFile, name: str, alphas: list[int]) -> np.ndarray:
    """The values of alpha bands that are neither 0 nor the highest; none if these few are an edge, or lossy."""
    alpha = decode.read_image(file.content, alphas, name, "declared", file.sidecars).values
    highest = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
    is_between = (alpha != 0) & (alpha != 255) & (alpha != highest)
    return np.unique(alpha[is_between]) if is_between.mean() > MOST_BETWEEN else np.zeros(0)


def look_at_mask(file: TileFile, name: str) -> MaskLook:
    """Raises DataError if the file cannot be read, has several bands or a lossy format."""
    mask = decode.read_mask(file.content, name, file.sidecars)
    values, counts = np.unique(mask.values[0][~mask.missing], return_counts=True)
    entries = (entry.split(":") for entry in mask.palette.split())
    tags = tags_of(file.content, name)
    numbered = {key.removeprefix("CLASS_"): text for key, text in tags.items() if key.startswith("CLASS_")}
    return MaskLook(
        name=name,
        dtype=mask.values.dtype.name,
        values=dict(zip(values.tolist(), counts.tolist(), strict=True)),
        nodata=mask.nodata,
        hidden=0 if mask.is_nodata is None else int(mask.is_nodata.sum()),
        palette={int(index): f"#{color}" for index, color in entries},
        description=mask.tags.names[0] if mask.tags.names else "",
        class_names={int(number): text for number, text in numbered.items() if number.isdecimal()},
    )
