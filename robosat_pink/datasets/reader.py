"""From the name of a tile pair to its pixels: kept ones read, others fetched and decoded, then cut to size.

Called by `datasets` and, in processes of their own, by `worker`. Has no index of the tiles and loads no torch, so that
such a process needs little memory; what it is to read, a `ReadRequest` tells.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from robosat_pink.config import ChannelConfig, ClassConfig
from robosat_pink.datasets import tile_file
from robosat_pink.datasets.cache import TileCache
from robosat_pink.datasets.file_names import LARGEST
from robosat_pink.datasets.normalisation import scales_of
from robosat_pink.datasets.pair_decoder import Decoded, Notes, PairDecoder
from robosat_pink.datasets.rasters import decode
from robosat_pink.datasets.rasters.decode import Missing, Raster
from robosat_pink.datasets.tile_file import Entry, TileFile
from robosat_pink.losses import IGNORE
from robosat_pink.storage import Location

REQUESTS = 32  # in flight, in one process
DECODERS = 5  # threads that decode and read and write the cache, in one process; 3 keep a slow disk less busy
CACHE_VERSION = 4  # to be raised when the same tile would be decoded otherwise, or its entry have another format
SYMMETRIES = 8  # of the square, the identity included
FETCH, DECODE = 0, 1  # the two pools of threads


class ReadRequest(NamedTuple):
    """A pair to be read: paths below the two locations, and what the store said of the contents when it listed them."""

    row: int
    image: str
    image_version: int
    mask: str
    mask_version: int
    epoch: int | None  # to draw crop and symmetry for; None: the whole tile
    image_size: int = LARGEST  # bytes
    image_modified: int = 0  # seconds since 1970
    mask_size: int = LARGEST
    mask_modified: int = 0
    image_sidecars: int = 0  # a bit for each of names.SIDECARS
    mask_sidecars: int = 0

    @property
    def entries(self) -> tuple[Entry, Entry]:
        """Of image and mask."""
        return (
            Entry(self.image, self.image_version, self.image_size, self.image_modified, self.image_sidecars),
            Entry(self.mask, self.mask_version, self.mask_size, self.mask_modified, self.mask_sidecars),
        )


class Sample(NamedTuple):
    image: np.ndarray  # (C, H, W), the tile's own type, 0 where missing
    mask: np.ndarray  # (H, W) uint8, 255 = ignore
    scale: np.ndarray  # (C,) float32, what the numbers are divided by
    symmetry: int  # 0 to 7, to be applied to image and mask together
    row: int
    size: tuple[int, int]  # (H, W) of what is the tile's, before it was padded
    notes: Notes
    fetched_bytes: int = 0  # so where the cache had it
    retries: int = 0


Use = Callable[[int, Sample], tuple[np.ndarray, np.ndarray] | None]  # as `TileReader.begin` says


@dataclass
class Reading:
    """A pair on its way: its two files as they come, and its end."""

    request: ReadRequest
    number: int  # among those that were begun together
    use: Use
    key: str  # in the cache; empty where it is not to be kept
    done: Future[None] = field(default_factory=Future)
    files: dict[int, TileFile] = field(default_factory=dict)  # 0: the image's, 1: the mask's
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, side: int, file: TileFile) -> bool:
        """Whether both are there now."""
        with self.lock:
            self.files[side] = file
            return len(self.files) == 2

    def fail(self, error: BaseException) -> None:
        with contextlib.suppress(InvalidStateError):  # the pair's other file may have failed, too
            self.done.set_exception(error)


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
    missing: Missing = "auto"
    ignored: tuple[int, ...] = ()
    is_listed_here: bool = True  # by this host, so that a folder's files have the times that were listed

    def __post_init__(self) -> None:
        self.decoder = PairDecoder(self.channels, self.classes, self.missing, self.ignored)
        self.bands = self.decoder.bands
        # Numbers of 8 and 16 bits that one number divides are hardly alike.
        self._differs_by_type = any(channel.scale not in ("auto", "tags") for channel in self.channels)
        self._threads: tuple[ThreadPoolExecutor, ThreadPoolExecutor] | None = None
        self._process = 0  # that has the threads: a fork of it has none

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_threads": None}

    def begin(self, requests: Sequence[ReadRequest], use: Use) -> list[Future[None]]:
        """Read these pairs, all side by side, and call `use(number, sample)` for each as it comes, in any order.

        `use` runs in a decoding thread; the sample's arrays are its until it returns. It may return where it has copied
        image and mask to, and must leave them alone until the future's end: the cache writes them to the disk from
        there. The futures raise what went wrong.
        """
        if self._threads is None or self._process != os.getpid():
            self._process = os.getpid()
            self._threads = ThreadPoolExecutor(REQUESTS, "fetch"), ThreadPoolExecutor(DECODERS, "decode")
        return [self._begin(request, number, use) for number, request in enumerate(requests)]

    def read_masks(self, requests: Sequence[ReadRequest]) -> Iterator[Raster]:
        """The mask files of pairs as they are, in order, fetched in any case and side by side."""
        pool = ThreadPoolExecutor(DECODERS)
        try:
            yield from pool.map(self._read_mask, requests)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _read_mask(self, request: ReadRequest) -> Raster:
        file = tile_file.read(self.masks, request.entries[1], self.is_listed_here)
        return decode.read_mask(file.content, f"{self.masks}/{request.mask}", file.sidecars)

    def _begin(self, request: ReadRequest, number: int, use: Use) -> Future[None]:
        """Fetch, decode, prepare, deliver; or deliver what the cache has."""
        has_sidecars = request.image_sidecars or request.mask_sidecars  # which may change without their tile
        key = self._cache_key(request) if self.cache and not has_sidecars else ""
        reading = Reading(request, number, use, key)
        if self.cache and key and self.cache.has(key):
            self._submit(DECODE, reading, self._deliver_kept)
        else:
            self._fetch_both(reading)
        return reading.done

    def _submit(self, pool: int, reading: Reading, work: Callable[..., None], *arguments: Any) -> None:
        """Have a thread do a part of the work; what it raises is the reading's end."""

        def settle() -> None:
            try:
                work(reading, *arguments)
            except BaseException as error:  # a panic of obstore's, too, which is no Exception
                reading.fail(error)

        assert self._threads is not None
        self._threads[pool].submit(settle)

    def _deliver_kept(self, reading: Reading) -> None:
        assert self.cache is not None
        found = self.cache.get(reading.key)
        if found is None:
            self._fetch_both(reading)
            return
        image, mask, notes = found
        decoded = Decoded(image, mask, Notes(*json.loads(notes)))
        reading.use(reading.number, self._prepare(reading.request, decoded))
        reading.done.set_result(None)

    def _fetch_both(self, reading: Reading) -> None:
        for side in (0, 1):
            self._submit(FETCH, reading, self._fetch, side)

    def _fetch(self, reading: Reading, side: int) -> None:
        location = (self.images, self.masks)[side]
        if reading.add(side, tile_file.read(location, reading.request.entries[side], self.is_listed_here)):
            self._submit(DECODE, reading, self._deliver)

    def _deliver(self, reading: Reading) -> None:
        request, (image_file, mask_file) = reading.request, (reading.files[0], reading.files[1])
        decoded = self.decoder.decode(
            *(image_file.content, mask_file.content, f"{self.images}/{request.image}", f"{self.masks}/{request.mask}"),
            *(image_file.sidecars, mask_file.sidecars),
        )
        sample = self._prepare(request, decoded)
        fetched_bytes = image_file.fetched_bytes + mask_file.fetched_bytes
        retries = image_file.retries + mask_file.retries
        used = reading.use(reading.number, sample._replace(fetched_bytes=fetched_bytes, retries=retries))
        if self.cache and reading.key:
            is_whole = sample.image is decoded.image and sample.mask is decoded.mask
            image, mask = used if used and is_whole else decoded[:2]
            self.cache.put(reading.key, image, mask, json.dumps(decoded.notes, ensure_ascii=False))
        reading.done.set_result(None)

    def _prepare(self, request: ReadRequest, decoded: Decoded) -> Sample:
        image, mask, notes = decoded
        if self._differs_by_type:
            notes = notes._replace(kind=f"{notes.dtype}; {notes.kind}")
        symmetry = 0
        if request.epoch is not None:
            random = np.random.default_rng((self.seed, request.epoch, request.row))
            if random.random() < self.augmentation:
                symmetry = int(random.integers(1, SYMMETRIES))
            image, mask = _crop(image, mask, self.tile_size, random)
            height = width = self.tile_size
        else:
            height, width = (-(-size // self.size_multiple) * self.size_multiple for size in mask.shape)
        size = (mask.shape[0], mask.shape[1])
        image, mask = pad(image, mask, height, width)
        scale = scales_of(self.channels, notes.dtype, request.image)
        return Sample(image, mask, scale, symmetry, request.row, size, notes)

    def _cache_key(self, request: ReadRequest) -> str:
        """Differs where anything differs that decides about the decoded pair."""
        parts = [
            *(CACHE_VERSION, self.decoder.settings),
            *(
                [location.endpoint_url, location.bucket, location.path, *entry[:4]]
                for location, entry in zip((self.images, self.masks), request.entries, strict=True)
            ),
        ]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


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
