"""The tiles of a map in a folder or below an s3:// prefix: which are there, and writing the others. Called by `run`.

Each file is whole or absent. A tile's file says what it was made from, so that the same command continues after a stop.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from robosat_pink.container.atomic_write import TEMPORARY_SUFFIX
from robosat_pink.container.stop_request import Stopped
from robosat_pink.prediction import rasters
from robosat_pink.prediction.rasters import Legend
from robosat_pink.storage import Location

CLASSES, PROBABILITIES = "predictions", "probability"  # folders of the results
REQUESTS = 32  # tiles that are looked for or written at a time
WAIT_S = 0.5  # between calls of `interrupt`
MOST_WAITING = 64  # tiles that wait to be written: those of a few batches


class TileResult(NamedTuple):
    """One predicted tile."""

    scene: str
    zxy: tuple[int, int, int]
    made_from: str  # digest of everything that determines it
    classes: np.ndarray  # (H, W) uint8, 255 = no data
    probabilities: np.ndarray | None  # (K, H, W) float32; None if they are not wanted


class Results:
    """Writes tiles in threads, and waits for them at its end. A failure is raised at the next call."""

    def __init__(self, destination: Location, legend: Legend, class_names: Sequence[str], probability: bool) -> None:
        self.destination = destination
        self.folders = (CLASSES, PROBABILITIES) if probability else (CLASSES,)
        self._legend, self._class_names = legend, class_names
        self._threads = ThreadPoolExecutor(REQUESTS, "results")
        self._room = threading.Semaphore(MOST_WAITING)
        self._failures: list[BaseException] = []
        self.interrupt: Callable[[], None] = lambda: None  # called while `write` waits, and may raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        is_failure = kind is not None and not issubclass(kind, Stopped)
        self._threads.shutdown(cancel_futures=is_failure)
        if kind is None:
            self._raise_failure()

    def remove_half_written(self) -> None:
        """Remove what a killed run has left half written in a folder; a bucket shows no such objects."""
        if self.destination.bucket is None:
            base = Path(self.destination.path)
            folders = [base / folder for folder in self.folders]
            found = (path for folder in folders for path in folder.rglob(f"*{TEMPORARY_SUFFIX}"))
            for path in itertools.chain(base.glob(f"*{TEMPORARY_SUFFIX}"), found):
                if path.is_file():
                    path.unlink(missing_ok=True)

    def names(self, scene: str) -> set[str]:
        """The names of the files of a scene's tiles that are there."""
        pages = [self.destination.pages(f"{folder}/{scene}", lambda page: page.paths) for folder in self.folders]
        return {path for listed in pages for paths in listed for path in paths}

    def agreeing(self, tiles: Sequence[tuple[str, str]], present: set[str]) -> set[str]:
        """Which tiles, given as (path, digest of what they are made from), are there and agree. Reads them."""
        candidates = [(path, made_from) for path, made_from in tiles if self.files_of(path) <= present]
        agree = self._threads.map(lambda tile: self._agrees(*tile), candidates)
        return {path for (path, _), does_agree in zip(candidates, agree, strict=True) if does_agree}

    def write(self, tile: TileResult) -> None:
        """Write a tile in the background. Waits if many tiles are not written yet."""
        while not self._room.acquire(timeout=WAIT_S):
            self.interrupt()
        self._threads.submit(self._write, tile).add_done_callback(self._done)
        self._raise_failure()

    def may_have(self, names: Sequence[str]) -> bool:
        """Whether the files are there, or in a bucket, which is not asked."""
        return self.destination.bucket is not None or all(
            (Path(self.destination.path) / name).is_file() for name in names
        )

    def in_order(self, folder: str, paths: Sequence[str]) -> Iterator[np.ndarray]:
        """The pixels (bands, H, W) of tiles that are there, in order; some are read ahead."""
        for first in range(0, len(paths), MOST_WAITING):
            names = [f"{folder}/{path}" for path in paths[first : first + MOST_WAITING]]
            yield from map(rasters.read_tile, self._threads.map(self.destination.read, names))

    def files_of(self, path: str) -> set[str]:
        return {f"{folder}/{path}" for folder in self.folders}

    def _agrees(self, path: str, made_from: str) -> bool:
        return all(rasters.made_from(self.destination.read(name)) == made_from for name in sorted(self.files_of(path)))

    def _write(self, tile: TileResult) -> None:
        path = tile_path(tile.scene, tile.zxy)
        if tile.probabilities is not None:
            missing = tile.classes == rasters.NO_DATA
            content = rasters.probability_tile(tile.probabilities, missing, tile.zxy, self._class_names, tile.made_from)
            self.destination.write(f"{PROBABILITIES}/{path}", content)
        content = rasters.class_tile(tile.classes, tile.zxy, self._legend, tile.made_from)
        self.destination.write(f"{CLASSES}/{path}", content)

    def _done(self, written: Future[None]) -> None:
        self._room.release()
        if not written.cancelled() and (error := written.exception()):
            self._failures.append(error)

    def _raise_failure(self) -> None:
        if self._failures:
            raise self._failures[0]


def tile_path(scene: str, zxy: tuple[int, int, int]) -> str:
    z, x, y = zxy
    return f"{scene}/{z}/{x}/{y}.tif"
