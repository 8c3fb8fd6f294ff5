"""Decodes the two files of a tile pair into image and mask, as the experiment's channels and classes define them.

Called by `reader`. A mask pixel becomes its class number; or 255, ignore, if image or mask is missing there or its
value is in `dataset.ignore_values`. Any other value is an error. `images` has images decoded without masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from robosat_pink.config import ChannelConfig, ClassConfig, class_values
from robosat_pink.container.some_names import some_names
from robosat_pink.datasets.image_kinds import NO_SCALE
from robosat_pink.datasets.rasters import band_tags, decode, gdal_bands, georeference
from robosat_pink.datasets.rasters.decode import Raster
from robosat_pink.datasets.rasters.selected_bands import Missing
from robosat_pink.errors import DataError
from robosat_pink.losses import IGNORE

HIDDEN = (
    "the mask declares the value of a class as nodata, and so nothing is learnt of those pixels. If they are labels, "
    "write it without that declaration (gdal_edit.py -unsetnodata FILE)"
)
BESIDE = "the georeferences of image and mask differ a little, but both are read as if they covered the same ground"
FROM_THE_SOUTH = (
    "the georeference of one of image and mask fits its name only if y is counted from the south (TMS), and the other "
    "has no georeference. Check that y is counted alike in both names"
)
NAMED_FROM_THE_SOUTH = (
    "the image's georeference fits its name only if y is counted from the south (TMS), and so it is mapped to other "
    "ground. Rename the files, y to 2^z - 1 - y"
)
FEW = 5  # values shown in an error; more different values are unlikely to be classes
# If the largest class value is above SPREAD, a value within NEAR of a class is likely from a lossy format.
NEAR, SPREAD = 3, 50
Bytes = bytes | memoryview
NO_FILES: Mapping[str, Bytes] = {}


class Notes(NamedTuple):
    """The metadata of a decoded pair. The cache stores them with its pixels."""

    dtype: str  # dtype of the image file
    kind: str  # the image file's band metadata, in which all images of a run should agree
    zeros: int  # pixels that count as missing because they are 0 in all bands
    doubts: str = ""  # what may be wrong with the pair, one sentence per line
    palette: str = ""  # the mask's `Raster.palette`


class Decoded(NamedTuple):
    image: np.ndarray  # (C, H, W) in the file's own dtype, 0 where missing; float32 if its own scale is applied
    mask: np.ndarray  # (H, W) uint8 class numbers, 255 = ignore
    notes: Notes


@dataclass
class PairDecoder:
    channels: tuple[ChannelConfig, ...]
    classes: tuple[ClassConfig, ...]
    missing: Missing = "auto"
    ignored: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.bands = [band for channel in self.channels for band in channel.bands]
        self.values = class_values(self.classes)
        self._applies_tags = any(channel.scale == "tags" for channel in self.channels)
        table = self._look_up(np.arange(1 << 8))  # class by mask value, for 8-bit masks
        self._table = table.tobytes()
        # Values 0 to this one equal their class number.
        self._same_up_to = int((table == np.arange(1 << 8)).argmin()) - 1

    @property
    def settings(self) -> list[object]:
        """Everything that determines how a pair is decoded, as JSON values: part of the cache key."""
        values = [list(values) for values in self.values]
        return [self.bands, self._applies_tags, values, len(self.classes), self.missing, list(self.ignored)]

    def decode(
        self,
        image_file: Bytes,
        mask_file: Bytes,
        image_name: str,
        mask_name: str,
        beside_image: Mapping[str, Bytes] = NO_FILES,
        beside_mask: Mapping[str, Bytes] = NO_FILES,
    ) -> Decoded:
        """Decode a pair from the bytes of its two files and of their sidecar files, by suffix. Raises DataError."""
        image = decode.read_image(image_file, self.bands, image_name, self.missing, beside_image)
        mask = decode.read_mask(mask_file, mask_name, beside_mask)
        if image.missing.shape != mask.missing.shape:
            raise DataError(
                f"{mask_name}: {mask.missing.shape[1]} x {mask.missing.shape[0]} pixels, but its image {image_name} "
                f"has {image.missing.shape[1]} x {image.missing.shape[0]}"
            )
        if image.georeference and mask.georeference:
            if image.georeference.crs != mask.georeference.crs:
                image = image._replace(georeference=_interpreted(image, image_file, image_name))
                mask = mask._replace(georeference=_interpreted(mask, mask_file, mask_name))
            image, mask = _facing_alike(image, mask, image_name, mask_name)
        labels = self._classes_of(mask.values[0], mask.missing, mask_name)
        labels[image.missing] = IGNORE
        doubts = "\n".join(self._doubts(image, mask, image_name))
        notes = Notes(image.values.dtype.name, self._kind(image), image.zeros, doubts, mask.palette)
        return Decoded(self._scaled(image), labels, notes)

    def decode_image(self, image_file: Bytes, name: str, beside_image: Mapping[str, Bytes] = NO_FILES) -> Decoded:
        """Decode an image without a mask, which is 0, and IGNORE where the image is missing. Raises DataError.

        An image with south up, as its georeference says, is flipped.
        """
        image = decode.read_image(image_file, self.bands, name, self.missing, beside_image)
        height, width = image.missing.shape
        doubts = ""
        if image.georeference and georeference.is_from_the_south(image.georeference, height, width, name):
            doubts = NAMED_FROM_THE_SOUTH
        if image.georeference and image.georeference.is_south_up:
            image = image.turned()
        labels = np.where(image.missing, IGNORE, 0).astype(np.uint8)
        notes = Notes(image.values.dtype.name, self._kind(image), image.zeros, doubts)
        return Decoded(self._scaled(image), labels, notes)

    def _doubts(self, image: Raster, mask: Raster, name: str) -> Iterator[str]:
        if mask.is_nodata is not None and (self._look_up(mask.values[0][mask.is_nodata]) != IGNORE).any():
            yield HIDDEN
        georeferences = [raster.georeference for raster in (image, mask) if raster.georeference]
        height, width = mask.missing.shape
        if len(georeferences) == 2 and georeference.is_beside(georeferences[0], georeferences[1], height, width):
            yield BESIDE
        if len(georeferences) == 1 and georeference.is_from_the_south(georeferences[0], height, width, name):
            yield FROM_THE_SOUTH

    def _kind(self, image: Raster) -> str:
        """The file's band metadata, except those that may differ because the experiment reads them from each file."""
        are_named = all(isinstance(band, str) for band in self.bands)
        nodata = f"nodata {image.nodata}" if image.nodata else ""
        order = "" if are_named else image.tags.odd_order
        tags = band_tags.in_words(image.tags, not are_named, not self._applies_tags)
        words = "; ".join(filter(None, [nodata, order, tags]))
        if not self._applies_tags:
            return words
        has_scale = any(scale != 1 for scale in image.tags.scales) or any(image.tags.offsets)
        return "; ".join(filter(None, [words, "a scale of its own" if has_scale else NO_SCALE]))

    def _scaled(self, image: Raster) -> np.ndarray:
        """The values; if the experiment says `tags`, in float32 with the file's own scale and offset applied."""
        if not self._applies_tags:
            return image.values
        values = image.values.astype(np.float32)
        for row, band in enumerate(image.bands):
            if band <= len(image.tags.scales):  # a palette's one band has up to four colors
                values[row] = values[row] * np.float32(image.tags.scales[band - 1]) + np.float32(
                    image.tags.offsets[band - 1]
                )
        values[:, image.missing] = 0
        return values

    def _classes_of(self, values: np.ndarray, missing: np.ndarray, name: str) -> np.ndarray:
        """Class numbers (H, W) uint8 from mask values. Raises DataError for a value that is in no list."""
        if values.dtype == np.uint8 and values.max(initial=0) <= self._same_up_to:
            mask = values.copy()
            mask[missing] = IGNORE
            return mask
        if values.dtype == np.uint8:
            looked_up = bytearray(np.ascontiguousarray(values)).translate(self._table)  # 5 times faster than by indices
            mask = np.frombuffer(looked_up, dtype=np.uint8).reshape(values.shape)
        else:
            mask = self._look_up(values)
        is_unlisted = (mask == IGNORE) & ~missing  # so far, IGNORE means that no class lists the value
        if is_unlisted.any():
            unlisted = values[is_unlisted]
            self._refuse_unlisted(unlisted[~np.isin(unlisted, self.ignored)], name)
        mask[missing] = IGNORE
        return mask

    def _refuse_unlisted(self, unlisted: np.ndarray, name: str) -> None:
        if not len(unlisted):
            return
        accepted = sorted(value for listed in self.values for value in listed)
        background = "0 (background), " if len(self.classes) == 1 else ""
        ignored = f", and to be ignored {', '.join(map(str, self.ignored))}" if self.ignored else ""
        values = np.unique(unlisted)
        shown = some_names(list(map(str, values.tolist())), FEW)
        raise DataError(
            f"{name}: mask value {shown} in {len(unlisted)} pixel(s); accepted: {background}"
            f"{', '.join(map(str, accepted))}{ignored}; {self._way_out(values, [0, *accepted])}"
        )

    @staticmethod
    def _way_out(values: np.ndarray, accepted: Sequence[int]) -> str:
        if (values != np.floor(values)).any():
            return "a class number is whole: where these are shares, write new masks, with a number for each class"
        if len(values) > FEW or (max(accepted) > SPREAD and np.abs(values[:, None] - accepted).min() <= NEAR):
            return (
                "where the masks were once in a lossy format, or resampled, write them again from their source "
                "(resampled by nearest); otherwise add them to classes[].values, or to dataset.ignore_values where "
                "they stand for no class"
            )
        return "add it to classes[].values, or to dataset.ignore_values if it stands for no class"

    def _look_up(self, values: np.ndarray) -> np.ndarray:
        """Class numbers, uint8 in the shape of `values`; IGNORE for a value that no class lists."""
        numbers = np.full(values.shape, IGNORE, dtype=np.uint8)
        if len(self.classes) == 1:
            numbers[values == 0] = 0
        first = 1 if len(self.classes) == 1 else 0
        for number, listed in enumerate(self.values, start=first):
            numbers[np.isin(values, listed)] = number
        return numbers


def _interpreted(raster: Raster, data: Bytes, name: str) -> georeference.Georeference | None:
    """The raster's georeference, with a coordinate system that can be compared."""
    is_plain = raster.georeference is None or not isinstance(raster.georeference.crs, bytes)
    return raster.georeference if is_plain else gdal_bands.georeference_of(data, name)


def _facing_alike(image: Raster, mask: Raster, image_name: str, mask_name: str) -> tuple[Raster, Raster]:
    """Both rasters, flipped to north up if both have south up. Raises DataError if they cover different ground.

    If one of them has no georeference, neither is flipped.
    """
    if not image.georeference or not mask.georeference:
        return image, mask
    if reason := georeference.disagreement(image.georeference, mask.georeference, *mask.missing.shape):
        raise DataError(f"{mask_name}: {reason}. Its image: {image_name}")
    if not (image.georeference.is_south_up and mask.georeference.is_south_up):
        return image, mask
    return image.turned(), mask.turned()
