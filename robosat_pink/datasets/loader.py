"""Loads batches of tile pairs in the permutation of an epoch, while the network computes. Called by `loop`."""

from __future__ import annotations

import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from robosat_pink.container import hardware
from robosat_pink.container.log_lines import IN_LOG
from robosat_pink.container.quantities import count, size
from robosat_pink.datasets.batch import NO_TILES, Batch
from robosat_pink.datasets.pairs import TilePairs, TrainingCrop
from robosat_pink.datasets.reader import REQUESTS
from robosat_pink.datasets.worker_client import Source, ThisProcess, Worker
from robosat_pink.distributed.launcher import SINGLE_PROCESS, ProcessRank

log = logging.getLogger(__name__)

MEMORY_SHARE = 0.25  # share of the machine's memory for batches in flight
# The fewest batches that a worker reads ahead. It reads more of small batches, to keep twice REQUESTS queued.
LEAST_AHEAD = 2
LEAST_CROPS = 128  # crops of an epoch of few tiles, by sampling.tiles_per_epoch = auto


def worker_count(setting: int | Literal["auto"], on_gpu: bool, batch_bytes: int = 0, sharers: int = 1) -> int:
    """The number of worker processes: up to 8 with a GPU, at most 1 on a CPU, whose cores the network needs.

    Their batches fit into MEMORY_SHARE of the memory, if `sharers` processes train on this machine.
    """
    if setting != "auto":
        return setting
    cores = hardware.cpu_count() // sharers
    fit_in_memory = int(MEMORY_SHARE * hardware.memory_bytes()) // max((LEAST_AHEAD + 2) * batch_bytes * sharers, 1)
    return max(min(cores - 1, 8 if on_gpu else 1, max(fit_in_memory, 1)), 0)


def bytes_of_a_batch(tiles: TilePairs, batch_size: int) -> int:
    """The largest possible size of a training batch in bytes: images in float32, and masks."""
    reader = tiles.reader
    return batch_size * reader.tile_size**2 * (4 * len(reader.bands) + 1)


def crops_of_an_epoch(tiles: int, tiles_per_epoch: int | Literal["auto"] | None) -> int:
    """The number of training crops of an epoch: one per tile by default, or as many as sampling.tiles_per_epoch says.

    "auto" takes as many of each tile as make LEAST_CROPS or more together.
    """
    if tiles_per_epoch is None:
        return tiles
    return tiles * math.ceil(LEAST_CROPS / tiles) if tiles_per_epoch == "auto" else tiles_per_epoch


