"""Batches of tile pairs in the order of an epoch, read ahead while the network computes. Called by `loop`."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from robosat_pink.container import hardware
from robosat_pink.datasets.batch import NO_TILES, Batch
from robosat_pink.datasets.pairs import TilePairs, TrainingCrop
from robosat_pink.datasets.reader import REQUESTS
from robosat_pink.datasets.worker_client import Source, ThisProcess, Worker
from robosat_pink.distributed.launcher import SINGLE_PROCESS, ProcessRank

log = logging.getLogger(__name__)

MEMORY_SHARE = 0.25  # of the machine's, for batches under way
# Batches a worker reads before they are asked for; more, if they are small, so that twice its requests are to be made.
LEAST_AHEAD = 2


def worker_count(setting: int | Literal["auto"], on_gpu: bool, batch_bytes: int = 0, sharers: int = 1) -> int:
    """Worker processes: on a CPU the network needs the cores itself, beside a GPU they are the workers'.

    No more than have room for the batches that each of them reads ahead, where so many processes share the machine.
    """
    if setting != "auto":
        return setting
    cores = hardware.cpu_count() // sharers
    fitting = int(MEMORY_SHARE * hardware.memory_bytes()) // max((LEAST_AHEAD + 2) * batch_bytes * sharers, 1)
    return max(min(cores - 1, 8 if on_gpu else 1, max(fitting, 1)), 0)


def bytes_of_a_batch(tiles: TilePairs, batch_size: int) -> int:
    """Of training, in float32 at most, and the masks."""
    reader = tiles.reader
    return batch_size * reader.tile_size**2 * (4 * len(reader.bands) + 1)


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
        process: ProcessRank = SINGLE_PROCESS,
    ) -> None:
        """`interrupt` is called now and then while a batch is waited for, and may raise: a store may be silent.

        `batch_size` is that of all processes together.
        """
        self.tiles = tiles
        self.batch_size, self.process = batch_size, process
        share = -(-batch_size // process.size)
        batch_bytes = bytes_of_a_batch(tiles, share)
        self._room = int(MEMORY_SHARE * hardware.memory_bytes()) // (max(workers, 1) * process.local_size)
        self._ahead = min(max(LEAST_AHEAD, -(-REQUESTS // share)), self._fitting(batch_bytes))
        self._knows_whole_tiles = False
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
        return self._iterate([TrainingCrop(row, epoch) for row in each] for each in self._shares(order))

    def evaluation(self, rows: np.ndarray) -> Iterator[Batch]:
        """Every row once, in order: whole tiles, not augmented, none dropped for the last batch's sake."""
        return self._iterate(self._shares(rows), is_whole=True)

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
            yield batch[self.process.rank :: self.process.size].tolist()

    def _fitting(self, batch_bytes: int) -> int:
        """How many batches of this size a worker may read ahead, beside the two that are in use."""
        return max(LEAST_AHEAD, self._room // max(batch_bytes, 1) - 2)

    def _measured(self, batch: Batch, is_whole: bool) -> Batch:
        """From now on no more are read ahead than fit if all are as large; and tiles of another kind are told."""
        self._ahead = min(self._ahead, self._fitting(batch.image.nbytes + batch.mask.nbytes))
        self._knows_whole_tiles |= is_whole
        self.tiles.note_kinds(batch.kinds)
        return batch

    def _iterate(self, batches: Iterator[Sequence[int | TrainingCrop]], is_whole: bool = False) -> Iterator[Batch]:
        """Nobody knows how large whole tiles are until the first of them have come."""
        turns = itertools.cycle(self._sources)
        begun: deque[tuple[Source, int] | None] = deque()
        try:
            while True:
                ahead = LEAST_AHEAD if is_whole and not self._knows_whole_tiles else self._ahead
                for items in itertools.islice(batches, max(ahead * len(self._sources) - len(begun), 0)):
                    source = next(turns)
                    requests = [self.tiles.request(item) for item in items]
                    begun.append((source, source.begin(requests)) if requests else None)
                if not begun:
                    return
                next_one = begun.popleft()
                if next_one is None:
                    yield NO_TILES
                else:
                    source, number = next_one
                    yield self._measured(source.finish(number), is_whole)
        finally:
            for source, number in filter(None, begun):
                source.abandon(number)
