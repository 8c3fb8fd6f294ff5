"""Reads batches in worker processes, or in threads of this process. Called by `loader`.

The code of a worker process is in `worker`.
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
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from multiprocessing.util import Finalize
from typing import Any, Protocol

import numpy as np
import torch

from robosat_pink.container import hardware
from robosat_pink.datasets import worker
from robosat_pink.datasets.batch import Batch, batch_in
from robosat_pink.datasets.packing import PackedBatch, Packing
from robosat_pink.datasets.reader import ReadRequest, TileReader
from robosat_pink.errors import RobosatError

log = logging.getLogger(__name__)

INTERRUPT_S = 0.5  # seconds between calls of `interrupt`, which may raise


class Source(Protocol):
    """Reads batches; several may be in flight."""

    def begin(self, requests: Sequence[ReadRequest]) -> int:
        """Start reading a batch. Returns its number, for `finish` or `abandon`."""
        ...

    def finish(self, number: int) -> Batch:
        """Wait for the batch. Raises the error that occurred while it was read."""
        ...

    def abandon(self, number: int) -> None:
        """Discard a batch that was begun."""
        ...

    def close(self) -> object:
        """Discard all batches; end the worker process, if there is one."""
        ...


class ThisProcess:
    """Reads batches in threads of this process."""

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
        self._begun.pop(number, None)  # missing after `close`

    def close(self) -> None:
        self._begun.clear()


class Worker:
    """The client of one worker process. Batches are in slots of shared memory, pinned if a GPU copies from them."""

    def __init__(self, reader: TileReader, pin_memory: bool, interrupt: Callable[[], None]) -> None:
        # Forked by a fork server, not this process: neither store clients nor GDAL survive a fork while threads run.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([worker.__name__])
        self._connection, worker_end = context.Pipe()
        self._process = context.Process(target=worker.serve, args=(reader, worker_end, dict(os.environ)), daemon=True)
        self._process.start()
        worker_end.close()
        self._interrupt = interrupt
        self._pin_memory = pin_memory
        self._memories: dict[int, mmap.mmap] = {}  # by slot
        self._pinned: set[int] = set()  # slots
        self.close = Finalize(self, _close, (self._connection, self._memories, self._pinned), exitpriority=1)
        self._slots = itertools.count()
        self._free: deque[tuple[int, torch.cuda.Event | None]] = deque()  # slot, event after the GPU's copy
        self._numbers = itertools.count()
        self._begun: deque[tuple[int, int]] = deque()  # number and slot of the batches in flight
        self._abandoned: set[int] = set()
        self._received: dict[int, tuple[int, PackedBatch | BaseException]] = {}  # slot and outcome by number

    def begin(self, requests: Sequence[ReadRequest]) -> int:
        number, slot = next(self._numbers), self._free_slot()
        try:
            self._connection.send((slot, requests))
        except OSError as error:
            raise self._death() from error
        self._begun.append((number, slot))
        return number

    def finish(self, number: int) -> Batch:
        while number not in self._received:
            self._receive()
        slot, outcome = self._received.pop(number)
        if isinstance(outcome, BaseException):
            self._free.append((slot, None))
            raise outcome
        memory = np.frombuffer(self._memories[slot], dtype=np.uint8)  # dies with the last tensor on it
        weakref.finalize(memory, self._release, slot).atexit = False
        return batch_in(memory, outcome)

    def abandon(self, number: int) -> None:
        if number in self._received:
            self._free.append((self._received.pop(number)[0], None))
        else:
            self._abandoned.add(number)

    def _receive(self) -> None:
        """Receive the next reply, which is to the oldest batch in flight."""
        try:
            while not self._connection.poll(INTERRUPT_S):
                self._interrupt()
        except OSError as error:
            raise self._death() from error
        number, slot = self._begun.popleft()
        try:
            reply = self._connection.recv()
            if reply.has_new_memory:
                self._attach(slot, recv_handle(self._connection))
        except (EOFError, OSError) as error:
            raise self._death() from error
        if number in self._abandoned:
            self._abandoned.remove(number)
            self._free.append((slot, None))
        else:
            self._received[number] = slot, reply.outcome

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
        """A free slot that no GPU copies from, usually the latest freed; otherwise a new one."""
        for _ in range(len(self._free)):
            slot, event = self._free.pop()
            if event is None or event.query():  # type: ignore[no-untyped-call]
                return slot
            self._free.appendleft((slot, event))
        return next(self._slots)

    def _release(self, slot: int) -> None:
        """Free the slot of a batch whose tensors are gone; a GPU may still be copying from it."""
        event = torch.cuda.Event() if slot in self._pinned else None  # type: ignore[no-untyped-call]
        if event is not None:
            event.record()  # type: ignore[no-untyped-call]
        self._free.append((slot, event))

    def _death(self) -> RobosatError:
        self._process.join(5)
        code = self._process.exitcode
        cause = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        advice = "look above for a message; runtime.workers = 0 reads in the main process"
        if code == -signal.SIGKILL:
            advice = hardware.KILLED_ADVICE
        return RobosatError(f"a process that reads tiles died ({cause}), {advice}")


def _close(connection: Connection, memories: dict[int, mmap.mmap], pinned: set[int]) -> None:
    """Close the connection, which ends the worker. Unpin its memory before the memory is freed."""
    connection.close()
    if pinned:
        torch.cuda.synchronize()  # the GPU may still be copying
    while pinned:
        _pin(memories[pinned.pop()], False)


def _pin(memory: mmap.mmap, is_pinned: bool) -> bool:
    """Pin memory, so that a GPU can copy from it asynchronously, or unpin it. Returns whether CUDA succeeded."""
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    pointer = tensor.data_ptr()
    status = runtime.cudaHostRegister(pointer, len(tensor), 0) if is_pinned else runtime.cudaHostUnregister(pointer)
    if int(status):
        with contextlib.suppress(RuntimeError):
            torch.ones(1, device="cuda")  # CUDA raises the error again at the next kernel: let it be this one
    return not int(status)
