"""Remarks on training tiles before training starts: absent classes, doubtful files, zeros taken as missing.

Called by `setup`, `check`, `survey` and `report`. It reads some tiles, and their masks again only if a class is absent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from robosat_pink.config import ChannelConfig, Config
from robosat_pink.config.sections import LARGEST as MOST
from robosat_pink.container.some_names import some_names
from robosat_pink.datasets.image_kinds import NO_SCALE, ways_to_agree
from robosat_pink.datasets.normalisation import Moments, is_measured, with_statistics
from robosat_pink.datasets.pair_decoder import HIDDEN
from robosat_pink.datasets.pairs import TilePairs
from robosat_pink.datasets.pixel_sample import PixelSample, Sampling
from robosat_pink.datasets.rasters.decode import Raster
from robosat_pink.datasets.reader import Sample
from robosat_pink.datasets.tile_file import Changed
from robosat_pink.errors import DataError
from robosat_pink.losses import IGNORE

MOST_TILES = 64  # tiles to read
AT_ONCE = 8  # tiles
SHOWN = 4  # kinds of images in a remark
NO_TAGS = "scale 1, offset 0"
DECLARED = "the masks declare"


@dataclass(frozen=True)
class Coverage:
    """Counts over the tiles that were read."""

    rows: tuple[int, ...]  # rows of the pairs
    training_tiles: int  # number of training tiles, of which these are a sample
    pixels: np.ndarray  # (K,) int64 by class, K = 2 for a single class (background first)
    ignored: int  # ignored pixels
    zeros: int  # ignored pixels that are 0 in all bands of an image that declares no missing pixels
    kinds: Counter[str]  # number of tiles by `Notes.kind`
    kinds_at: dict[str, int]  # a row of each kind
    doubts: Counter[str]  # number of tiles by what may be wrong with them
    doubts_at: dict[str, int]  # a row of each doubt
    palettes: dict[str, dict[str, int]]  # for each index in the masks' palettes, its colors, with a row of each

    @property
    def everything(self) -> int:
        """The number of pixels of all tiles that were read."""
        return self.ignored + int(self.pixels.sum())


def chosen(rows: np.ndarray, most: int | None = None) -> list[int]:
    """Choose at most `most` of the rows, evenly spread; MOST_TILES unless given."""
    positions = np.unique(np.linspace(0, len(rows) - 1, min(most or MOST_TILES, len(rows))).round().astype(int))
    spread: list[int] = rows[positions].tolist()
    return spread


def read(tiles: TilePairs, rows: Sequence[int]) -> Iterator[Sample]:
    """Read whole tiles, AT_ONCE at a time. Raises the errors that training would raise for them."""
    for first in range(0, len(rows), AT_ONCE):
        yield from tiles.__getitems__(rows[first : first + AT_ONCE])


class Counting:
    """Counts a `Coverage`, tile by tile."""

    def __init__(self, num_classes: int) -> None:
        self._pixels = np.zeros(max(num_classes, 2), dtype=np.int64)
        self._ignored = self._zeros = 0
        self._kinds: Counter[str] = Counter()
        self._kinds_at: dict[str, int] = {}
        self._doubts: Counter[str] = Counter()
        self._doubts_at: dict[str, int] = {}
        self._palettes: dict[str, dict[str, int]] = {}
        self._rows: list[int] = []

    def add(self, sample: Sample) -> None:
        height, width = sample.size
        counts = np.bincount(sample.mask[:height, :width].ravel(), minlength=IGNORE + 1)
        self._pixels += counts[: len(self._pixels)]
        self._ignored += int(counts[IGNORE])
        self._zeros += sample.notes.zeros
        self._kinds[sample.notes.kind] += 1
        self._kinds_at.setdefault(sample.notes.kind, sample.row)
        for doubt in sample.notes.doubts.splitlines():
            self._doubts[doubt] += 1
            self._doubts_at.setdefault(doubt, sample.row)
        for entry in sample.notes.palette.split():
            index, color = entry.split(":")
            self._palettes.setdefault(index, {}).setdefault(color, sample.row)
        self._rows.append(sample.row)

    def finish(self, training_tiles: int) -> Coverage:
        return Coverage(
            rows=tuple(self._rows),
            training_tiles=training_tiles,
            pixels=self._pixels,
            ignored=self._ignored,
            zeros=self._zeros,
            kinds=self._kinds,
            kinds_at=self._kinds_at,
            doubts=self._doubts,
            doubts_at=self._doubts_at,
            palettes=self._palettes,
        )


class Look(NamedTuple):
    """Remarks on some of the training tiles, their statistics, and some of their pixels."""

    remarks: list[str]  # for log and report
    channels: tuple[ChannelConfig, ...]  # the experiment's, with the statistics of these tiles
    pixels: PixelSample  # for model.pixel_steps


def look(config: Config, tiles: TilePairs, rows: np.ndarray) -> Look:
    """Read some of the training tiles. Raises DataError if statistics must be measured, but cannot be.

    There are no remarks if a tile has changed since it was listed: the run reads that tile later, and handles it then.
    Only if statistics must be measured or pixels sampled, Changed is raised.
    """
    counting, moments = Counting(config.num_classes), Moments(config.num_channels)
    sampling = Sampling(config.num_channels)
    must_measure = is_measured(config.channels) or bool(config.model.pixel_steps)
    try:
        for sample in read(tiles, chosen(rows)):
            counting.add(sample)
            if must_measure:
                values = scaled_values(sample)
                moments.add(values)
                sampling.add(values, sample.mask[sample.mask != IGNORE])
        tile_remarks = list(remarks(config, tiles, counting.finish(len(rows))))
    except Changed:
        if must_measure:
            raise
        tile_remarks = []
    channels = measured_channels(config.channels, moments.count, moments.mean, moments.std)
    return Look(tile_remarks, channels, sampling.finish())


def measured_channels(
    channels: Sequence[ChannelConfig], pixels: int, mean: np.ndarray, std: np.ndarray
) -> tuple[ChannelConfig, ...]:
    """The experiment's channels with the statistics (C,) of so many valid pixels, if these had to be measured.

    Raises DataError if there are no such pixels, or if a statistic is beyond what the keys accept.
    """
    if not is_measured(channels):
        return tuple(channels)
    if not pixels:
        raise DataError(
            "channels[].mean: auto: no pixel of the training tiles read has both image and mask data; set mean and std"
        )
    measured = with_statistics(channels, mean, std)
    for number, channel in enumerate(measured):
        for name, values in (("mean", channel.mean), ("std", channel.std)):
            beyond = [value for value in values or () if not abs(float(value)) <= MOST]
            if beyond:
                raise DataError(
                    f"channels.{number}.{name}: auto: {beyond[0]:g} was measured in the training tiles; accepted: up "
                    f"to {MOST:,}; declare the images' nodata, or set mean and std"
                )
    return measured


def scaled_values(sample: Sample) -> np.ndarray:
    """The sample's valid pixels divided by their scale, (C, N) float64."""
    values: np.ndarray = sample.image[:, sample.mask != IGNORE] / sample.scale[:, None].astype(np.float64)
    return values


