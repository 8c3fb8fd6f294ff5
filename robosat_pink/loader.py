"""Batches of tile pairs, read and decoded by worker processes while the network computes. Called by `loop`."""

from __future__ import annotations

import itertools
import logging
import mmap
import multiprocessing
import os
import signal
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.reduction import recv_handle
from multiprocessing.util import Finalize
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from robosat_pink import machine, worker
from robosat_pink.datasets import Draw, TilePairs
from robosat_pink.errors import RobosatError
from robosat_pink.launch import ALONE, Place
from robosat_pink.reader import REQUESTS, Order, TileReader
from robosat_pink.worker import Packed, Packing

log = logging.getLogger(__name__)

MEMORY_SHARE = 0.25  # of the machine's, for batches under way
INTERRUPT_S = 0.5  # how often a wait is interrupted
# Batches a worker reads before they are asked for; more, if they are small, so that twice its requests are to be made.
LEAST_AHEAD = 2


def worker_count(setting: int | Literal["auto"], on_gpu: bool, batch_bytes: int = 0, sharers: int = 1) -> int:
    """Worker processes: on a CPU the network needs the cores itself, beside a GPU they are the workers'.

    No more than have room for the batches that each of them reads ahead, where so many processes share the machine.
    """
    if setting != "auto":
        return setting
    cores = machine.cpu_count() // sharers
    fitting = int(MEMORY_SHARE * machine.memory_bytes()) // max((LEAST_AHEAD + 2) * batch_bytes * sharers, 1)
    return max(min(cores - 1, 8 if on_gpu else 1, max(fitting, 1)), 0)


def bytes_of_a_batch(tiles: TilePairs, batch_size: int) -> int:
    """Of training, in float32 at most, and the masks."""
    reader = tiles.reader
    return batch_size * reader.tile_size**2 * (4 * len(reader.bands) + 1)


class Batch(NamedTuple):
    """Samples that have at least one valid pixel; `rows` tells which, `empty` how many had none.

    `cached` of all came from the cache; the others took two requests each, `retries` more together, and
    `fetched_bytes`. The tensors are views of memory that is used again when the last of them is gone, not before.
    """

    image: Tensor  # (N, C, H, W), in memory (N, H, W, C)
    mask: Tensor  # (N, H, W) uint8
    scale: Tensor  # (N, C) float32
    symmetry: tuple[int, ...]
    rows: tuple[int, ...]
    empty: int
    cached: int
    fetched_bytes: int
    retries: int

    def __len__(self) -> int:
        return len(self.rows)


NO_TILES = Batch(torch.empty(0), torch.empty(0), torch.empty(0), (), (), 0, 0, 0, 0)


def batch_in(memory: np.ndarray, packed: Packed) -> Batch:
    images, masks = packed.layout.arrays(memory)
    return Batch(torch.from_numpy(images), torch.from_numpy(masks), torch.from_numpy(packed.scale), *packed[2:])


