"""Decodes the bytes of a tile file to an array and its missing pixels. No network, no file system.

Called by `pair_decoder` and `reader`. It passes plain GeoTIFFs to `geotiff`, all other files to `gdal_bands`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from robosat_pink.datasets.rasters import gdal_bands, geotiff, palettes
from robosat_pink.datasets.rasters.band_tags import BandTags
from robosat_pink.datasets.rasters.gdal import MAX_BYTES, MAX_PIXELS
from robosat_pink.datasets.rasters.georeference import Georeference
from robosat_pink.datasets.rasters.geotiff import Plain
from robosat_pink.datasets.rasters.selected_bands import (
    Missing,
    SelectedBands,
    all_zero,
    band_numbers,
    check_one_band,
    counts_zero_as_missing,
    nodata_in_words,
    nonfinite,
)
from robosat_pink.datasets.rasters.sidecars import Sidecars


class Raster(NamedTuple):
    """The content of a tile file. Rows are in file order."""

    values: np.ndarray  # (C, H, W) in the file's own dtype; 0 where an image is missing
    missing: np.ndarray  # (H, W) bool: no data
    zeros: int  # pixels that count as missing because they are 0 in all bands of a file that declares nothing missing
    bands: list[int]  # numbers of the selected bands, as selected
    tags: BandTags  # metadata of all bands of the file
    georeference: Georeference | None
    nodata: str = ""  # the nodata values that the file declares, in words
    is_nodata: np.ndarray | None = None  # (H, W) bool: whether a mask's value is its file's nodata
    palette: str = ""  # the colors of the indices that occur in a mask, as "0:000000 1:ffffff"

    def turned(self) -> Raster:
        """The raster with its last row first."""
        is_nodata = None if self.is_nodata is None else self.is_nodata[::-1]
        return self._replace(values=self.values[:, ::-1].copy(), missing=self.missing[::-1].copy(), is_nodata=is_nodata)


def read_image(
    data: bytes | memoryview,
    bands: Sequence[int | str],
    name: str,
    rule: Missing = "auto",
    files: Mapping[str, bytes | memoryview] | None = None,
) -> Raster:
    """Read the selected bands, by number (from 1) or description.

    A pixel is missing if every selected band has the nodata value, if a mask or an alpha band marks it (unless that
    alpha band is itself selected, and so is data), or if any selected band is not finite. If the file declares neither
    nodata nor mask nor alpha, `rule` decides about zeros. With "zero", a pixel that is 0 in all bands of the file is
    missing; with "auto", it is so only in uint16 files of several bands; with "declared", it is not.

    Missing values are set to 0, because a NaN or -9999 next to a valid pixel would reach it through the convolutions.
    `files` are the tile's sidecar files by suffix. Raises DataError that names the tile.
    """
    read = _read(data, list(bands), name, rule, Sidecars.parse(files or {}, name))
    image, missing, zeros = read.values, read.invalid, 0
    unset = [reason for reason in (read.nodata, read.nonfinite, read.invalid) if reason is not None]
    if unset:
        image = image if image.flags.writeable else image.copy(order="K")  # it may be a view of the file's bytes
        for is_unset in unset:
            image[np.broadcast_to(is_unset, image.shape)] = 0
    if missing is None:
        missing = np.zeros(image.shape[1:], dtype=bool)
    if read.nodata is not None:
        missing = missing | np.all(read.nodata, axis=0)
    if read.nonfinite is not None:
        missing = missing | np.any(read.nonfinite, axis=0)
    if read.zero is not None:
        zeros = int(np.count_nonzero(read.zero & ~missing))
        missing = missing | read.zero
    if image.dtype == np.float64:
        image = image.astype(np.float32)  # the network's dtype
    return Raster(image, missing, zeros, read.bands, read.tags, read.georeference, read.nodata_text)


def read_mask(data: bytes | memoryview, name: str, files: Mapping[str, bytes | memoryview] | None = None) -> Raster:
    """Read the one band of class numbers (1, H, W); in a file with a palette, its indices. Missing values are kept.

    Raises DataError, also for a mask of several bands or in a lossy format, whose labels could only be guessed.
    """
    read = _read(data, None, name, "declared", Sidecars.parse(files or {}, name))
    missing = np.zeros(read.values.shape[1:], dtype=bool)
    for reason in (read.nodata, read.nonfinite, read.invalid):
        if reason is not None:
            missing |= reason.reshape(missing.shape)
    is_nodata = read.nodata[0] if read.nodata is not None and read.nodata_text else None
    colors = "" if read.palette is None else palettes.in_words(read.palette, read.values[0][~missing])
    return Raster(
        values=read.values,
        missing=missing,
        zeros=0,
        bands=read.bands,
        tags=read.tags,
        georeference=read.georeference,
        nodata=read.nodata_text,
        is_nodata=is_nodata,
        palette=colors,
    )


def _read(
    data: bytes | memoryview, bands: list[int | str] | None, name: str, rule: Missing, beside: Sidecars
) -> SelectedBands:
    """Read with the fastest reader that can. `bands` is None for a mask, which must have one band."""
    plain = None if beside else geotiff.decode(data, MAX_PIXELS, MAX_BYTES)
    return gdal_bands.read(data, bands, name, rule, beside) if plain is None else _select(plain, bands, name, rule)


def _select(plain: Plain, bands: list[int | str] | None, name: str, rule: Missing) -> SelectedBands:
    count = len(plain.values)
    if bands is None:
        check_one_band(count, name)
    selected = band_numbers(bands, count, plain.tags, name)
    is_whole = selected == list(range(1, count + 1))
    values = plain.values if is_whole else plain.values[[band - 1 for band in selected]]
    is_zero_missing = plain.nodata is None and counts_zero_as_missing(rule, plain.values.dtype, count)
    return SelectedBands(
        values=values,
        nodata=None if plain.nodata is None else values == plain.nodata,
        nonfinite=nonfinite(values),
        invalid=None,
        zero=all_zero(plain.values) if is_zero_missing else None,
        bands=selected,
        tags=plain.tags,
        georeference=plain.georeference,
        nodata_text=nodata_in_words([plain.nodata]),
    )
