"""Reads selected bands of any tile file by GDAL. Called by `decode` for all but plain GeoTIFFs without sidecars.

Only the drivers of tile formats are allowed: a VRT, or a URL hidden in tile bytes, must not read anything else.
"""

from __future__ import annotations

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import DatasetReader

from robosat_pink.datasets.rasters import georeference, palettes, sidecars
from robosat_pink.datasets.rasters.band_tags import BandTags
from robosat_pink.datasets.rasters.gdal import Opened, call
from robosat_pink.datasets.rasters.georeference import Georeference
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
from robosat_pink.errors import DataError

DRIVERS = ["GTiff", "PNG", "JPEG", "WEBP"]


def read(
    data: bytes | memoryview, bands: list[int | str] | None, name: str, rule: Missing, beside: Sidecars
) -> SelectedBands:
    """Read bands as `decode` specifies; `bands` is None for a mask. Raises DataError that names the tile."""
    with Opened(bytes(data), name, DRIVERS) as dataset:
        _check_readable(dataset, name)
        alphas = [
            band for band, kind in zip(dataset.indexes, dataset.colorinterp, strict=True) if kind == ColorInterp.alpha
        ]
        if bands is None:
            check_one_band(dataset.count - len(alphas), name)
            _check_lossless(dataset, name)
        palette = palettes.of(dataset, len(alphas), name)
        if bands is None or palette is None:
            selected = band_numbers(bands, dataset.count, _tags(dataset, beside), name)
            # A selected alpha band is data. Any other alpha band is a mask here; to GDAL, it is a mask only for some
            # dtypes and numbers of bands.
            is_alpha_data = bands is not None and not set(alphas).isdisjoint(selected)
            read_bands = _read(dataset, selected, [] if is_alpha_data else alphas, rule, beside, name)
            return read_bands._replace(palette=palette)
        selected = band_numbers(bands, 4, _tags(dataset, beside), name)
        indices = _read(dataset, [1], alphas, rule, beside, name)
        return _painted(indices, palette, selected)


def _read(
    dataset: DatasetReader, selected: list[int], alphas: list[int], rule: Missing, beside: Sidecars, name: str
) -> SelectedBands:
    nodatas = [beside.nodata.get(band, dataset.nodatavals[band - 1]) for band in selected]
    is_nodata_declared = any(value is not None for value in nodatas)
    invalid = _invalid(dataset, alphas, name)
    declares_none = invalid is None and beside.mask is None and not is_nodata_declared
    is_zero_missing = declares_none and counts_zero_as_missing(rule, np.dtype(dataset.dtypes[0]), dataset.count)
    if is_zero_missing:
        every_band = call(dataset.read, list(dataset.indexes), name)
        values, zero = every_band[[band - 1 for band in selected]], all_zero(every_band)
    else:
        values, zero = call(dataset.read, selected, name), None
    nodata = None
    if is_nodata_declared:
        nodata = np.stack(
            [band == (np.nan if value is None else value) for band, value in zip(values, nodatas, strict=True)]
        )
    if beside.mask is not None:
        outside = _mask_beside(beside.mask, dataset.shape, selected, name)
        nodata = outside if nodata is None else nodata | outside
    return SelectedBands(
        values=values,
        nodata=nodata,
        nonfinite=nonfinite(values),
        invalid=invalid,
        zero=zero,
        bands=selected,
        tags=_tags(dataset, beside),
        georeference=beside.georeference or _georeference(dataset),
        nodata_text=nodata_in_words(nodatas),
    )


def _check_readable(dataset: DatasetReader, name: str) -> None:
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


def _tags(dataset: DatasetReader, beside: Sidecars) -> BandTags:
    tags = BandTags(
        names=tuple(description or "" for description in dataset.descriptions),
        scales=dataset.scales,
        offsets=dataset.offsets,
        colors=tuple(color.name for color in dataset.colorinterp),
    )
    return beside.over(tags)


def _invalid(dataset: DatasetReader, alphas: list[int], name: str) -> np.ndarray | None:
    """(H, W) bool: whether a mask in the file, or 0 in an alpha band, marks a pixel as invalid; None without either."""
    invalid = [call(dataset.read, band, name) == 0 for band in alphas]
    for band, flags in zip(dataset.indexes, dataset.mask_flag_enums, strict=True):
        if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
            invalid.append(call(dataset.read_masks, band, name) == 0)  # one mask for all bands
            break
    return np.logical_or.reduce(invalid) if invalid else None


def _painted(indices: SelectedBands, palette: np.ndarray, bands: list[int]) -> SelectedBands:
    """Replace indices by their colors, as the selected ones of the bands red, green, blue and alpha."""
    colors = palettes.look_up(palette, indices.values[0]).transpose(2, 0, 1)
    invalid = indices.invalid
    if 4 not in bands:
        transparent = colors[3] == 0
        invalid = transparent if invalid is None else invalid | transparent
    return indices._replace(
        values=np.ascontiguousarray(colors[[band - 1 for band in bands]]),
        nodata=None if indices.nodata is None else np.repeat(indices.nodata, len(bands), axis=0),
        invalid=invalid,
        zero=None if indices.zero is None else (colors[:3] == 0).all(axis=0),
        bands=bands,
        palette=palette,
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
            "with lossless compression, or PNG. Write the masks again from their source"
        )


def _mask_beside(data: bytes, shape: tuple[int, int], bands: list[int], name: str) -> np.ndarray:
    """(C, H, W) bool: whether the .msk file marks a value as invalid. It has one band for all, or one per band."""
    with Opened(data, f"{name}{sidecars.MASK}", ["GTiff"]) as dataset:
        if dataset.shape != shape:
            size = " x ".join(map(str, reversed(dataset.shape)))
            raise DataError(f"{name}{sidecars.MASK}: {size} pixels, its tile has {shape[1]} x {shape[0]}")
        if dataset.count > 1 and max(bands) > dataset.count:
            raise DataError(f"{name}{sidecars.MASK}: has {dataset.count} bands, the tile more; write it again by GDAL")
        chosen = bands if dataset.count > 1 else [1] * len(bands)
        return call(dataset.read, chosen, f"{name}{sidecars.MASK}") == 0


def georeference_of(data: bytes | memoryview, name: str) -> Georeference | None:
    """The georeference as GDAL interprets it; its `crs` is never bytes."""
    with Opened(bytes(data), name, DRIVERS) as dataset:
        return _georeference(dataset)


def tags_of(data: bytes | memoryview, name: str) -> dict[str, str]:
    """The file's own metadata, such as `CLASS_1: snow` in the tiles that `predict` writes."""
    with Opened(bytes(data), name, DRIVERS) as dataset:
        tags: dict[str, str] = dataset.tags()
        return tags


def _georeference(dataset: DatasetReader) -> Georeference | None:
    crs, transform = dataset.crs, dataset.transform
    if crs is None or transform.is_identity:
        return None
    numbers = (transform.a, transform.b, transform.c, transform.d, transform.e, transform.f)
    return georeference.of(crs, numbers)
