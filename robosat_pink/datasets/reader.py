"""Reads the pixels of tile pairs: fetches and decodes a pair, or takes it from the cache, then crops or pads it.

Called by `pairs`, `packing` and `coverage`; by `images` and `neighbours`, for images without masks. It has no index of
the tiles and loads no torch, so that worker processes need little memory; a `ReadRequest` contains all that it needs to
know about a pair.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from robosat_pink.config import ChannelConfig, ClassConfig
from robosat_pink.datasets import tile_file
from robosat_pink.datasets.cache import TileCache
from robosat_pink.datasets.cropping import pad, random_crop
from robosat_pink.datasets.file_names import LARGEST
from robosat_pink.datasets.normalisation import scales_of
from robosat_pink.datasets.pair_decoder import Decoded, Notes, PairDecoder
from robosat_pink.datasets.rasters import decode
from robosat_pink.datasets.rasters.decode import Raster
from robosat_pink.datasets.rasters.selected_bands import Missing
from robosat_pink.datasets.tile_file import Entry, TileFile
from robosat_pink.storage import Location

REQUESTS = 32  # requests in flight per process
DECODERS = 5  # threads per process that decode, and read and write the cache; with 3, a slow disk idles more
CACHE_VERSION = 4  # must be raised when decoding or the format of entries changes
SYMMETRIES = 8  # symmetries of the square, the identity included


class ReadRequest(NamedTuple):
    """A pair to read: paths below the two locations, and the files' metadata from the listing. An image has no mask."""

    row: int
    image: str
    image_version: int  # a number for the file's ETag in the listing
    mask: str  # "" if the reader has no masks
    mask_version: int
    epoch: int | None  # the epoch for which crop and symmetry are drawn; None: the whole tile
    repeat: int = 0  # how many crops of this tile the epoch has had before
    image_size: int = LARGEST  # bytes
    image_modified: int = 0  # seconds since 1970
    mask_size: int = LARGEST
    mask_modified: int = 0
    image_sidecars: int = 0  # a bit for each of file_names.SIDECARS
    mask_sidecars: int = 0

    @property
    def image_entry(self) -> Entry:
        return Entry(self.image, self.image_version, self.image_size, self.image_modified, self.image_sidecars)

    @property
    def mask_entry(self) -> Entry:
        return Entry(self.mask, self.mask_version, self.mask_size, self.mask_modified, self.mask_sidecars)


class Sample(NamedTuple):
    image: np.ndarray  # (C, H, W), the tile's own dtype, 0 where missing
    mask: np.ndarray  # (H, W) uint8, 255 = ignore; without masks, 0 where the image has data
    scale: np.ndarray  # (C,) float32, divisor of each band's numbers
    symmetry: int  # 0 to 7, to be applied to image and mask together
    row: int
    size: tuple[int, int]  # (H, W) of the tile or its crop, before padding
    notes: Notes
    fetched_bytes: int = 0  # 0 for a pair from the cache
    retries: int = 0


OnSample = Callable[[int, Sample], tuple[np.ndarray, np.ndarray] | None]  # see `TileReader.begin`
Side = Literal["image", "mask"]


@dataclass
class Reading:
    """A pair that is being read: its two files as they arrive, and a future for its end, which may be cancelled."""

    request: ReadRequest
    slot: int  # position among the requests that were begun together
    on_sample: OnSample
    cache_key: str  # empty for a pair that is not cached
    num_files: int  # 2 for a pair, 1 for an image alone
    done: Future[None] = field(default_factory=Future)
    files: dict[Side, TileFile] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, side: Side, file: TileFile) -> bool:
        """Add a file. Returns whether all files have arrived."""
        with self.lock:
            self.files[side] = file
            return len(self.files) == self.num_files

    def fail(self, error: BaseException) -> None:
        with contextlib.suppress(InvalidStateError):  # the pair's other file may have failed, too; or it was cancelled
            self.done.set_exception(error)


