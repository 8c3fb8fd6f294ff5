"""Decodes plain GeoTIFFs with libtiff or tifffile, up to ten times faster than GDAL. Called by `decode`.

Plain means: one page; no overviews, internal mask, alpha or rotation; grey or RGB; a dtype of DTYPES; uncompressed,
LZW, deflate or Zstandard. GDAL decodes all other files, and reports damaged ones.
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

from robosat_pink.datasets.rasters import band_tags, georeference
from robosat_pink.datasets.rasters.band_tags import BandTags
from robosat_pink.datasets.rasters.georeference import Georeference

logging.getLogger("tifffile").disabled = True  # GDAL reports the files that tifffile cannot read

NATIVE = "<" if sys.byteorder == "little" else ">"
DEFLATES = {8, 32946}
COMPRESSIONS = {1, 5, 50000} | DEFLATES  # none, LZW, Zstandard
PHOTOMETRICS = {1, 2}  # grey and RGB: GDAL reads these as they are
# Tags that a deflated file must have, as GDAL writes them: bits, compression, photometry, bands, their layout, type.
LAYOUT = (258, 259, 262, 277, 284, 339)
ALPHAS = {1, 2}  # values of ExtraSamples that mean alpha
ORIENTATION, GDAL_METADATA, GDAL_NODATA, MODEL_TRANSFORMATION = 274, 42112, 42113, 34264
GEOREFERENCE = (33550, 33922, 34735, 34736, 34737)  # pixel scale, tie point, keys, the keys' numbers and texts
MOST_READ = 1 << 22  # bytes of one read in a header; GDAL gets files that need more, as for half a million strips
DTYPES = {"uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"}


class Plain(NamedTuple):
    """The content of a file: all bands (C, H, W), its nodata value and its metadata."""

    values: np.ndarray  # may be a read-only view of the file's bytes
    nodata: float | None
    tags: BandTags
    georeference: Georeference | None


class _GeoreferenceSpans(NamedTuple):
    """The byte ranges of a file's georeference. `_Header` keeps these, but not the values, which vary by tile."""

    spans: tuple[slice, ...]  # one for each tag of GEOREFERENCE; empty for a missing tag
    order: str  # byte order, "<" or ">"

    def read(self, data: memoryview) -> Georeference | None:
        scale, tie_point, keys, *parameters = (bytes(data[span]) for span in self.spans)
        return georeference.from_geotiff(scale, tie_point, keys, b"|".join(parameters), self.order)


class _Header(NamedTuple):
    """The header of a file whose pixels need no decoding, remembered for other files with equal bytes in `parts`."""

    parts: tuple[tuple[int, bytes], ...]  # everything that was read to parse the header: offset in the file, bytes
    dtype: np.dtype
    shape: tuple[int, int, int]  # shape of the pixels in the file: (C, H, W) if planar, else (H, W, C)
    is_planar: bool
    offset: int  # offset of the first pixel, in bytes
    nodata: float | None
    tags: BandTags
    georeference: _GeoreferenceSpans

    def is_of(self, data: memoryview) -> bool:
        """Whether a file of the same size has the same bytes in all `parts`, so that its header is the same."""
        return all(data[offset : offset + len(part)] == part for offset, part in self.parts)

    def view(self, data: memoryview) -> Plain:
        """The file's content, with an array that shares memory with `data`."""
        values = np.frombuffer(data, self.dtype, math.prod(self.shape), self.offset).reshape(self.shape)
        values = values if self.is_planar else values.transpose(2, 0, 1)
        return Plain(values, self.nodata, self.tags, self.georeference.read(data))


_headers: dict[tuple[int, int], _Header] = {}  # by file size and max_pixels; uncompressed tiles mostly share one
MOST_HEADERS = 64  # more than one, because texts of different lengths in the header change the file size


