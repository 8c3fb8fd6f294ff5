"""From the bytes of a tile file to an array and its missing pixels. No network, no file system; called by `reader`.

Plain GeoTIFFs go to `tiff`; the others to GDAL, of which only the drivers of tile formats are allowed: a VRT, or a URL
hidden in tile bytes, must not read anything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import DatasetReader

from robosat_pink.datasets.rasters import georeference, geotiff, palettes, sidecars
from robosat_pink.datasets.rasters.band_tags import BandTags
from robosat_pink.datasets.rasters.gdal import MAX_BYTES, MAX_PIXELS, Opened, call
from robosat_pink.datasets.rasters.georeference import Georeference
from robosat_pink.datasets.rasters.sidecars import Sidecars
from robosat_pink.errors import DataError

DRIVERS = ["GTiff", "PNG", "JPEG", "WEBP"]

Missing = Literal["auto", "declared", "zero"]


class Raster(NamedTuple):
    """What a tile file holds. Rows are as they lie in the file."""

    values: np.ndarray  # (C, H, W) in the file's own type, 0 where missing
    missing: np.ndarray  # (H, W) bool: no data
    zeros: int  # pixels that are missing for being 0 in all bands, where the file declares nothing
    bands: list[int]  # by number, as they were selected
    tags: BandTags  # of all bands of the file
    georeference: Georeference | None
    nodata: str = ""  # the value that the file declares, in words
    declared: np.ndarray | None = None  # (H, W) bool: where a mask has the value that its file declares as nodata
    palette: str = ""  # of a mask: the colors of the indices in it, as "0:000000 1:ffffff"

    def turned(self) -> Raster:
        """The last row first."""
        declared = None if self.declared is None else self.declared[::-1]
        return self._replace(values=self.values[:, ::-1].copy(), missing=self.missing[::-1].copy(), declared=declared)


def read_image(
    data: bytes | memoryview,
    bands: Sequence[int | str],
    name: str,
    rule: Missing = "auto",
    files: Mapping[str, bytes | memoryview] | None = None,
) -> Raster:
    """The selected bands, by number (from 1) or description.

    A pixel is missing where every selected band has the nodata value, where a mask or alpha says so (unless the alpha
    band itself is selected: then it is data), and where any selected band is not finite. In a file that declares none
    of these, by `rule`: "zero" where all of its bands are 0; "auto" the same in uint16 files of several bands alone;
    "declared" nowhere. Missing values are set to 0: a NaN or -9999 among the neighbours of a valid pixel would reach it
    through the convolutions. `files` are the tile's sidecar files by suffix. Raises DataError that names the tile.
    """
    read = _read(data, list(bands), name, rule, Sidecars.parse(files or {}, name))
    image, missing, zeros = read.values, read.invalid, 0
    hidden = [each for each in (read.nodata, read.broken, read.invalid) if each is not None]
    if hidden:
        image = image if image.flags.writeable else image.copy(order="K")  # it may be the file's own bytes
        for each in hidden:
            image[np.broadcast_to(each, image.shape)] = 0
    if missing is None:
        missing = np.zeros(image.shape[1:], dtype=bool)
    if read.nodata is not None:
        missing = missing | np.all(read.nodata, axis=0)
    if read.broken is not None:
        missing = missing | np.any(read.broken, axis=0)
    if read.zero is not None:
        zeros = int(np.count_nonzero(read.zero & ~missing))
        missing = missing | read.zero
    if image.dtype == np.float64:
        image = image.astype(np.float32)  # what the network computes in
    return Raster(image, missing, zeros, read.bands, read.tags, read.georeference, read.declared)


def read_mask(data: bytes | memoryview, name: str, files: Mapping[str, bytes | memoryview] | None = None) -> Raster:
    """The one band of class numbers (1, H, W), a palette's as they are. Values stay where they are missing.

    Raises DataError, for a mask of several bands or of a lossy format too: it would be anybody's guess what the labels
    are.
    """
    read = _read(data, None, name, "declared", Sidecars.parse(files or {}, name))
    hidden = [each for each in (read.nodata, read.broken, read.invalid) if each is not None]
    missing = np.zeros(read.values.shape[1:], dtype=bool)
    for each in hidden:
        missing |= each.reshape(missing.shape)
    declared = read.nodata[0] if read.nodata is not None and read.declared else None
    colors = "" if read.palette is None else palettes.in_words(read.palette, read.values[0][~missing])
    of_mask = (read.georeference, read.declared, declared, colors)
    return Raster(read.values, missing, 0, read.bands, read.tags, *of_mask)


class _Read(NamedTuple):
    """Selected bands as they are in the file, and what makes their values missing; None for nothing."""

    values: np.ndarray  # (C, H, W)
    nodata: np.ndarray | None  # (C, H, W) bool: has the declared value
    broken: np.ndarray | None  # (C, H, W) bool: not finite
    invalid: np.ndarray | None  # (H, W) bool: outside of a mask, or transparent
    zero: np.ndarray | None  # (H, W) bool: 0 in all bands, where that stands for missing
    bands: list[int]
    tags: BandTags
    georeference: Georeference | None
    declared: str = ""  # the nodata values that the file declares
    palette: np.ndarray | None = None  # (N, 4) uint8 by index, of a mask


def _read(data: bytes | memoryview, bands: list[int | str] | None, name: str, rule: Missing, beside: Sidecars) -> _Read:
    """`bands` are None for a mask, which must have one."""
    plain = None if beside else geotiff.decode(data, MAX_PIXELS, MAX_BYTES)
    if plain is None:
        with Opened(bytes(data), name, DRIVERS) as dataset:
            return _from_dataset(dataset, bands, name, rule, beside)
    count = len(plain.values)
    if bands is None:
        _check_one_band(count, name)
    selected = _numbers(bands, count, plain.tags, name)
    is_whole = selected == list(range(1, count + 1))
    values = plain.values if is_whole else plain.values[[band - 1 for band in selected]]
    nodata = None if plain.nodata is None else values == plain.nodata
    is_zero_missing = plain.nodata is None and _counts_zero(rule, plain.values.dtype, count)
    zero = _all_zero(plain.values) if is_zero_missing else None
    of_file = (plain.tags, plain.georeference, _declared([plain.nodata]))
    return _Read(values, nodata, _broken(values), None, zero, selected, *of_file)


def _from_dataset(
    dataset: DatasetReader, bands: list[int | str] | None, name: str, rule: Missing, beside: Sidecars
) -> _Read:
    if any(dtype.startswith("complex") for dtype in dataset.dtypes):
        raise DataError(
            f"{name}: complex numbers; accepted: whole numbers and floats. Write amplitude or parts as bands"
        )
    if len(dataset.subdatasets) > 1:
        raise DataError(
            f"{name}: {len(dataset.subdatasets)} pages (images) in one TIFF, of which GDAL reads the first alone; "
            "accepted: one image a file, with its bands in it. Write pages as bands; for a mask, the number of each "
            "pixel's class into one band"
        )
    alphas = [
        band for band, kind in zip(dataset.indexes, dataset.colorinterp, strict=True) if kind == ColorInterp.alpha
    ]
    if bands is None:
        _check_one_band(dataset.count - len(alphas), name)
        _check_lossless(dataset, name)
    colors = palettes.of(dataset, len(alphas), name)
    palette = colors if bands is not None else None
    tags = beside.over(
        BandTags(
            tuple(each or "" for each in dataset.descriptions),
            dataset.scales,
            dataset.offsets,
            tuple(each.name for each in dataset.colorinterp),
        )
    )
    selected = _numbers(bands, dataset.count if palette is None else 4, tags, name)
    indexes = selected if palette is None else [1]
    nodatas = [beside.nodata.get(band, dataset.nodatavals[band - 1]) for band in indexes]
    # Alpha that is asked for is data. GDAL takes it for a mask in some types and numbers of bands alone, we in all.
    alphas = alphas if palette is not None or not set(alphas) & set(selected) or bands is None else []
    invalid = _invalid(dataset, alphas, name)
    declares_none = invalid is None and beside.mask is None and nodatas == [None] * len(nodatas)
    is_zero_missing = declares_none and _counts_zero(rule, np.dtype(dataset.dtypes[0]), dataset.count)
    read = call(dataset.read, list(dataset.indexes) if is_zero_missing else indexes, name)
    values = read[[band - 1 for band in indexes]] if is_zero_missing else read
    nodata = None
    if nodatas != [None] * len(nodatas):
        nodata = np.stack(
            [band == (np.nan if value is None else value) for band, value in zip(values, nodatas, strict=True)]
        )
    if beside.mask is not None:
        outside = _mask_beside(beside.mask, dataset.shape, indexes, name)
        nodata = outside if nodata is None else nodata | outside
    zero = _all_zero(read) if is_zero_missing else None
    place = beside.georeference or _georeference(dataset)
    of_file = (tags, place, _declared(nodatas), colors)
    found = _Read(values, nodata, _broken(values), invalid, zero, selected, *of_file)
    return found if palette is None else _painted(found, palette, selected, is_zero_missing)


def _declared(nodatas: Sequence[float | None]) -> str:
    return ", ".join(f"{value:g}" for value in dict.fromkeys(nodatas) if value is not None)


def _invalid(dataset: DatasetReader, alphas: list[int], name: str) -> np.ndarray | None:
    """Where a mask in the file says so, or one of the alpha bands is 0, (H, W) bool."""
    found = [call(dataset.read, band, name) == 0 for band in alphas]
    for band, flags in zip(dataset.indexes, dataset.mask_flag_enums, strict=True):
        if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
            found.append(call(dataset.read_masks, band, name) == 0)  # one mask for all bands
            break
    return np.logical_or.reduce(found) if found else None


def _painted(read: _Read, palette: np.ndarray, bands: list[int], is_black_missing: bool) -> _Read:
    """Indices of colors as the selected of the bands red, green, blue and alpha."""
    colors = palettes.look_up(palette, read.values[0]).transpose(2, 0, 1)
    invalid = read.invalid
    if 4 not in bands:
        transparent = colors[3] == 0
        invalid = transparent if invalid is None else invalid | transparent
    return read._replace(
        values=np.ascontiguousarray(colors[[band - 1 for band in bands]]),
        nodata=None if read.nodata is None else np.repeat(read.nodata, len(bands), axis=0),
        invalid=invalid,
        zero=(colors[:3] == 0).all(axis=0) if is_black_missing else None,
    )


def _numbers(bands: list[int | str] | None, count: int, tags: BandTags, name: str) -> list[int]:
    """The bands' numbers, of a file that has so many. Raises DataError for one that it lacks, or has twice."""
    if bands is None:
        return [1]
    numbers = []
    for band in bands:
        if isinstance(band, str):
            found = [number for number, each in enumerate(tags.names, 1) if each.lower() == band.lower()]
            if len(found) != 1:
                there = ", ".join(each or "-" for each in tags.names)
                what = "no band" if not found else f"{len(found)} bands"
                way = f"there are: {there}; name one of these, or give bands by number"
                if not any(tags.names):
                    way = f"none of its {len(tags.names)} bands has one; give bands by number"
                raise DataError(f"{name}: has {what} of the description {band!r} that channels.bands names; {way}")
            numbers += found
        elif band > count:
            raise DataError(f"{name}: has {count} band(s), channels.bands asks for {bands}")
        else:
            numbers.append(band)
    return numbers