@dataclass
class TileReader:
    """Reads pairs of one experiment. It can be pickled, and starts its threads on first use in each process.

    Without `masks` it reads images alone, whose samples have a mask of 0, and 255 where the image has no data.
    """

    images: Location
    masks: Location | None
    channels: tuple[ChannelConfig, ...]
    classes: tuple[ClassConfig, ...]
    tile_size: int
    size_multiple: int
    augmentation: float
    seed: int
    cache: TileCache | None
    missing: Missing = "auto"
    ignored: tuple[int, ...] = ()
    is_listed_here: bool = True  # False with several hosts, where a folder's files may have other times

    def __post_init__(self) -> None:
        self.decoder = PairDecoder(self.channels, self.classes, self.missing, self.ignored)
        self.bands = self.decoder.bands
        # With one scale for all dtypes, images of 8 and of 16 bits hardly have comparable values.
        self._differs_by_type = any(channel.scale not in ("auto", "tags") for channel in self.channels)
        self._fetchers: ThreadPoolExecutor | None = None
        self._decoders: ThreadPoolExecutor | None = None
        self._process = 0  # id of the process that has the threads: a fork of it has none

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_fetchers": None, "_decoders": None}

    def begin(self, requests: Sequence[ReadRequest], on_sample: OnSample) -> list[Future[None]]:
        """Read these pairs concurrently, and call `on_sample(slot, sample)` for each as it arrives, in any order.

        `on_sample` runs in a decoding thread, and may use the sample's arrays until it returns. It may return copies of
        image and mask, from which the cache then writes to the disk; they must not change until the future is done.
        Returns one future per request, which raises the error if the pair cannot be read. Cancelling it ends the
        reading, except for a request or a decoding in progress.
        """
        if self._fetchers is None or self._process != os.getpid():
            self._process = os.getpid()
            self._fetchers = ThreadPoolExecutor(REQUESTS, "fetch")
            self._decoders = ThreadPoolExecutor(DECODERS, "decode")
        return [self._begin(slot, request, on_sample) for slot, request in enumerate(requests)]

    def read(self, requests: Sequence[ReadRequest]) -> list[Sample]:
        """Read these pairs concurrently. Returns their samples in order."""
        samples: dict[int, Sample] = {}

        def keep(slot: int, sample: Sample) -> None:
            samples[slot] = sample._replace(image=sample.image.copy("K"), mask=sample.mask.copy())

        for reading in self.begin(requests, keep):
            reading.result()
        return [samples[slot] for slot in range(len(requests))]

    def read_masks(self, requests: Sequence[ReadRequest]) -> Iterator[Raster]:
        """The pairs' masks in order, with their files' raw values; fetched concurrently, not from the cache."""
        pool = ThreadPoolExecutor(DECODERS)
        try:
            yield from pool.map(self._read_mask, requests)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _read_mask(self, request: ReadRequest) -> Raster:
        assert self.masks is not None
        file = tile_file.read(self.masks, request.mask_entry, self.is_listed_here)
        return decode.read_mask(file.content, f"{self.masks}/{request.mask}", file.sidecars)

    def _begin(self, slot: int, request: ReadRequest, on_sample: OnSample) -> Future[None]:
        has_sidecars = request.image_sidecars or request.mask_sidecars  # these may change without their tile
        cache_key = self._cache_key(request) if self.cache and not has_sidecars else ""
        reading = Reading(request, slot, on_sample, cache_key, 2 if self.masks else 1)
        if self.cache and cache_key and self.cache.has(cache_key):
            self._submit(self._decoders, reading, self._deliver_cached)
        else:
            self._fetch_files(reading)
        return reading.done

    def _submit(
        self, threads: ThreadPoolExecutor | None, reading: Reading, step: Callable[..., None], *arguments: Any
    ) -> None:
        assert threads is not None
        threads.submit(_run, reading, step, *arguments)

    def _deliver_cached(self, reading: Reading) -> None:
        assert self.cache is not None
        entry = self.cache.get(reading.cache_key)
        if entry is None:  # damaged, or evicted a moment ago
            self._fetch_files(reading)
            return
        image, mask, notes = entry
        sample = self._prepare(reading.request, Decoded(image, mask, Notes(*json.loads(notes))))
        reading.on_sample(reading.slot, sample)
        reading.done.set_result(None)

    def _fetch_files(self, reading: Reading) -> None:
        self._submit(self._fetchers, reading, self._fetch, "image", self.images, reading.request.image_entry)
        if self.masks:
            self._submit(self._fetchers, reading, self._fetch, "mask", self.masks, reading.request.mask_entry)

    def _fetch(self, reading: Reading, side: Side, location: Location, entry: Entry) -> None:
        if reading.add(side, tile_file.read(location, entry, self.is_listed_here)):
            self._submit(self._decoders, reading, self._deliver_fetched)

    def _deliver_fetched(self, reading: Reading) -> None:
        files = reading.files
        decoded = self._decode(reading.request, files["image"], files.get("mask"))
        sample = self._prepare(reading.request, decoded)._replace(
            fetched_bytes=sum(file.fetched_bytes for file in files.values()),
            retries=sum(file.retries for file in files.values()),
        )
        copies = reading.on_sample(reading.slot, sample)
        if self.cache and reading.cache_key:
            # The copies may fill whole pages, which are written without copying; a crop's are not the whole pair.
            is_whole = sample.image is decoded.image and sample.mask is decoded.mask
            image, mask = copies if copies and is_whole else (decoded.image, decoded.mask)
            self.cache.put(reading.cache_key, image, mask, json.dumps(decoded.notes, ensure_ascii=False))
        reading.done.set_result(None)

    def _decode(self, request: ReadRequest, image_file: TileFile, mask_file: TileFile | None) -> Decoded:
        if mask_file is None:
            name = f"{self.images}/{request.image}"
            return self.decoder.decode_image(image_file.content, name, image_file.sidecars)
        return self.decoder.decode(
            image_file.content,
            mask_file.content,
            f"{self.images}/{request.image}",
            f"{self.masks}/{request.mask}",
            image_file.sidecars,
            mask_file.sidecars,
        )

    def _prepare(self, request: ReadRequest, decoded: Decoded) -> Sample:
        """Crop the pair and draw its symmetry, for `transforms` to apply; without an epoch, pad the whole tile."""
        image, mask, notes = decoded
        if self._differs_by_type:
            notes = notes._replace(kind=f"{notes.dtype}; {notes.kind}")
        symmetry = 0
        if request.epoch is not None:
            repeat = (request.repeat,) if request.repeat else ()
            random = np.random.default_rng((self.seed, request.epoch, request.row, *repeat))
            if random.random() < self.augmentation:
                symmetry = int(random.integers(1, SYMMETRIES))
            image, mask = random_crop(image, mask, self.tile_size, random)
            height = width = self.tile_size
        else:
            height, width = (math.ceil(side / self.size_multiple) * self.size_multiple for side in mask.shape)
        size = (mask.shape[0], mask.shape[1])
        image, mask = pad(image, mask, height, width)
        scale = scales_of(self.channels, notes.dtype, request.image)
        return Sample(image, mask, scale, symmetry, request.row, size, notes)

    def _cache_key(self, request: ReadRequest) -> str:
        """A digest of everything that determines the decoded pair."""
        files = [(self.images, request.image_entry)]
        if self.masks:
            files.append((self.masks, request.mask_entry))
        content: list[object] = [CACHE_VERSION, self.decoder.settings]
        for location, entry in files:
            content.append([location.endpoint_url, location.bucket, location.path, *entry[:4]])
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def _run(reading: Reading, step: Callable[..., None], *arguments: Any) -> None:
    """Run a step of a reading in a thread. An error ends the reading: its future raises it."""
    if reading.done.cancelled():
        return
    try:
        step(reading, *arguments)
    except BaseException as error:  # including obstore's panics, which do not derive from Exception
        reading.fail(error)