class TileLoader:
    """Batches of a TilePairs, in training and in evaluation order, by one set of worker processes.

    Batches go to the workers in turn, each of which reads several ahead. Without workers, threads of this process read.
    Of several processes that train together each has a loader, which gives its share of every batch, or NO_TILES.
    """

    def __init__(
        self,
        tiles: TilePairs,
        batch_size: int,
        workers: int,
        pin_memory: bool = False,
        interrupt: Callable[[], None] = lambda: None,
        place: Place = ALONE,
    ) -> None:
        """`interrupt` is called now and then while a batch is waited for, and may raise: a store may be silent.

        `batch_size` is that of all processes together.
        """
        self.tiles = tiles
        self.batch_size, self.place = batch_size, place
        batch_bytes = bytes_of_a_batch(tiles, -(-batch_size // place.size))
        fitting = int(MEMORY_SHARE * machine.memory_bytes()) // (max(workers, 1) * place.local_size * batch_bytes) - 2
        self._ahead = max(LEAST_AHEAD, min(-(-REQUESTS // batch_size), fitting))
        log.info(
            "loader: %d worker(s), each reads %d batches of up to %.1f MB ahead, %d requests at a time",
            *(workers, self._ahead, batch_bytes / 1e6, REQUESTS),
        )
        self._sources: list[Source] = (
            [Worker(tiles.reader, pin_memory, interrupt) for _ in range(workers)]
            if workers
            else [ThisProcess(tiles.reader, interrupt)]
        )

    def training(self, rows: np.ndarray, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Every row once, in an order drawn from (seed, epoch), cropped and with symmetries; from a later batch on."""
        order = self._shuffled(rows, epoch)[first_batch * self.batch_size :]
        return self._iterate([Draw(row, epoch) for row in each] for each in self._shares(order))

    def evaluation(self, rows: np.ndarray) -> Iterator[Batch]:
        """Every row once, in order: whole tiles, not augmented, none dropped for the last batch's sake."""
        return self._iterate(self._shares(rows))

    def rows_of(self, rows: np.ndarray, epoch: int, batch: int) -> list[int]:
        """The rows of a batch of training, those of all processes."""
        found = self._shuffled(rows, epoch)[batch * self.batch_size :][: self.batch_size]
        return [int(row) for row in found]

    def close(self) -> None:
        """End the worker processes."""
        for source in self._sources:
            source.close()

    def num_batches(self, rows: np.ndarray) -> int:
        return -(-len(rows) // self.batch_size)

    def _shuffled(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.tiles.seed, epoch)).permutation(rows)

    def _shares(self, rows: np.ndarray) -> Iterator[list[int]]:
        """Of each batch, the rows that this process reads."""
        for first in range(0, len(rows), self.batch_size):
            batch = rows[first : first + self.batch_size]
            yield batch[self.place.rank :: self.place.size].tolist()

    def _iterate(self, batches: Iterator[Sequence[int | Draw]]) -> Iterator[Batch]:
        turns = itertools.cycle(self._sources)
        begun: deque[tuple[Source, int] | None] = deque()
        try:
            while True:
                for items in itertools.islice(batches, self._ahead * len(self._sources) - len(begun)):
                    source = next(turns)
                    orders = [self.tiles.order(item) for item in items]
                    begun.append((source, source.begin(orders)) if orders else None)
                if not begun:
                    return
                next_one = begun.popleft()
                if next_one is None:
                    yield NO_TILES
                else:
                    source, number = next_one
                    yield source.finish(number)
        finally:
            for source, number in filter(None, begun):
                source.abandon(number)


class Source(Protocol):
    """Reads batches."""

    def begin(self, orders: Sequence[Order]) -> int:
        """A number for the batch, by which it is asked for."""
        ...

    def finish(self, number: int) -> Batch:
        """Raises what went wrong with it."""
        ...

    def abandon(self, number: int) -> None:
        """Nobody will ask for it."""
        ...

    def close(self) -> object:
        """Nobody will ask for anything."""
        ...


class ThisProcess:
    def __init__(self, reader: TileReader, interrupt: Callable[[], None]) -> None:
        self._reader = reader
        self._interrupt = interrupt
        self._numbers = itertools.count()
        self._begun: dict[int, tuple[Packing, list[np.ndarray]]] = {}

    def begin(self, orders: Sequence[Order]) -> int:
        memory: list[np.ndarray] = []

        def allocate(size: int) -> np.ndarray:
            memory[:] = [np.empty(size, dtype=np.uint8)]
            return memory[0]

        number = next(self._numbers)
        self._begun[number] = Packing(self._reader, orders, allocate), memory
        return number

    def finish(self, number: int) -> Batch:
        packing, memory = self._begun.pop(number)
        while not packing.is_read(INTERRUPT_S):
            self._interrupt()
        packed = packing.finish()
        return batch_in(memory[0], packed)

    def abandon(self, number: int) -> None:
        del self._begun[number]

    def close(self) -> None:
        self._begun.clear()


class Worker:
    """The near end of a worker process. Batches lie in places of shared memory, pinned if a GPU copies from them."""

    def __init__(self, reader: TileReader, pin_memory: bool, interrupt: Callable[[], None]) -> None:
        # Forked from a clean server, not from this process: neither clients nor GDAL survive a fork of running threads.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([worker.__name__])
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=worker.serve, args=(reader, theirs, dict(os.environ)), daemon=True)
        self._process.start()
        theirs.close()
        self.close = Finalize(self, self._connection.close, exitpriority=1)  # who has no connection any more ends
        self._interrupt = interrupt
        self._pin_memory = pin_memory
        self._memories: dict[int, mmap.mmap] = {}  # by place
        self._pinned: set[int] = set()  # places
        self._places = itertools.count()
        self._free: deque[tuple[int, torch.cuda.Event | None]] = deque()  # places, and when the GPU has read them
        self._numbers = itertools.count()
        self._begun: deque[tuple[int, int]] = deque()  # number and place of batches to come
        self._unwanted: set[int] = set()
        self._come: dict[int, tuple[int, Packed | BaseException]] = {}  # but not asked for yet

    def begin(self, orders: Sequence[Order]) -> int:
        number, place = next(self._numbers), self._free_place()
        try:
            self._connection.send((place, orders))
        except OSError as error:
            raise self._death() from error
        self._begun.append((number, place))
        return number

    def finish(self, number: int) -> Batch:
        while number not in self._come:
            self._receive()
        place, outcome = self._come.pop(number)
        if isinstance(outcome, BaseException):
            self._free.append((place, None))
            raise outcome
        memory = np.frombuffer(self._memories[place], dtype=np.uint8)  # gone when the batch's last tensor is
        weakref.finalize(memory, self._release, place).atexit = False
        return batch_in(memory, outcome)

    def abandon(self, number: int) -> None:
        if number in self._come:
            self._free.append((self._come.pop(number)[0], None))
        else:
            self._unwanted.add(number)

    def _receive(self) -> None:
        """The next reply, whether it is the one that is waited for or not."""
        try:
            while not self._connection.poll(INTERRUPT_S):
                self._interrupt()
        except OSError as error:
            raise self._death() from error
        number, place = self._begun.popleft()
        try:
            reply = self._connection.recv()
            if reply.is_new:
                self._attach(place, recv_handle(self._connection))
        except (EOFError, OSError) as error:
            raise self._death() from error
        if number in self._unwanted:
            self._unwanted.remove(number)
            self._free.append((place, None))
        else:
            self._come[number] = place, reply.outcome

    def _attach(self, place: int, file: int) -> None:
        if place in self._pinned:
            _pin(self._memories[place], False)
            self._pinned.remove(place)
        self._memories[place] = worker.attach(file)
        os.close(file)
        if self._pin_memory and _pin(self._memories[place], True):
            self._pinned.add(place)
        elif self._pin_memory:
            log.warning("warning: the memory of batches cannot be pinned; copies to the GPU will be slower")
            self._pin_memory = False

    def _free_place(self) -> int:
        """One that is used no more, or else a new one."""
        for _ in range(len(self._free)):
            place, event = self._free.popleft()
            if event is None or event.query():  # type: ignore[no-untyped-call]
                return place
            self._free.append((place, event))
        return next(self._places)

    def _release(self, place: int) -> None:
        """The batch is gone here; a GPU may still be copying from its place."""
        event = torch.cuda.Event() if place in self._pinned else None  # type: ignore[no-untyped-call]
        if event is not None:
            event.record()  # type: ignore[no-untyped-call]
        self._free.append((place, event))

    def _death(self) -> RobosatError:
        self._process.join(5)
        code = self._process.exitcode
        how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        advice = (
            "Most likely the memory ran out: lower runtime.workers or model.batch_size, or take a machine with more"
            if code == -signal.SIGKILL
            else "What it said of that stands above; runtime.workers = 0 reads in the main process"
        )
        return RobosatError(f"a process that reads tiles died ({how}). {advice}")


def _pin(memory: mmap.mmap, is_pinned: bool) -> bool:
    """Fix memory in its place, or free it again, so that a GPU copies from it by itself. Whether CUDA could."""
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    pointer = tensor.data_ptr()
    status = runtime.cudaHostRegister(pointer, len(tensor), 0) if is_pinned else runtime.cudaHostUnregister(pointer)
    return int(status) == 0
