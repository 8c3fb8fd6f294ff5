"""From the name of a tile pair to its pixels: kept ones read, others fetched and decoded, then cut to size.

Called by `datasets` and, in processes of their own, by `worker`. Has no index of the tiles and loads no torch, so that
such a process needs little memory; what it is to read, an `Order` tells.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from robosat_pink import rasters
from robosat_pink.cache import TileCache
from robosat_pink.config import ChannelConfig, ClassConfig, class_values
from robosat_pink.errors import DataError
from robosat_pink.explanations import NotFound
from robosat_pink.losses import IGNORE
from robosat_pink.storage import Fetched, Location
from robosat_pink.tiles import version_of

REQUESTS = 32  # in flight, in one process
DECODERS = 5  # threads that decode and read and write the cache, in one process; 3 keep a slow disk less busy
CACHE_VERSION = 3  # to be raised when the same tile would be decoded otherwise, or its entry have another format
AUTO_SCALE = {"uint8": 255.0, "uint16": 10000.0, "int16": 10000.0, "float32": 1.0}
SYMMETRIES = 8  # of the square, the identity included


class Order(NamedTuple):
    """A pair to be read: paths below the two locations, and what the store said of the contents when it listed them."""

    row: int
    image: str
    image_version: int
    mask: str
    mask_version: int
    epoch: int | None  # to draw crop and symmetry for; None: the whole tile


class Sample(NamedTuple):
    image: np.ndarray  # (C, H, W), the tile's own type, 0 where missing
    mask: np.ndarray  # (H, W) uint8, 255 = ignore
    scale: np.ndarray  # (C,) float32, what the numbers are divided by
    symmetry: int  # 0 to 7, to be applied to image and mask together
    row: int
    size: tuple[int, int]  # (H, W) of what is the tile's, before it was padded
    fetched_bytes: int = 0  # so where the cache had it
    retries: int = 0


Use = Callable[[int, Sample], tuple[np.ndarray, np.ndarray] | None]  # as `TileReader.begin` says


class Changed(DataError):
    """A tile is not the one that was listed, or is gone."""


@dataclass
class TileReader:
    """Reads pairs of one experiment; pickles, and makes its threads when first used, once in each process."""

    images: Location
    masks: Location
    channels: tuple[ChannelConfig, ...]
    classes: tuple[ClassConfig, ...]
    tile_size: int
    size_multiple: int
    augmentation: float
    seed: int
    cache: TileCache | None

    def __post_init__(self) -> None:
        self.bands = [band for channel in self.channels for band in channel.bands]
        self.values = class_values(self.classes)
        table = self._look_up(np.arange(1 << 8))  # class by value, of masks of 8 bits
        self._table = table.tobytes()
        self._same = int((table == np.arange(1 << 8)).argmin()) - 1  # up to this value, values are class numbers
        self._threads: tuple[ThreadPoolExecutor, ThreadPoolExecutor] | None = None
        self._process = 0  # that has the threads: a fork of it has none

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_threads": None}

    def begin(self, orders: Sequence[Order], use: Use) -> list[Future[None]]:
        """Read these pairs, all side by side, and call `use(number, sample)` for each as it comes, in any order.

        `use` runs in a decoding thread; the sample's arrays are its until it returns. It may return where it has copied
        image and mask to, and must leave them alone until the future's end: the cache writes them to the disk from
        there. The futures raise what went wrong.
        """
        if self._threads is None or self._process != os.getpid():
            self._process = os.getpid()
            self._threads = ThreadPoolExecutor(REQUESTS, "fetch"), ThreadPoolExecutor(DECODERS, "decode")
        return [self._begin(order, number, use) for number, order in enumerate(orders)]

    def _begin(self, order: Order, number: int, use: Use) -> Future[None]:
        assert self._threads is not None
        fetchers, decoders = self._threads
        done: Future[None] = Future()

        def settle(work: Callable[[], None]) -> None:
            try:
                work()
            except BaseException as error:  # a panic of obstore's, too, which is no Exception
                with contextlib.suppress(InvalidStateError):  # the pair's other file may have failed, too
                    done.set_exception(error)

        def read_kept() -> None:
            assert self.cache is not None
            found = self.cache.get(key)
            if found is None:
                fetch_both()
                return
            use(number, self._prepare(order, *found))
            done.set_result(None)

        def fetch_both() -> None:
            there: dict[str, Fetched] = {}
            lock = threading.Lock()

            def fetch(kind: str, location: Location, path: str, version: int) -> None:
                fetched = _fetch(location, path, version)
                with lock:
                    there[kind] = fetched
                    is_last = len(there) == 2
                if is_last:
                    decoders.submit(settle, lambda: decode(there["image"], there["mask"]))

            fetchers.submit(settle, lambda: fetch("image", self.images, order.image, order.image_version))
            fetchers.submit(settle, lambda: fetch("mask", self.masks, order.mask, order.mask_version))

        def decode(image_file: Fetched, mask_file: Fetched) -> None:
            image, mask = self._decode(order, image_file.content, mask_file.content)
            sample = self._prepare(order, image, mask)
            fetched_bytes = len(image_file.content) + len(mask_file.content)
            retries = image_file.retries + mask_file.retries
            used = use(number, sample._replace(fetched_bytes=fetched_bytes, retries=retries))
            if self.cache:
                is_whole = sample.image is image and sample.mask is mask
                self.cache.put(key, *(used if used and is_whole else (image, mask)))
            done.set_result(None)

        key = self._cache_key(order) if self.cache else ""
        if self.cache and self.cache.has(key):
            decoders.submit(settle, read_kept)
        else:
            fetch_both()
        return done

    def _decode(self, order: Order, image_file: memoryview, mask_file: memoryview) -> tuple[np.ndarray, np.ndarray]:
        """image (C, H, W) and mask (H, W) uint8 with every ignored pixel at 255."""
        image_name, mask_name = f"{self.images}/{order.image}", f"{self.masks}/{order.mask}"
        image, no_image = rasters.read_image(image_file, self.bands, image_name)
        values, no_mask = rasters.read_mask(mask_file, mask_name)
        if no_image.shape != values.shape:
            raise DataError(
                f"{mask_name}: {values.shape[1]} x {values.shape[0]} pixels, but its image {image_name} has "
                f"{no_image.shape[1]} x {no_image.shape[0]}"
            )
        mask = self._classes_of(values, no_mask, mask_name)
        mask[no_image] = IGNORE
        return image, mask

    def _classes_of(self, values: np.ndarray, missing: np.ndarray, name: str) -> np.ndarray:
        """Class numbers (H, W) uint8 from mask values; DataError for a value that no class lists."""
        if values.dtype == np.uint8 and values.max(initial=0) <= self._same:
            mask = values.copy()
            mask[missing] = IGNORE
            return mask
        if values.dtype == np.uint8:
            looked_up = bytearray(np.ascontiguousarray(values)).translate(self._table)  # 5 times faster than by indices
            mask = np.frombuffer(looked_up, dtype=np.uint8).reshape(values.shape)
        else:
            mask = self._look_up(values)
        is_unlisted = mask == IGNORE
        if is_unlisted.any() and len(unlisted := values[is_unlisted & ~missing]):
            accepted = sorted(value for listed in self.values for value in listed)
            background = "0 (background), " if len(self.classes) == 1 else ""
            raise DataError(
                f"{name}: mask value {np.unique(unlisted)[0]} in {len(unlisted)} pixel(s); accepted: {background}"
                f"{', '.join(map(str, accepted))}; add it to classes[].values, or declare it as the file's nodata"
            )
        mask[missing] = IGNORE
        return mask

    def _look_up(self, values: np.ndarray) -> np.ndarray:
        """Class numbers, uint8 in the shape of the values; IGNORE for one that no class lists."""
        numbers = np.full(values.shape, IGNORE, dtype=np.uint8)
        if len(self.classes) == 1:
            numbers[values == 0] = 0
        for number, listed in enumerate(self.values):
            numbers[np.isin(values, listed)] = number + (len(self.classes) == 1)
        return numbers

    def _prepare(self, order: Order, image: np.ndarray, mask: np.ndarray) -> Sample:
        symmetry = 0
        if order.epoch is not None:
            random = np.random.default_rng((self.seed, order.epoch, order.row))
            if random.random() < self.augmentation:
                symmetry = int(random.integers(1, SYMMETRIES))
            image, mask = _crop(image, mask, self.tile_size, random)
            height = width = self.tile_size
        else:
            height, width = (-(-size // self.size_multiple) * self.size_multiple for size in mask.shape)
        size = (mask.shape[0], mask.shape[1])
        image, mask = pad(image, mask, height, width)
        return Sample(image, mask, scales_of(self.channels, image.dtype, order.image), symmetry, order.row, size)

    def _cache_key(self, order: Order) -> str:
        """Differs where anything differs that decides about the decoded pair."""
        images, masks = self.images, self.masks
        parts = [
            *(CACHE_VERSION, self.bands, [list(values) for values in self.values], len(self.classes)),
            [images.endpoint_url, images.bucket, images.path, order.image, order.image_version],
            [masks.endpoint_url, masks.bucket, masks.path, order.mask, order.mask_version],
        ]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def scales_of(channels: Sequence[ChannelConfig], dtype: np.dtype, name: str) -> np.ndarray:
    """What the numbers of each selected band are divided by, (C,) float32, in an image of this type and name."""
    scales: list[float] = []
    for channel in channels:
        if isinstance(channel.scale, int | float):
            scale = channel.scale
        elif channel.scale == "raw":
            scale = 1.0
        elif dtype.name in AUTO_SCALE:
            scale = AUTO_SCALE[dtype.name]
        else:
            raise DataError(
                f"{name}: channels[].scale: auto knows {', '.join(AUTO_SCALE)}, not {dtype.name}; set a number"
            )
        scales += [scale] * len(channel.bands)
    return np.array(scales, dtype=np.float32)


def _fetch(location: Location, path: str, version: int) -> Fetched:
    """The file, by one GET. Changed where it is gone or not the one that was listed: no run shall see two of a tile."""
    try:
        fetched = location.fetch(path)
    except NotFound as error:
        raise Changed(f"{error}. It was there when listed; start again to train on today's tiles") from error
    if version_of(fetched.file.etag, fetched.file.size) != version:
        raise Changed(f"{location}/{path}: has changed since it was listed; start again to train on today's tiles")
    return fetched


def _crop(image: np.ndarray, mask: np.ndarray, size: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random window of at most `size` x `size`, with a valid pixel in it if the tile has one."""
    height, width = mask.shape
    if height <= size and width <= size:
        return image, mask

    def window(top: int, left: int) -> tuple[slice, slice]:
        return slice(top, top + size), slice(left, left + size)

    rows, columns = max(height - size, 0), max(width - size, 0)
    place = window(int(random.integers(rows + 1)), int(random.integers(columns + 1)))
    if not (mask[place] != IGNORE).any() and (mask != IGNORE).any():
        valid = np.argwhere(mask != IGNORE)
        y, x = valid[random.integers(len(valid))].tolist()
        top = int(random.integers(max(y - size + 1, 0), min(y, rows) + 1))
        left = int(random.integers(max(x - size + 1, 0), min(x, columns) + 1))
        place = window(top, left)
    return image[:, *place], mask[place]


def pad(image: np.ndarray, mask: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Grow to the right and below: zeros in the image, ignored in the mask."""
    below, right = height - mask.shape[0], width - mask.shape[1]
    if not below and not right:
        return image, mask
    return (
        np.pad(image, ((0, 0), (0, below), (0, right))),
        np.pad(mask, ((0, below), (0, right)), constant_values=IGNORE),
    )