def remarks(config: Config, tiles: TilePairs, coverage: Coverage) -> Iterator[str]:
    """Remarks on the tiles. A remark on something that is likely wrong begins with "warning: "."""
    absent = list(_absent_classes(config, tiles, coverage))
    yield from absent
    for doubt, count in coverage.doubts.items():
        if doubt == HIDDEN and any(DECLARED in remark for remark in absent):
            continue  # the remark on the absent class says so
        yield f"warning: in {count} of {_tiles(coverage)}, such as {tiles.id(coverage.doubts_at[doubt])}: {doubt}"
    yield from _palette_remark(tiles, coverage)
    if coverage.zeros:
        yield (
            f"{coverage.zeros / coverage.everything:.2%} of the pixels read count as missing: they are 0 in all bands "
            f"of an image that declares no nodata. dataset.missing = {config.dataset.missing} says so; 'declared' "
            "counts only what files declare"
        )
    yield from _kind_remark(coverage)
    tiles.kinds.add_reported(coverage.kinds_at)


def _palette_remark(tiles: TilePairs, coverage: Coverage) -> Iterator[str]:
    for index, colors in coverage.palettes.items():
        if len(colors) > 1:
            (color, row), (other_color, other_row) = list(colors.items())[:2]
            yield (
                f"warning: the masks' palettes differ: {index} is #{color} in {tiles.id(row)}, #{other_color} in "
                f"{tiles.id(other_row)}. Classes are taken by index: write all masks with one palette, or class "
                "numbers without any"
            )
            return


