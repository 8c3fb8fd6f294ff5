"""A process that reads batches of tiles into memory it shares with the one that trains. Started by `loader`.

It loads no torch. The memory is of no file and no name (memfd): its size has nothing to do with /dev/shm, and it goes
when both processes have gone, however they end. A batch lies where an earlier one did that is used no more.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from typing import NamedTuple

import numpy as np

from robosat_pink.datasets.reader import ReadRequest, Sample, TileReader, pad
from robosat_pink.errors import RobosatError
from robosat_pink.losses import IGNORE

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # as malloc.h has them


class Layout(NamedTuple):
    """How a batch lies in memory: images (N, H, W, C), then masks (N, H, W) uint8."""

    dtype: str
    shape: tuple[int, int, int, int]  # (N, H, W, C)

    @property
    def image_bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    @property
    def size(self) -> int:
        return self.image_bytes + int(np.prod(self.shape[:3]))

    def arrays(self, memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images (N, C, H, W) and masks (N, H, W) in this memory (at least `size` bytes as uint8)."""
        images = memory[: self.image_bytes].view(self.dtype).reshape(self.shape)
        masks = memory[self.image_bytes : self.size].reshape(self.shape[:3])
        return images.transpose(0, 3, 1, 2), masks


class Packed(NamedTuple):
    """What is to be known of a batch in memory. Samples without a valid pixel are not in it, only counted: `empty`."""

    layout: Layout
    scale: np.ndarray  # (N, C) float32
    symmetry: tuple[int, ...]
    rows: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]  # (H, W) of each, before it was padded
    empty: int
    cached: int  # of all, those that the cache had; the others took two requests each
    fetched_bytes: int
    retries: int
    kinds: dict[str, int]  # what the samples' files say of their bands (`Notes.kind`), and the row of one that does


