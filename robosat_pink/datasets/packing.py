"""Packs samples into one batch in memory as they arrive. Called by `worker` and `worker_client`; loads no torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from typing import NamedTuple

import numpy as np

from robosat_pink.datasets.cropping import pad
from robosat_pink.datasets.pixel_layout import PixelLayout
from robosat_pink.datasets.reader import ReadRequest, Sample, TileReader
from robosat_pink.losses import IGNORE


class PackedBatch(NamedTuple):
    """A batch in memory. Samples without a valid pixel are left out, and counted in `empty`."""

    layout: PixelLayout
    scale: np.ndarray  # (N, C) float32
    symmetry: tuple[int, ...]
    rows: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]  # (H, W) of each sample, before padding
    empty: int
    cached: int  # samples from the cache, empty ones included; every other sample took two requests
    fetched_bytes: int
    retries: int
    kinds: dict[str, int]  # the row of one sample for each `Notes.kind`


class Packing:
    """A batch that is being read: each sample is copied to its slot in memory as it arrives."""

    def __init__(
        self, reader: TileReader, requests: Sequence[ReadRequest], allocate: Callable[[int], np.ndarray]
    ) -> None:
        """`allocate` returns uint8 memory of at least the given size; it may invalidate what it returned before."""
        self._allocate = allocate
        self._layout: PixelLayout | None = None
        self._samples: list[Sample | None] = [None] * len(requests)  # by slot
        self._lock = threading.Lock()
        self._readings = reader.begin(requests, self._put)

    def is_read(self, timeout_s: float) -> bool:
        """Whether all samples have arrived or failed. Waits for at most `timeout_s`."""
        return not wait(self._readings, timeout_s).not_done

    def finish(self) -> PackedBatch:
        """Wait for all samples. Raises the error of the first one, in slot order, that could not be read."""
        # Waits even if one has failed: the next batch reuses the memory, which no reading may then still write to, or
        # write to the cache from.
        wait(self._readings)
        for reading in self._readings:
            reading.result()
        samples = [sample for sample in self._samples if sample is not None]
        valid = [sample for sample in samples if (sample.mask != IGNORE).any()]
        if len(valid) < len(samples) or not all(map(self._fits, samples)):
            self._repack(valid)
        bands = len(samples[0].scale)
        return PackedBatch(
            layout=self._layout if valid and self._layout else PixelLayout("uint8", (0, 0, 0, bands)),
            scale=np.stack([sample.scale for sample in valid]) if valid else np.zeros((0, bands), dtype=np.float32),
            symmetry=tuple(sample.symmetry for sample in valid),
            rows=tuple(sample.row for sample in valid),
            sizes=tuple(sample.size for sample in valid),
            empty=len(samples) - len(valid),
            cached=sum(sample.fetched_bytes == 0 for sample in samples),
            fetched_bytes=sum(sample.fetched_bytes for sample in samples),
            retries=sum(sample.retries for sample in samples),
            kinds={sample.notes.kind: sample.row for sample in samples},
        )

    def _put(self, slot: int, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Copy image and mask to their slot; a sample that does not fit is copied elsewhere. Returns the copies.

        The first sample to arrive determines dtype and size of all slots.
        """
        with self._lock:
            if self._layout is None:
                self._lay_out(sample.image.dtype, len(self._samples), *sample.image.shape)
        if self._fits(sample):
            image, mask = self._images[slot], self._masks[slot]
            image[:], mask[:] = sample.image, sample.mask
        else:
            image, mask = sample.image.copy(), sample.mask.copy()
        self._samples[slot] = sample._replace(image=image, mask=mask)
        return image, mask

    def _fits(self, sample: Sample) -> bool:
        """Whether dtype and size are those of the slots."""
        return sample.image.dtype == self._images.dtype and sample.image.shape == self._images.shape[1:]

    def _lay_out(self, dtype: np.dtype, count: int, bands: int, height: int, width: int) -> None:
        layout = PixelLayout(dtype.str, (count, height, width, bands))
        self._images, self._masks = layout.arrays(self._allocate(layout.size))
        self._layout = layout

    def _repack(self, samples: Sequence[Sample]) -> None:
        """Pack the samples again without gaps: in a dtype that can represent all, padded to the largest."""
        if not samples:
            return
        samples = [sample._replace(image=sample.image.copy(), mask=sample.mask.copy()) for sample in samples]
        height, width = (max(sample.mask.shape[axis] for sample in samples) for axis in (0, 1))
        dtype = np.result_type(*(sample.image.dtype for sample in samples))
        dtype = np.dtype(np.float32) if dtype == np.float64 else dtype
        self._lay_out(dtype, len(samples), len(samples[0].image), height, width)
        for slot, sample in enumerate(samples):
            self._images[slot], self._masks[slot] = pad(sample.image, sample.mask, height, width)