def _kind_remark(coverage: Coverage) -> Iterator[str]:
    kinds = coverage.kinds.most_common()
    if len(kinds) > 1:
        counts = some_names([f'{count} have "{kind}"' for kind, count in kinds], SHOWN, separator="; ")
        yield f"warning: the images differ: of {_tiles(coverage)}, {counts}. {ways_to_agree(list(coverage.kinds))}"
    elif kinds[0][0].endswith(NO_SCALE):
        yield (
            f"warning: channels[].scale: tags, but none of {_tiles(coverage)} has a scale or offset: their numbers are "
            "used as they are. Set a number, or auto, which divides by 255 or 10000 where the type says so"
        )
    elif "offset" in kinds[0][0] and not kinds[0][0].endswith(NO_TAGS):
        yield f"the images have {kinds[0][0]}; channels[].scale: tags applies the files' own scale and offset"


def is_about_class(remark: str, class_name: str) -> bool:
    """Whether a remark of `_absent_classes` is about this class. Called by the report, after all tiles were read."""
    return f" is {class_name} (mask value" in remark


def _absent_classes(config: Config, tiles: TilePairs, coverage: Coverage) -> Iterator[str]:
    names = [named.name for named in config.classes]
    values = list(tiles.reader.decoder.values)
    if len(names) == 1:
        names, values = ["background", *names], [(0,), *values]
    absent = np.flatnonzero(coverage.pixels == 0).tolist()
    if not absent:
        return
    hidden = [_Hidden() for _ in absent]
    for mask in tiles.reader.read_masks([tiles.request(row) for row in coverage.rows]):
        for number, hidden_pixels in zip(absent, hidden, strict=True):
            hidden_pixels.add(mask, values[number])
    for number, hidden_pixels in zip(absent, hidden, strict=True):
        value = ", ".join(map(str, values[number]))
        why = hidden_pixels.words(coverage)
        yield f"warning: no pixel of {_tiles(coverage)} is {names[number]} (mask value {value}): {why}"


class _Hidden:
    """Counts the pixels of an absent class that are in the mask files but ignored, by the reason."""

    def __init__(self) -> None:
        self.nodata_pixels = self.without_image = 0

    def add(self, mask: Raster, values: Sequence[int]) -> None:
        has_value = np.isin(mask.values[0], values)
        self.nodata_pixels += int((has_value & mask.missing).sum())
        self.without_image += int((has_value & ~mask.missing).sum())

    def words(self, coverage: Coverage) -> str:
        if self.nodata_pixels:
            return (
                f"{DECLARED} {self.nodata_pixels} pixels of that value as nodata, and so nothing is learnt of them. "
                "If they are labels, write the masks without that declaration: gdal_edit.py -unsetnodata FILE removes "
                "the tag of a GeoTIFF; a PNG is to be written without transparency"
            )
        if self.without_image:
            return f"all {self.without_image} pixels of that value lie where the images have no data"
        if coverage.training_tiles > len(coverage.rows):
            return "their masks do not have that value; if no mask has it, check classes[].values"
        return "the masks do not have that value; check classes[].values"


def _tiles(coverage: Coverage) -> str:
    if coverage.training_tiles == len(coverage.rows):
        return f"the {coverage.training_tiles} training tiles"
    return f"the {len(coverage.rows)} training tiles read (of {coverage.training_tiles})"
