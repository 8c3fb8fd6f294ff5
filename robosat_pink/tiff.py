"""The plain layouts of GeoTIFF, decoded by libtiff or tifffile, not by GDAL: up to ten times faster. For `rasters`.

Plain is: one page without overviews or internal mask, no alpha, nothing rotated, whole numbers or floats of 8 to 64
bits, uncompressed or by LZW, deflate or Zstandard. For everything else, damaged files among it, GDAL has the word.
"""

from __future__ import annotations

import io
import logging
import math
import operator
import sys
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from tifffile import TiffFile, TiffPage

logging.getLogger("tifffile").disabled = True  # of a file it cannot read, GDAL says so

NATIVE = "<" if sys.byteorder == "little" else ">"
DEFLATES = {8, 32946}
COMPRESSIONS = {1, 5, 50000} | DEFLATES  # none, LZW, Zstandard
PHOTOMETRICS = {1, 2}  # grey and RGB: GDAL reads these as they are
LAYOUT = (258, 259, 262, 277, 284, 339)  # bits, compression, photometry, bands, their order, kind; GDAL writes all
ALPHAS = {1, 2}  # among ExtraSamples
ORIENTATION, GDAL_METADATA, GDAL_NODATA, MODEL_TRANSFORMATION = 274, 42112, 42113, 34264
DTYPES = {"uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"}


class Plain(NamedTuple):
    """What is in the file, all bands (C, H, W), and the value that stands for missing ones."""

    values: np.ndarray  # perhaps the file's own bytes, which cannot be written to
    nodata: float | None


def decode(data: bytes | memoryview, max_pixels: int) -> Plain | None:
    """None where the file is not plain, has more pixels than that, or cannot be read."""
    stream: Any = _Stream(data)
    content: Any = data
    try:
        with TiffFile(stream) as file:
            if len(file.pages) != 1 or not _is_plain(page := file.pages.first, max_pixels):
                return None
            if not _is_whole(page, len(data)):
                return None
            nodata = _nodata(page)
            height, width, bands = page.imagelength, page.imagewidth, page.samplesperpixel
            is_planar = page.planarconfig == 2
            expected = (bands, height, width) if is_planar else (height, width, bands)
            if _lies_as_it_is(page):
                values = np.frombuffer(data, page.dtype, math.prod(expected), page.dataoffsets[0]).reshape(expected)
                values = values if values.flags.aligned else values.copy()  # GDAL begins pixels at odd places, too
            elif page.compression in DEFLATES:
                # Of damaged deflate libtiff gives what it has, without a word, where more comes out than it has room.
                values = page.asarray(maxworkers=1)
            else:
                values = imagecodecs.tiff_decode(content)
    except Exception:  # whatever either reader dislikes: GDAL says what is wrong with it
        return None
    if values.dtype != page.dtype or _without_ones(values.shape) != _without_ones(expected):
        return None  # the two readers do not understand the header alike
    values = values.reshape(expected)
    return Plain(values if is_planar else values.transpose(2, 0, 1), nodata)


class _Stream(io.RawIOBase):
    """Bytes as a file, without a copy of them."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: len(self._data)}[whence]
        return self._place

    def read(self, size: int = -1) -> bytes:
        end = len(self._data) if size < 0 else self._place + size
        found = bytes(self._data[self._place : end])
        self._place += len(found)
        return found


def _is_plain(page: TiffPage, max_pixels: int) -> bool:
    dtype = page.dtype
    return (
        dtype is not None
        and dtype.name in DTYPES
        and page.bitspersample == dtype.itemsize * 8
        and page.compression in COMPRESSIONS
        and page.photometric in PHOTOMETRICS
        and page.imagedepth == 1
        and (page.compression not in DEFLATES or all(code in page.tags for code in LAYOUT))
        and 0 < page.imagelength * page.imagewidth <= max_pixels
        and not ALPHAS.intersection(page.extrasamples)
        and page.tags.valueof(ORIENTATION, 1) == 1
        and MODEL_TRANSFORMATION not in page.tags
        and "NODATA" not in str(page.tags.valueof(GDAL_METADATA, ""))
        and (GDAL_NODATA not in page.tags or _nodata(page) is not None)
    )


def _is_whole(page: TiffPage, size: int) -> bool:
    """Whether every strip or tile is there, and inside the file's so many bytes."""
    offsets, counts = page.dataoffsets, page.databytecounts
    return (
        len(offsets) == len(counts) == math.prod(page.chunked)
        and min(offsets) > 0
        and min(counts) > 0
        and max(map(operator.add, offsets, counts)) <= size
    )


def _lies_as_it_is(page: TiffPage) -> bool:
    """Whether the pixels are in the file as they shall be in memory: an array can be laid over them."""
    return (
        page.is_contiguous
        and sum(page.databytecounts) == page.nbytes
        and page.parent.byteorder == NATIVE
        and page.fillorder == 1
        and page.predictor == 1
    )


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


def _nodata(page: TiffPage) -> float | None:
    """The declared value, if the type has it."""
    text = page.tags.valueof(GDAL_NODATA)
    if text is None:
        return None
    value = float(str(text).strip().rstrip("\0"))
    assert page.dtype is not None
    if page.dtype.kind == "f":
        return value
    limits = np.iinfo(page.dtype)
    return value if value.is_integer() and limits.min <= value <= limits.max else None
