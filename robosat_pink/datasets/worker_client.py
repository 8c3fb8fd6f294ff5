"""Where batches come from: worker processes, or threads of this one. Called by `loader`.

The far end of a worker process is `worker`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import mmap
import multiprocessing
import os
import signal
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from multiprocessing.util import Finalize
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from robosat_pink.container import hardware
from robosat_pink.datasets import worker
from robosat_pink.datasets.reader import ReadRequest, TileReader
from robosat_pink.datasets.worker import Packed, Packing
from robosat_pink.errors import RobosatError

log = logging.getLogger(__name__)

INTERRUPT_S = 0.5  # how often a wait is interrupted


class Batch(NamedTuple):
    """Samples that have at least one valid pixel; `rows` tells which, `empty` how many had none.

    `sizes` are their heights and widths before they were padded to those of the batch.

    `cached` of all came from the cache; the others took two requests each, `retries` more together, and
    `fetched_bytes`. The tensors are views of memory that is used again when the last of them is gone, not before.
    """

    image: Tensor  # (N, C, H, W), in memory (N, H, W, C)
    mask: Tensor  # (N, H, W) uint8
    scale: Tensor  # (N, C) float32
    symmetry: tuple[int, ...]
    rows: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    empty: int
    cached: int
    fetched_bytes: int
    retries: int
    kinds: Mapping[str, int] = MappingProxyType({})  # what the samples' files say of their bands, and a row of each

    def __len__(self) -> int:
        return len(self.rows)


NO_TILES = Batch(torch.empty(0), torch.empty(0), torch.empty(0), (), (), (), 0, 0, 0, 0)


def batch_in(memory: np.ndarray, packed: Packed) -> Batch:
    images, masks = packed.layout.arrays(memory)
    return Batch(torch.from_numpy(images), torch.from_numpy(masks), torch.from_numpy(packed.scale), *packed[2:])


class Source(Protocol):
    """Reads batches."""

    def begin(self, requests: Sequence[ReadRequest]) -> int:
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

    def begin(self, requests: Sequence[ReadRequest]) -> int:
        memory: list[np.ndarray] = []

        def allocate(size: int) -> np.ndarray:
            memory[:] = [np.empty(size, dtype=np.uint8)]
            return memory[0]

        number = next(self._numbers)
        self._begun[number] = Packing(self._reader, requests, allocate), memory
        return number

    def finish(self, number: int) -> Batch:
        packing, memory = self._begun.pop(number)
        while not packing.is_read(INTERRUPT_S):
            self._interrupt()
        packed = packing.finish()
        return batch_in(memory[0], packed)

    def abandon(self, number: int) -> None:
        self._begun.pop(number, None)  # `close` may have been before

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
        self._interrupt = interrupt
        self._pin_memory = pin_memory
        self._memories: dict[int, mmap.mmap] = {}  # by slot
        self._pinned: set[int] = set()  # places
        self.close = Finalize(self, _close, (self._connection, self._memories, self._pinned), exitpriority=1)
        self._places = itertools.count()
        self._free: deque[tuple[int, torch.cuda.Event | None]] = deque()  # places, and when the GPU has read them
        self._numbers = itertools.count()
        self._begun: deque[tuple[int, int]] = deque()  # number and slot of batches to come
        self._unwanted: set[int] = set()
        self._come: dict[int, tuple[int, Packed | BaseException]] = {}  # but not asked for yet

    def begin(self, requests: Sequence[ReadRequest]) -> int:
        number, slot = next(self._numbers), self._free_slot()
        try:
            self._connection.send((slot, requests))
        except OSError as error:
            raise self._death() from error
        self._begun.append((number, slot))
        return number

    def finish(self, number: int) -> Batch:
        while number not in self._come:
            self._receive()
        slot, outcome = self._come.pop(number)
        if isinstance(outcome, BaseException):
            self._free.append((slot, None))
            raise outcome
        memory = np.frombuffer(self._memories[slot], dtype=np.uint8)  # gone when the batch's last tensor is
        weakref.finalize(memory, self._release, slot).atexit = False
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
        number, slot = self._begun.popleft()
        try:
            reply = self._connection.recv()
            if reply.is_new:
                self._attach(slot, recv_handle(self._connection))
        except (EOFError, OSError) as error:
            raise self._death() from error
        if number in self._unwanted:
            self._unwanted.remove(number)
            self._free.append((slot, None))
        else:
            self._come[number] = slot, reply.outcome

    def _attach(self, slot: int, file: int) -> None:
        if slot in self._pinned:
            _pin(self._memories[slot], False)
            self._pinned.remove(slot)
        self._memories[slot] = worker.attach(file)
        os.close(file)
        if self._pin_memory and _pin(self._memories[slot], True):
            self._pinned.add(slot)
        elif self._pin_memory:
            log.warning("warning: the memory of batches cannot be pinned; copies to the GPU will be slower")
            self._pin_memory = False

    def _free_slot(self) -> int:
        """One that is used no more, the latest first, so that few grow where few are used; or else a new one."""
        for _ in range(len(self._free)):
            slot, event = self._free.pop()
            if event is None or event.query():  # type: ignore[no-untyped-call]
                return slot
            self._free.appendleft((slot, event))
        return next(self._places)

    def _release(self, slot: int) -> None:
        """The batch is gone here; a GPU may still be copying from its slot."""
        event = torch.cuda.Event() if slot in self._pinned else None  # type: ignore[no-untyped-call]
        if event is not None:
            event.record()  # type: ignore[no-untyped-call]
        self._free.append((slot, event))

    def _death(self) -> RobosatError:
        self._process.join(5)
        code = self._process.exitcode
        how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        advice = "its own message stands above; runtime.workers = 0 reads in the main process"
        if code == -signal.SIGKILL:
            advice = hardware.KILLED_ADVICE
        return RobosatError(f"a process that reads tiles died ({how}), {advice}")


def _close(connection: Connection, memories: dict[int, mmap.mmap], pinned: set[int]) -> None:
    """The worker ends, who has no connection any more; memory is freed of CUDA before it goes."""
    connection.close()
    if pinned:
        torch.cuda.synchronize()  # it may still be copying
    while pinned:
        _pin(memories[pinned.pop()], False)


def _pin(memory: mmap.mmap, is_pinned: bool) -> bool:
    """Fix memory in its place, or free it again, so that a GPU copies from it by itself. Whether CUDA could."""
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    pointer = tensor.data_ptr()
    status = runtime.cudaHostRegister(pointer, len(tensor), 0) if is_pinned else runtime.cudaHostUnregister(pointer)
    if int(status):
        with contextlib.suppress(RuntimeError):
            torch.ones(1, device="cuda")  # CUDA keeps the error for the next kernel to raise: this one
    return not int(status)