class Packing:
    """A batch that is being read: samples go to their slot in memory as they come."""

    def __init__(
        self, reader: TileReader, requests: Sequence[ReadRequest], allocate: Callable[[int], np.ndarray]
    ) -> None:
        """`allocate` gives memory of at least so many bytes; what it gave before is void then."""
        self._allocate = allocate
        self._layout: Layout | None = None
        self._samples: list[Sample | None] = [None] * len(requests)
        self._lock = threading.Lock()
        self._readings = reader.begin(requests, self._put)

    def is_read(self, timeout_s: float) -> bool:
        """Whether all samples are there, or have failed; waits so long for them."""
        return not wait(self._readings, timeout_s).not_done

    def finish(self) -> Packed:
        """Waits for all samples. Raises the error of the first in order that could not be read."""
        wait(self._readings)  # of those that fail, too: none shall write into the next batch, or to the disk from it
        for reading in self._readings:
            reading.result()
        samples = [sample for sample in self._samples if sample is not None]
        full = [sample for sample in samples if (sample.mask != IGNORE).any()]
        if len(full) < len(samples) or any(not self._is_in_place(sample) for sample in samples):
            self._pack_anew(full)
        bands = len(samples[0].scale)
        return Packed(
            layout=self._layout if full and self._layout else Layout("uint8", (0, 0, 0, bands)),
            scale=np.stack([sample.scale for sample in full]) if full else np.zeros((0, bands), dtype=np.float32),
            symmetry=tuple(sample.symmetry for sample in full),
            rows=tuple(sample.row for sample in full),
            sizes=tuple(sample.size for sample in full),
            empty=len(samples) - len(full),
            cached=sum(sample.fetched_bytes == 0 for sample in samples),
            fetched_bytes=sum(sample.fetched_bytes for sample in samples),
            retries=sum(sample.retries for sample in samples),
            kinds={sample.notes.kind: sample.row for sample in samples},
        )

    def _put(self, number: int, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """The first to come decides type and size of all; one that has others is kept aside. Where it is now."""
        with self._lock:
            if self._layout is None:
                self._lay_out(sample.image.dtype, len(self._samples), *sample.image.shape)
        if self._is_in_place(sample):
            image, mask = self._images[number], self._masks[number]
            image[:], mask[:] = sample.image, sample.mask
        else:
            image, mask = sample.image.copy(), sample.mask.copy()
        self._samples[number] = sample._replace(image=image, mask=mask)
        return image, mask

    def _is_in_place(self, sample: Sample) -> bool:
        """Whether type and size are those of the places."""
        return sample.image.dtype == self._images.dtype and sample.image.shape == self._images.shape[1:]

    def _lay_out(self, dtype: np.dtype, count: int, bands: int, height: int, width: int) -> None:
        layout = Layout(dtype.str, (count, height, width, bands))
        self._images, self._masks = layout.arrays(self._allocate(layout.size))
        self._layout = layout

    def _pack_anew(self, samples: Sequence[Sample]) -> None:
        """In a type that holds all, padded to the largest, without gaps."""
        if not samples:
            return
        samples = [sample._replace(image=sample.image.copy(), mask=sample.mask.copy()) for sample in samples]
        height, width = (max(sample.mask.shape[axis] for sample in samples) for axis in (0, 1))
        dtype = np.result_type(*(sample.image.dtype for sample in samples))
        dtype = np.dtype(np.float32) if dtype == np.float64 else dtype
        self._lay_out(dtype, len(samples), len(samples[0].image), height, width)
        for number, sample in enumerate(samples):
            self._images[number], self._masks[number] = pad(sample.image, sample.mask, height, width)


class Memory:
    """A slot for one batch at a time, that grows with them."""

    def __init__(self) -> None:
        self.array = np.empty(0, dtype=np.uint8)
        self.file: int | None = None  # of memory that the other process has not been told of

    def allocate(self, size: int) -> np.ndarray:
        if size > len(self.array):
            self.close()
            self.file = os.memfd_create("batch", os.MFD_CLOEXEC)
            os.ftruncate(self.file, size)
            self.array = np.frombuffer(attach(self.file), dtype=np.uint8)
        return self.array

    def close(self) -> None:
        if self.file is not None:
            os.close(self.file)
            self.file = None


def attach(file: int) -> mmap.mmap:
    """All of a memfd, shared with whoever has it."""
    return mmap.mmap(file, os.fstat(file).st_size)


class Reply(NamedTuple):
    """Follows the requests of a batch; if its memory is new, the memfd follows."""

    is_new: bool
    outcome: Packed | BaseException


def serve(reader: TileReader, connection: Connection, environment: dict[str, str]) -> None:
    """The process's life: (slot, requests) in, in turn a `Reply` out; the next are read while one is waited for.

    `environment` is the main process's: the fork server has that of its own start, perhaps without credentials.
    """
    os.environ.update(environment)
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C reaches all, as SIGTERM may (timeout, systemd, Slurm):
        signal.signal(number, signal.SIG_IGN)  # the main process ends its step and then itself, and so this one
    _keep_memory()
    memories: dict[int, Memory] = {}
    begun: queue.Queue[tuple[Memory, Packing | BaseException]] = queue.Queue()
    threading.Thread(target=_reply, args=(connection, begun), daemon=True).start()
    try:
        while True:
            slot, requests = connection.recv()
            memory = memories.setdefault(slot, Memory())
            try:
                begun.put((memory, Packing(reader, requests, memory.allocate)))
            except BaseException as error:
                begun.put((memory, error))
    except (EOFError, OSError):  # the main process has gone, or wants no more
        os._exit(0)


def _keep_memory() -> None:
    """Have the C library keep what is freed, for the next tile: to get megabytes anew costs more than decoding them."""
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_THRESHOLD, 32 << 20)
    library.mallopt(M_TRIM_THRESHOLD, 1 << 30)
    library.mallopt(M_ARENA_MAX, 2)


def _reply(connection: Connection, begun: queue.Queue[tuple[Memory, Packing | BaseException]]) -> None:
    while True:
        memory, packing = begun.get()
        outcome: Packed | BaseException
        try:
            outcome = packing.finish() if isinstance(packing, Packing) else packing
        except BaseException as error:
            outcome = error
        try:
            if isinstance(outcome, BaseException):
                outcome = _for_travel(outcome)
            connection.send(Reply(memory.file is not None, outcome))
            if memory.file is not None:
                send_handle(connection, memory.file, os.getppid())
                memory.close()
        except OSError:  # nobody is there any more
            os._exit(0)
        except BaseException:  # out of memory: a reply that never comes would be waited for
            os._exit(1)


def _for_travel(error: BaseException) -> BaseException:
    """The error as the other process shall raise it; a defect with its traceback, which does not travel itself."""
    if not isinstance(error, RobosatError):
        error.add_note("in a process that reads tiles:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
