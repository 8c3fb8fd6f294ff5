"""Selected bands with the values of their file, and the rules for them that both ways of decoding share.

Called by `decode` for plain GeoTIFFs, and by `gdal_bands` for all other files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from robosat_pink.datasets.rasters.band_tags import BandTags
from robosat_pink.datasets.rasters.georeference import Georeference
from robosat_pink.errors import DataError

Missing = Literal["auto", "declared", "zero"]


class SelectedBands(NamedTuple):
    """The values, and for each reason where they are missing, or None if the reason cannot apply."""

    values: np.ndarray  # (C, H, W)
    nodata: np.ndarray | None  # (C, H, W) bool: declared nodata, or 0 in .msk
    nonfinite: np.ndarray | None  # (C, H, W) bool: NaN or inf as float32
    invalid: np.ndarray | None  # (H, W) bool: 0 in an internal mask or in alpha
    zero: np.ndarray | None  # (H, W) bool: 0 in all bands, if that counts as missing
    bands: list[int]
    tags: BandTags
    georeference: Georeference | None
    nodata_text: str = ""  # the nodata values that the file declares
    palette: np.ndarray | None = None  # (N, 4) uint8 by index


def band_numbers(bands: list[int | str] | None, count: int, tags: BandTags, name: str) -> list[int]:
    """The numbers of these bands, from 1; [1] for a mask. Raises DataError for a band that the file lacks or has twice.

    `count` bands can be selected.
    """
    if bands is None:
        return [1]
    numbers = []
    for band in bands:
        if isinstance(band, str):
            numbers.append(_number_of(band, tags.names, name))
        elif band > count:
            raise DataError(f"{name}: has {count} band(s), channels.bands asks for {bands}")
        else:
            numbers.append(band)
    return numbers


def _number_of(description: str, descriptions: Sequence[str], name: str) -> int:
    matches = [number for number, text in enumerate(descriptions, 1) if text.lower() == description.lower()]
    if len(matches) == 1:
        return matches[0]
    way_out = (
        f"there are: {', '.join(text or '-' for text in descriptions)}; name one of these, or give bands by number"
    )
    if not any(descriptions):
        way_out = f"none of its {len(descriptions)} bands has one; give bands by number"
    count = f"{len(matches)} bands" if matches else "no band"
    raise DataError(f"{name}: has {count} of the description {description!r} that channels.bands names; {way_out}")


def check_one_band(count: int, name: str) -> None:
    if count != 1:
        raise DataError(
            f"{name}: a mask of {count} bands; accepted: one band of class numbers, alpha aside. Where each band is a "
            "class, or classes are painted in colors, write the number of each pixel's class into one band"
        )


def nodata_in_words(nodatas: Sequence[float | None]) -> str:
    """`0, -9999`: the values that a file declares, each once."""
    return ", ".join(f"{value:g}" for value in dict.fromkeys(nodatas) if value is not None)


def counts_zero_as_missing(rule: Missing, dtype: np.dtype, count: int) -> bool:
    return rule == "zero" or (rule == "auto" and dtype == np.uint16 and count > 1)


def nonfinite(values: np.ndarray) -> np.ndarray | None:
    """Where values are not finite, or would not be finite in float32, in which networks compute."""
    if values.dtype.kind != "f":
        return None
    with np.errstate(over="ignore"):
        return ~np.isfinite(values.astype(np.float32, copy=False))


def all_zero(image: np.ndarray) -> np.ndarray:
    """Where every band is 0, (H, W) bool. Most tiles contain no 0 at all, which is quickly checked."""
    if image.min() > 0:
        return np.zeros(image.shape[1:], dtype=bool)
    zero = image[0] == 0
    for band in image[1:]:
        zero &= band == 0
    return zero
