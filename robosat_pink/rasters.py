"""From the bytes of a tile file to an array and its missing pixels. No network, no file system; called by `reader`.

Plain GeoTIFFs go to `tiff`; the others to GDAL, of which only the drivers of tile formats are allowed: a VRT, or a URL
hidden in tile bytes, must not read anything else.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, MemoryFile
from rasterio.session import DummySession

from robosat_pink import tiff
from robosat_pink.errors import DataError

DRIVERS = ["GTiff", "PNG", "JPEG", "WEBP"]
MEMORY_NAME = re.compile(r"'?(/vsimem/)?[-0-9a-f/]{36,}(\.\w+)?'?(, |: | )?")  # what GDAL calls bytes in memory
MAX_PIXELS = 4096 * 4096  # a tile, not a scene; 4 bands of uint16 at this size take 128 MiB


def read_image(data: bytes | memoryview, bands: Sequence[int], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The selected bands (C, H, W) in the file's own type, and where a pixel has no data at all (H, W) bool.

    A pixel is missing where every selected band is: by the nodata tag, an internal mask or alpha, not being finite, or,
    in a uint16 file that declares none of these, being zero. Missing values are set to 0: a NaN or -9999 among the
    neighbours of a valid pixel would reach it through the convolutions. Raises DataError that names the tile.
    """
    read = _read(data, list(bands), name)
    image, missing = read.values, read.missing
    if image.dtype == np.uint16 and read.declares_none:
        missing_pixels = _all_zero(image)  # the values are 0 already
    elif missing is None:
        missing_pixels = np.zeros(image.shape[1:], dtype=bool)
    else:
        image = image if image.flags.writeable else image.copy(order="K")  # it may be the file's own bytes
        image[missing] = 0
        missing_pixels = np.all(missing, axis=0)
    if image.dtype == np.float64:
        image = image.astype(np.float32)  # what the network computes in
    return image, missing_pixels


def read_mask(data: bytes | memoryview, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The first band (H, W) in the file's own type, and where it has no data (H, W) bool. Raises DataError."""
    read = _read(data, [1], name)
    mask = read.values[0]
    return mask, np.zeros(mask.shape, dtype=bool) if read.missing is None else read.missing[0]


class _Read(NamedTuple):
    """Bands as they are in the file, north up, and what the file says of missing values."""

    values: np.ndarray  # (C, H, W)
    missing: np.ndarray | None  # (C, H, W) bool: no data by tag, mask or alpha, or not finite; None for nowhere
    declares_none: bool  # no tag, mask or alpha at all


def _read(data: bytes | memoryview, bands: list[int], name: str) -> _Read:
    plain = tiff.decode(data, MAX_PIXELS)
    if plain is None or max(bands) > len(plain.values):
        return _read_by_gdal(data, bands, name)
    is_whole = bands == list(range(1, len(plain.values) + 1))
    values = plain.values if is_whole else plain.values[[band - 1 for band in bands]]
    missing = None if plain.nodata is None else values == plain.nodata
    return _Read(values, _not_finite(values, missing), plain.nodata is None)


def _read_by_gdal(data: bytes | memoryview, bands: list[int], name: str) -> _Read:
    with _Opened(bytes(data), name) as dataset:
        if max(bands) > dataset.count:
            raise DataError(f"{name}: has {dataset.count} band(s), channels.bands asks for {bands}")
        values = _call(dataset.read, bands, name)
        missing = np.zeros(values.shape, dtype=bool)
        for row, band in enumerate(bands):
            nodata = dataset.nodatavals[band - 1]
            if nodata is not None:
                missing[row] = values[row] == nodata
        masked = [band for band in dataset.indexes if MaskFlags.per_dataset in dataset.mask_flag_enums[band - 1]]
        if masked:  # one mask for all bands, the alpha band too, which GDAL calls valid everywhere
            missing |= _call(dataset.read_masks, masked[0], name) == 0
        declares_none = all(dataset.mask_flag_enums[band - 1] == [MaskFlags.all_valid] for band in bands)
        flipped = _is_south_up(dataset)
    found = _Read(values, _not_finite(values, missing), declares_none)
    return _Read(values[:, ::-1].copy(), missing[:, ::-1].copy(), declares_none) if flipped else found


def _not_finite(values: np.ndarray, missing: np.ndarray | None) -> np.ndarray | None:
    """Missing too are values that are not finite."""
    if values.dtype.kind != "f":
        return missing
    broken = ~np.isfinite(values)
    return broken if missing is None else np.logical_or(missing, broken, out=missing)


def _all_zero(image: np.ndarray) -> np.ndarray:
    """Where every band is 0, (H, W) bool. Most tiles have no 0 at all, which is soon told."""
    if image.min() > 0:
        return np.zeros(image.shape[1:], dtype=bool)
    zero = image[0] == 0
    for band in image[1:]:
        zero &= band == 0
    return zero


class _Opened:
    """A dataset on bytes in memory, closed in any case; DataError if no tile driver can open them."""

    def __init__(self, data: bytes, name: str) -> None:
        _enter_environment()
        if not data:
            raise DataError(f"{name}: an empty file, 0 bytes")
        self.memory = MemoryFile(data)
        self.name = name

    def __enter__(self) -> DatasetReader:
        try:
            self.dataset = self.memory.open(driver=DRIVERS)
        except RasterioError as error:
            self.memory.close()
            cause = MEMORY_NAME.sub("", str(error))
            raise DataError(f"{self.name}: not a readable tile ({', '.join(DRIVERS)}): {cause}") from error
        if self.dataset.width * self.dataset.height > MAX_PIXELS:
            width, height = self.dataset.width, self.dataset.height
            self.__exit__()
            raise DataError(
                f"{self.name}: {width} x {height} pixels, a tile has at most {MAX_PIXELS}; cut the scene into tiles"
            )
        return self.dataset

    def __exit__(self, *exception: object) -> None:
        self.dataset.close()
        self.memory.close()


def _call(read: Callable[..., np.ndarray], indexes: int | list[int], name: str) -> np.ndarray:
    try:
        return read(indexes)
    except RasterioError as error:
        cause = MEMORY_NAME.sub("", str(error.__cause__ or error))
        raise DataError(f"{name}: damaged, opens but cannot be read: {cause}") from error


def _is_south_up(dataset: DatasetReader) -> bool:
    """A georeferenced file whose first row is the southernmost; its partner may well be north up."""
    return dataset.crs is not None and dataset.transform.e > 0 and not dataset.transform.is_identity


_of_thread = threading.local()


def _enter_environment() -> None:
    """Enter a GDAL environment once a thread and stay in it.

    Outside one, every open builds an AWS session when AWS variables are set: 20 ms instead of 2.
    """
    if not hasattr(_of_thread, "environment"):
        warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # a tile's place is its name
        _of_thread.environment = rasterio.Env(session=DummySession(), GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR")
        _of_thread.environment.__enter__()