def decode(data: bytes | memoryview, max_pixels: int, max_bytes: int = 1 << 30) -> Plain | None:
    """Decode a plain GeoTIFF; None if the file is not plain, exceeds a limit, or cannot be read.

    The array may be a view of `data`, even unaligned, as pixels in GDAL's files may be: NumPy accepts that.
    """
    data = memoryview(data)
    header = _headers.get((len(data), max_pixels))
    if header and header.is_of(data):
        return header.view(data)
    stream: Any = _Stream(data)
    content: Any = data
    try:
        with TiffFile(stream) as file:
            if len(file.pages) != 1 or not _is_plain(page := file.pages.first, max_pixels):
                return None
            if not _is_whole(page, len(data)) or max(page.nbytes, _bytes_of_a_chunk(page)) > max_bytes:
                return None
            nodata, tags, spans = _nodata(page), _band_tags(page), _georeference_spans(page)
            height, width, bands = page.imagelength, page.imagewidth, page.samplesperpixel
            is_planar = page.planarconfig == 2
            expected = (bands, height, width) if is_planar else (height, width, bands)
            assert page.dtype is not None
            if _needs_no_decoding(page):
                if len(_headers) >= MOST_HEADERS:
                    _headers.clear()
                parts = tuple(stream.parts)
                header = _Header(parts, page.dtype, expected, is_planar, page.dataoffsets[0], nodata, tags, spans)
                _headers[len(data), max_pixels] = header
                return header.view(data)
            stream.is_in_header = False
            # Not libtiff for deflate: if damaged data decode to too many bytes, it returns the first without an error.
            is_deflated = page.compression in DEFLATES
            values = page.asarray(maxworkers=1) if is_deflated else imagecodecs.tiff_decode(content)
    except Exception:  # any error of either reader: GDAL then reads the file, and reports what is wrong with it
        return None
    if values.dtype != page.dtype or _without_ones(values.shape) != _without_ones(expected):
        return None  # the two readers interpret the header differently
    values = values.reshape(expected)
    return Plain(values if is_planar else values.transpose(2, 0, 1), nodata, tags, spans.read(data))


class _Stream(io.RawIOBase):
    """A file over bytes in memory. It remembers the parts of the header that were read."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._offset = 0
        self.is_in_header = True
        self.parts: list[tuple[int, bytes]] = []

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._offset = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: len(self._data)}[whence]
        return self._offset

    def read(self, size: int = -1) -> bytes:
        if self.is_in_header and size > MOST_READ:
            raise ValueError(f"a read of {size} bytes in the header")
        end = len(self._data) if size < 0 else self._offset + size
        part = bytes(self._data[self._offset : end])
        if self.is_in_header:
            self.parts.append((self._offset, part))
        self._offset += len(part)
        return part


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
    """Whether every strip or tile is present, and ends within the file's `size` bytes."""
    offsets, counts = page.dataoffsets, page.databytecounts
    return (
        len(offsets) == len(counts) == math.prod(page.chunked)
        and min(offsets) > 0
        and min(counts) > 0
        and max(map(operator.add, offsets, counts)) <= size
    )


def _needs_no_decoding(page: TiffPage) -> bool:
    """Whether the pixels are stored as NumPy needs them, so that an array can be a view of the file."""
    return (
        page.is_contiguous
        and sum(page.databytecounts) == page.nbytes
        and page.parent.byteorder == NATIVE
        and page.fillorder == 1
        and page.predictor == 1
    )


def _bytes_of_a_chunk(page: TiffPage) -> int:
    """The decoded size of one strip or tile, for which a header may declare any size, even more than the image's."""
    assert page.dtype is not None
    return math.prod(page.chunks) * page.dtype.itemsize


def _band_tags(page: TiffPage) -> BandTags:
    text = page.tags.valueof(GDAL_METADATA)
    bands = page.samplesperpixel
    return band_tags.from_gdal_metadata(str(text), bands) if text else band_tags.undeclared(bands)


def _georeference_spans(page: TiffPage) -> _GeoreferenceSpans:
    """The byte ranges of the tags' values, without reading these values."""
    tags = [page.tags.get(code) for code in GEOREFERENCE]
    spans = (slice(tag.valueoffset, tag.valueoffset + tag.valuebytecount) if tag else slice(0) for tag in tags)
    return _GeoreferenceSpans(tuple(spans), page.parent.byteorder)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


def _nodata(page: TiffPage) -> float | None:
    """The declared nodata value, if the type can represent it."""
    text = page.tags.valueof(GDAL_NODATA)
    if text is None:
        return None
    value = float(str(text).strip().rstrip("\0"))
    assert page.dtype is not None
    if page.dtype.kind == "f":
        return value
    limits = np.iinfo(page.dtype)
    return value if value.is_integer() and limits.min <= value <= limits.max else None