def _check_one_band(count: int, name: str) -> None:
    if count != 1:
        raise DataError(
            f"{name}: a mask of {count} bands; accepted: one band of class numbers, beside alpha. Where each band is a "
            "class, or classes are painted in colors, write the number of each pixel's class into one band"
        )


def _check_lossless(dataset: DatasetReader, name: str) -> None:
    structure = dataset.tags(ns="IMAGE_STRUCTURE")
    compression = structure.get("COMPRESSION", dataset.driver).upper()
    is_lossy = (
        "JPEG" in compression
        or (compression in ("WEBP", "JXL") and structure.get("COMPRESSION_REVERSIBILITY") != "LOSSLESS")
        or float(structure.get("MAX_Z_ERROR", 0)) > 0
    )
    if is_lossy:
        raise DataError(
            f"{name}: a mask in a lossy format ({compression}), which changes labels at every edge; accepted: GeoTIFF "
            "with lossless compression, or PNG. Write the masks anew from their source"
        )


def _counts_zero(rule: Missing, dtype: np.dtype, count: int) -> bool:
    return rule == "zero" or (rule == "auto" and dtype == np.uint16 and count > 1)


def _broken(values: np.ndarray) -> np.ndarray | None:
    """Where values are not finite, or would not be as float32, in which networks compute."""
    if values.dtype.kind != "f":
        return None
    with np.errstate(over="ignore"):
        return ~np.isfinite(values.astype(np.float32, copy=False))


