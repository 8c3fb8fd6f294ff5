"""Batches of tile pairs by torch's DataLoader, in the layout that TileLoader's have. A contender of s3_read.py.

Its workers fetch by `TilePairs.__getitems__`, a batch at a time, and have what ours have: a start from a clean server
process, the cache, as many batches ahead, a C library that keeps freed memory.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from robosat_pink.container import hardware
from robosat_pink.datasets import TilePairs
from robosat_pink.datasets.batch import Batch
from robosat_pink.datasets.loader import LEAST_AHEAD
from robosat_pink.datasets.reader import REQUESTS, Sample
from robosat_pink.losses import IGNORE


class TorchLoader:
    """The part of TileLoader that the benchmark uses."""

    def __init__(self, tiles: TilePairs, batch_size: int, workers: int) -> None:
        self._rows: list[int] = []  # the sampler: a persistent worker outlives an epoch, and so must its sampler
        self._loader = DataLoader(
            tiles,
            batch_size,
            sampler=self._rows,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=True,
            prefetch_factor=max(LEAST_AHEAD, math.ceil(REQUESTS / batch_size)),
            multiprocessing_context="forkserver",
            worker_init_fn=keep_freed_memory,
        )

    def evaluation(self, rows: np.ndarray) -> Iterator[Batch]:
        """Every row once, in order: whole tiles, not augmented."""
        self._rows[:] = rows.tolist()
        return iter(self._loader)

    def close(self) -> None:
        """End the worker processes, which the iterator owns."""
        self._loader._iterator = None


def keep_freed_memory(worker: int) -> None:
    hardware.keep_freed_memory()


def collate(samples: list[Sample]) -> Batch:
    """Samples of one size and type; `default_collate` copies them into shared memory, images as (N, H, W, C)."""
    valid = [sample for sample in samples if (sample.mask != IGNORE).any()]
    images = default_collate([torch.from_numpy(sample.image.transpose(1, 2, 0)) for sample in valid])
    return Batch(
        image=images.permute(0, 3, 1, 2),
        mask=default_collate([torch.from_numpy(sample.mask) for sample in valid]),
        scale=default_collate([torch.from_numpy(sample.scale) for sample in valid]),
        symmetry=tuple(sample.symmetry for sample in valid),
        rows=tuple(sample.row for sample in valid),
        sizes=tuple(sample.size for sample in valid),
        empty=len(samples) - len(valid),
        cached=sum(sample.fetched_bytes == 0 for sample in samples),
        fetched_bytes=sum(sample.fetched_bytes for sample in samples),
        retries=sum(sample.retries for sample in samples),
        kinds={sample.notes.kind: sample.row for sample in samples},
    )