class TileLoader:
    """Loads batches of a TilePairs for training and for evaluation, with one set of worker processes.

    Batches go to the workers in turn, and each worker reads several ahead. Without workers, threads of this process
    read. With several ranks, each has its own loader, which yields its share of every batch; NO_TILES if that is empty.
    """

    def __init__(
        self,
        tiles: TilePairs,
        batch_size: int,
        workers: int,
        pin_memory: bool = False,
        interrupt: Callable[[], None] = lambda: None,
        process: ProcessRank = SINGLE_PROCESS,
        tiles_per_epoch: int | Literal["auto"] | None = None,
    ) -> None:
        """`interrupt` is called every half second during a wait, and may raise, because a store may never answer.

        `batch_size` counts the samples of all ranks; `crops_of_an_epoch` explains `tiles_per_epoch`.
        """
        self.tiles = tiles
        self.batch_size, self.process, self.tiles_per_epoch = batch_size, process, tiles_per_epoch
        share = math.ceil(batch_size / process.size)
        batch_bytes = bytes_of_a_batch(tiles, share)
        self._worker_bytes = int(MEMORY_SHARE * hardware.memory_bytes()) // (max(workers, 1) * process.local_size)
        self._ahead = min(max(LEAST_AHEAD, math.ceil(REQUESTS / share)), self._most_ahead(batch_bytes))
        self._knows_whole_tiles = False
        log.info(
            "loader: %s, each reads %d batches of up to %s ahead, %d requests at a time",
            count(workers, "worker"),
            self._ahead,
            size(batch_bytes),
            REQUESTS,
            extra=IN_LOG,
        )
        self._sources: list[Source] = (
            [Worker(tiles.reader, pin_memory, interrupt) for _ in range(workers)]
            if workers
            else [ThisProcess(tiles.reader, interrupt)]
        )

    def training(self, rows: np.ndarray, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, of crops with symmetries; from `first_batch` on."""
        permuted = self._permuted(rows, epoch)
        positions = np.arange(first_batch * self.batch_size, len(permuted))
        return self._iterate(
            [TrainingCrop(int(permuted[position]), epoch, position // len(rows)) for position in share]
            for share in self._shares(positions)
        )

    def evaluation(self, rows: np.ndarray) -> Iterator[Batch]:
        """Batches of every row once, in order: whole tiles, not augmented. The last batch may be smaller."""
        return self._iterate(self._shares(rows), is_whole=True)

    def rows_of(self, rows: np.ndarray, epoch: int, batch: int) -> list[int]:
        """The rows of a training batch, over all ranks."""
        first = batch * self.batch_size
        batch_rows: list[int] = self._permuted(rows, epoch)[first : first + self.batch_size].tolist()
        return batch_rows

    def close(self) -> None:
        """End the worker processes."""
        for source in self._sources:
            source.close()

    def num_batches(self, rows: np.ndarray) -> int:
        """The number of batches of an evaluation."""
        return math.ceil(len(rows) / self.batch_size)

    def num_training_batches(self, rows: np.ndarray) -> int:
        """The number of batches of an epoch."""
        return math.ceil(crops_of_an_epoch(len(rows), self.tiles_per_epoch) / self.batch_size)

    def _permuted(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        """The row of each crop of an epoch: the rows, permuted by (seed, epoch) as often as the epoch needs."""
        random = np.random.default_rng((self.tiles.seed, epoch))
        crops = crops_of_an_epoch(len(rows), self.tiles_per_epoch)
        passes = [random.permutation(rows) for _ in range(math.ceil(crops / len(rows)))]
        return np.concatenate(passes)[:crops]

    def _shares(self, items: np.ndarray) -> Iterator[list[int]]:
        """The items of each batch that this rank reads."""
        for first in range(0, len(items), self.batch_size):
            batch = items[first : first + self.batch_size]
            yield batch[self.process.rank :: self.process.size].tolist()

    def _most_ahead(self, batch_bytes: int) -> int:
        """How many batches of this size a worker may read ahead, in addition to the two that are in use."""
        return max(LEAST_AHEAD, self._worker_bytes // max(batch_bytes, 1) - 2)

    def _measured(self, batch: Batch, is_whole: bool) -> Batch:
        """Limit reading ahead by the measured size of a batch, and note the kinds of its images. Returns the batch."""
        self._ahead = min(self._ahead, self._most_ahead(batch.image.nbytes + batch.mask.nbytes))
        self._knows_whole_tiles |= is_whole
        self.tiles.note_kinds(batch.kinds)
        return batch

    def _iterate(self, batches: Iterator[Sequence[int | TrainingCrop]], is_whole: bool = False) -> Iterator[Batch]:
        """The batches in order. Only LEAST_AHEAD are read ahead until the first whole tiles have shown their size."""
        next_source = itertools.cycle(self._sources)
        begun: deque[tuple[Source, int] | None] = deque()
        try:
            while True:
                ahead = LEAST_AHEAD if is_whole and not self._knows_whole_tiles else self._ahead
                for items in itertools.islice(batches, max(ahead * len(self._sources) - len(begun), 0)):
                    source = next(next_source)
                    requests = [self.tiles.request(item) for item in items]
                    begun.append((source, source.begin(requests)) if requests else None)
                if not begun:
                    return
                oldest = begun.popleft()
                if oldest is None:
                    yield NO_TILES
                else:
                    source, number = oldest
                    yield self._measured(source.finish(number), is_whole)
        finally:
            for source, number in filter(None, begun):
                source.abandon(number)