def _all_zero(image: np.ndarray) -> np.ndarray:
    """Where every band is 0, (H, W) bool. Most tiles have no 0 at all, which is soon told."""
    if image.min() > 0:
        return np.zeros(image.shape[1:], dtype=bool)
    zero = image[0] == 0
    for band in image[1:]:
        zero &= band == 0
    return zero


def _mask_beside(data: bytes, shape: tuple[int, int], bands: list[int], name: str) -> np.ndarray:
    """Where a tile is invalid, (C, H, W) bool, by the .msk file beside it: of one band for all, or one a band."""
    with Opened(data, f"{name}{sidecars.MASK}", ["GTiff"]) as dataset:
        if dataset.shape != shape:
            size = " x ".join(map(str, reversed(dataset.shape)))
            raise DataError(f"{name}{sidecars.MASK}: {size} pixels, its tile has {shape[1]} x {shape[0]}")
        if dataset.count > 1 and max(bands) > dataset.count:
            raise DataError(f"{name}{sidecars.MASK}: has {dataset.count} bands, the tile more; write it anew by GDAL")
        chosen = bands if dataset.count > 1 else [1] * len(bands)
        return call(dataset.read, chosen, f"{name}{sidecars.MASK}") == 0


def georeference_of(data: bytes | memoryview, name: str) -> Georeference | None:
    """As GDAL understands it, with no `crs` in bytes."""
    with Opened(bytes(data), name, DRIVERS) as dataset:
        return _georeference(dataset)


def _georeference(dataset: DatasetReader) -> Georeference | None:
    crs, transform = dataset.crs, dataset.transform
    if crs is None or transform.is_identity:
        return None
    numbers = (transform.a, transform.b, transform.c, transform.d, transform.e, transform.f)
    return georeference.of(crs, numbers)
