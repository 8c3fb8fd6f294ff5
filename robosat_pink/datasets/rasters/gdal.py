"""Opens bytes in memory with GDAL, with allowed drivers only, and within limits. Called by `gdal_bands`."""

from __future__ import annotations

import logging
import math
import re
import threading
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import rasterio
from rasterio.enums import Interleaving
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, MemoryFile
from rasterio.session import DummySession

from robosat_pink.container import quantities
from robosat_pink.errors import DataError

MEMORY_NAME = re.compile(r"'?(/vsimem/)?[-0-9a-f/]{36,}(\.\w+)?'?(, |: | )?")  # GDAL's names for bytes in memory
MAX_PIXELS = 4096 * 4096  # a tile, not a scene; 4 bands of uint16 at this size take 128 MiB
# Limit for all bands decoded, and for one strip or internal tile, whose size a header may declare freely.
MAX_BYTES = 1 << 30
MAX_CHUNKS = 1 << 18  # strips or internal tiles
WAY_OUT = "copy it again or remove it"


class Damaged(DataError):
    """A tile's file is empty, cut short or otherwise unreadable; its neighbours may be whole."""


class Opened:
    """A context with a dataset on bytes in memory. Raises Damaged if no driver can open it, DataError if too large."""

    def __init__(self, data: bytes, name: str, drivers: Sequence[str]) -> None:
        enter_environment()
        if not data:
            raise Damaged(f"{name}: an empty file, 0 bytes; {WAY_OUT}")
        self.memory = MemoryFile(data)
        self.name = name
        self.drivers = list(drivers)

    def __enter__(self) -> DatasetReader:
        try:
            self.dataset = self.memory.open(driver=self.drivers)
        except RasterioError as error:
            self.memory.close()
            cause = MEMORY_NAME.sub("", str(error))
            what = f"not a readable tile ({', '.join(self.drivers)})"
            raise Damaged(
                f"{self.name}: {what}: damaged, cut short or of another format; {WAY_OUT}: {cause}"
            ) from error
        if excess := _excess(self.dataset):
            self.__exit__()
            raise DataError(f"{self.name}: {excess}; write it again as smaller tiles (gdal_translate)")
        return self.dataset

    def __exit__(self, *exception: object) -> None:
        self.dataset.close()
        self.memory.close()


def _excess(dataset: DatasetReader) -> str:
    """Which limit the dataset exceeds, judged only by its header; empty if none."""
    width, height, count = dataset.width, dataset.height, dataset.count
    if width * height > MAX_PIXELS:
        return f"{width} x {height} pixels, a tile has at most {MAX_PIXELS}"
    size = max(np.dtype(dtype).itemsize for dtype in dataset.dtypes)
    rows, columns = dataset.block_shapes[0]
    is_planar = dataset.interleaving == Interleaving.band
    chunk = rows * columns * size * (1 if is_planar else count)
    if max(chunk, width * height * count * size) > MAX_BYTES:
        what = f"{count} bands of {width} x {height} pixels in pieces of {columns} x {rows}"
        return f"{what}, which take more than {quantities.size(MAX_BYTES)} decoded"
    chunks = math.ceil(width / columns) * math.ceil(height / rows) * (count if is_planar else 1)
    if chunks > MAX_CHUNKS:
        return f"{chunks} strips or internal tiles, a tile has at most {MAX_CHUNKS}"
    return ""


def call(read: Callable[..., np.ndarray], indexes: int | list[int], name: str) -> np.ndarray:
    try:
        return read(indexes)
    except RasterioError as error:
        cause = MEMORY_NAME.sub("", str(error.__cause__ or error))
        raise Damaged(f"{name}: damaged, opens but cannot be read; {WAY_OUT}: {cause}") from error


_of_thread = threading.local()


def enter_environment() -> None:
    """Enter a GDAL environment once per thread, and stay in it.

    Outside one, every open builds an AWS session when AWS variables are set: 20 ms instead of 2.
    """
    if not hasattr(_of_thread, "environment"):
        logging.getLogger("rasterio").setLevel(logging.WARNING)  # at INFO, it repeats errors, by names in memory
        warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # a tile's name says where it is
        _of_thread.environment = rasterio.Env(
            session=DummySession(),
            GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR",
            GDAL_PNG_WHOLE_IMAGE_OPTIM="NO",  # "YES" fills a truncated PNG with whatever was in memory
        )
        _of_thread.environment.__enter__()
