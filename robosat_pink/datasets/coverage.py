"""What a training should know of its tiles before it learns from them: classes without a pixel, and what was assumed.

Called by `train` and `check`, at their start. It reads some tiles, and further masks only where a class is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from robosat_pink.config import Config
from robosat_pink.container.some_names import some_names
from robosat_pink.datasets.image_kinds import NO_SCALE, ways_to_agree
from robosat_pink.datasets.pair_decoder import HIDDEN
from robosat_pink.datasets.pairs import TilePairs
from robosat_pink.datasets.rasters.decode import Raster
from robosat_pink.datasets.reader import Sample
from robosat_pink.datasets.tile_file import Changed
from robosat_pink.losses import IGNORE

MOST_TILES = 64  # read
AT_ONCE = 8
SHOWN = 4  # kinds of tiles
NO_TAGS = "scale 1, offset 0"
DECLARED = "the masks declare"


@dataclass(frozen=True)
class Coverage:
    """What the tiles read hold."""

    rows: tuple[int, ...]  # of the pairs
    of: int  # tiles that they stand for
    pixels: np.ndarray  # (K,) int64 by class, K = 2 for a single class (background first)
    ignored: int  # pixels that count nowhere
    zeros: int  # of these, those that are 0 in all bands of an image that declares nothing
    kinds: Counter[str]  # tiles by what they say of their bands
    kinds_at: dict[str, int]  # a row of each kind
    doubts: Counter[str]  # tiles by what may be wrong with them
    doubts_at: dict[str, int]  # a row of each
    palettes: dict[str, dict[str, int]]  # a row for each color of each index of the masks

    @property
    def everything(self) -> int:
        """Pixels of all tiles read."""
        return self.ignored + int(self.pixels.sum())


def chosen(rows: np.ndarray) -> list[int]:
    """At most MOST_TILES of the rows, evenly spread."""
    places = np.unique(np.linspace(0, len(rows) - 1, min(MOST_TILES, len(rows))).round().astype(int))
    some: list[int] = rows[places].tolist()
    return some


def read(tiles: TilePairs, rows: Sequence[int]) -> Iterator[Sample]:
    """Whole tiles, some at a time; raises what a training would raise at them."""
    for first in range(0, len(rows), AT_ONCE):
        yield from tiles.__getitems__(rows[first : first + AT_ONCE])


class Counting:
    """A coverage that is being counted."""

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

    def finish(self, of: int) -> Coverage:
        return Coverage(
            *(tuple(self._rows), of, self._pixels, self._ignored, self._zeros, self._kinds, self._kinds_at),
            *(self._doubts, self._doubts_at, self._palettes),
        )


def look(config: Config, tiles: TilePairs, rows: np.ndarray) -> list[str]:
    """Read some of the tiles to train on: what a person should know of them, for log and report.

    Nothing where a tile has changed since it was listed: what follows then, the run decides when it comes to it.
    """
    counting = Counting(config.num_classes)
    try:
        for sample in read(tiles, chosen(rows)):
            counting.add(sample)
        return list(remarks(config, tiles, counting.finish(len(rows))))
    except Changed:
        return []


def remarks(config: Config, tiles: TilePairs, found: Coverage) -> Iterator[str]:
    """Sentences; those that tell of something that is likely wrong begin with "warning: "."""
    absent = list(_absent_classes(config, tiles, found))
    yield from absent
    for doubt, count in found.doubts.items():
        if doubt == HIDDEN and any(DECLARED in remark for remark in absent):
            continue  # has been said
        yield f"warning: in {count} of {_tiles(found)}, such as {tiles.id(found.doubts_at[doubt])}: {doubt}"
    for index, colors in found.palettes.items():
        if len(colors) > 1:
            (one, first), (other, second) = list(colors.items())[:2]
            yield (
                f"warning: the masks' palettes differ: {index} is #{one} in {tiles.id(first)}, #{other} in "
                f"{tiles.id(second)}. Classes are taken by index: write all masks with one palette, or class numbers "
                "without any"
            )
            break
    if found.zeros:
        yield (
            f"{found.zeros / found.everything:.2%} of all pixels count as missing: they are 0 in all bands of an image "
            f"that declares no nodata. So dataset.missing = {config.dataset.missing} has it; with declared, only what "
            "files declare counts as missing"
        )
    kinds = found.kinds.most_common()
    if len(kinds) > 1:
        counts = some_names([f'{count} have "{kind}"' for kind, count in kinds], SHOWN, separator="; ")
        yield f"warning: the images differ: of {_tiles(found)}, {counts}. {ways_to_agree(list(found.kinds))}"
    elif kinds[0][0].endswith(NO_SCALE):
        yield (
            f"warning: channels[].scale: tags, but none of {_tiles(found)} has a scale or offset: their numbers are "
            "used as they are. Set a number, or auto, which divides by 255 or 10000 where the type says so"
        )
    elif "offset" in kinds[0][0] and not kinds[0][0].endswith(NO_TAGS):
        yield f"the images have {kinds[0][0]}; channels[].scale: tags applies the files' own scale and offset"
    tiles.kinds.learn(found.kinds_at)


def _absent_classes(config: Config, tiles: TilePairs, found: Coverage) -> Iterator[str]:
    names = [each.name for each in config.classes]
    values = list(tiles.reader.decoder.values)
    if len(names) == 1:
        names, values = ["background", *names], [(0,), *values]
    absent = np.flatnonzero(found.pixels == 0).tolist()
    if not absent:
        return
    hidden = [_Hidden() for _ in absent]
    for mask in tiles.reader.read_masks([tiles.request(row) for row in found.rows]):
        for number, each in zip(absent, hidden, strict=True):
            each.add(mask, values[number])
    for number, each in zip(absent, hidden, strict=True):
        value = ", ".join(map(str, values[number]))
        yield f"warning: no pixel of {_tiles(found)} is {names[number]} (mask value {value}): {each.words(found)}"


class _Hidden:
    """Pixels of masks that have the values of a class which nothing is learnt of."""

    def __init__(self) -> None:
        self.declared = self.without_image = 0

    def add(self, mask: Raster, values: Sequence[int]) -> None:
        is_there = np.isin(mask.values[0], values)
        self.declared += int((is_there & mask.missing).sum())
        self.without_image += int((is_there & ~mask.missing).sum())

    def words(self, found: Coverage) -> str:
        if self.declared:
            return (
                f"{DECLARED} {self.declared} pixels of that value as nodata, and so nothing is learnt of them. "
                "If they are labels, write the masks without that declaration: gdal_edit.py -unsetnodata FILE removes "
                "the tag of a GeoTIFF; a PNG is to be written without transparency"
            )
        if self.without_image:
            return f"all {self.without_image} pixels of that value lie where the images have no data"
        if found.of > len(found.rows):
            return "their masks do not have that value; if no mask has it, check classes[].values"
        return "the masks do not have that value; check classes[].values"


def _tiles(found: Coverage) -> str:
    if found.of == len(found.rows):
        return f"the {found.of} training tiles"
    return f"{len(found.rows)} of {found.of} training tiles"
