"""A process that reads batches of tiles into memory shared with the training process. Started by `worker_client`.

It loads no torch. The memory is anonymous (memfd): /dev/shm does not limit its size, and the system frees it when both
processes have ended, however they end. A batch reuses the memory of an earlier one that is no longer in use.
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
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from typing import NamedTuple

import numpy as np

from robosat_pink.datasets.packing import PackedBatch, Packing
from robosat_pink.datasets.reader import TileReader
from robosat_pink.errors import RobosatError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # values from malloc.h


class SharedMemory:
    """Memory for one batch at a time. It grows when a batch needs more."""

    def __init__(self) -> None:
        self.array = np.empty(0, dtype=np.uint8)
        self.file: int | None = None  # the memfd, until the other process has received it

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
    """Map a whole memfd, shared with every process that maps it."""
    return mmap.mmap(file, os.fstat(file).st_size)


class Reply(NamedTuple):
    """The answer to the requests of a batch; if its memory is new, the memfd follows."""

    has_new_memory: bool
    outcome: PackedBatch | BaseException


Begun = tuple[SharedMemory, Packing | BaseException]  # memory, and the batch in flight or the error at its start


def serve(reader: TileReader, connection: Connection, environment: dict[str, str]) -> None:
    """The process's main loop: it receives (slot, requests) and sends a `Reply` to each, in the same order.

    Several batches are read at a time. `environment` is the main process's: the fork server's dates from its own start,
    perhaps without credentials.
    """
    os.environ.update(environment)
    # Ctrl-C reaches all processes, as SIGTERM may (timeout, systemd, Slurm). The main process ends after its step, and
    # then its closed connection ends this one.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _keep_freed_memory()
    memories: dict[int, SharedMemory] = {}  # by slot
    begun: queue.Queue[Begun] = queue.Queue()
    threading.Thread(target=_reply, args=(connection, begun), daemon=True).start()
    try:
        while True:
            slot, requests = connection.recv()
            memory = memories.setdefault(slot, SharedMemory())
            try:
                begun.put((memory, Packing(reader, requests, memory.allocate)))
            except BaseException as error:
                begun.put((memory, error))
    except (EOFError, OSError):  # the main process has ended, or has closed its end
        os._exit(0)


def _keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next tile: new memory costs more than decoding a tile into it."""
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_THRESHOLD, 32 << 20)
    library.mallopt(M_TRIM_THRESHOLD, 1 << 30)
    library.mallopt(M_ARENA_MAX, 2)


def _reply(connection: Connection, begun: queue.Queue[Begun]) -> None:
    while True:
        memory, packing = begun.get()
        outcome: PackedBatch | BaseException
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
        except OSError:  # the main process has ended
            os._exit(0)
        except BaseException:  # such as out of memory; without an exit, the main process would wait for this reply
            os._exit(1)


def _for_travel(error: BaseException) -> BaseException:
    """The error for the main process to raise. A defect carries its traceback as text, because pickling drops it."""
    if not isinstance(error, RobosatError):
        error.add_note("in a process that reads tiles:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
