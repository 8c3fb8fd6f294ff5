"""Lists directories of a bucket or folder concurrently, with limits on silence and memory. Called by `sides`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple, TypeVar

import numpy as np

from robosat_pink.container import hardware
from robosat_pink.datasets.file_names import FILE, likeliest, parse_names
from robosat_pink.errors import DataError
from robosat_pink.storage import Location, Page, listings

T = TypeVar("T")
R = TypeVar("R")
MOST_GROWN = 2 * 10**9  # bytes by which this process may grow while it lists, not counting the tables it keeps
LOOK_S = 1.0  # seconds between two checks of listings in flight


class Scan(NamedTuple):
    """The files of one directory."""

    table: np.ndarray  # (N,) of dtype FILE: tiles and sidecars
    files: int  # number of all files
    stray: str | None  # if the directory has no tiles, a file that may have been meant for one


class MemoryWatch:
    """Detects an endless page of a listing by the growth of this process, because the client buffers whole pages."""

    def __init__(self, locations: Sequence[str]) -> None:
        self.locations, self.began, self.kept = locations, hardware.resident_bytes(), 0

    def check(self) -> None:
        """Raises DataError for growth beyond MOST_GROWN, plus twice `kept`: tables are in memory twice for a moment."""
        grown = hardware.resident_bytes() - self.began - 2 * self.kept
        if grown > MOST_GROWN:
            raise DataError(
                f"{' or '.join(self.locations)}: to list it has taken {grown / 1e9:.1f} GB of memory beside what is "
                "kept of it; a page of the listing does not end; check the store, or the gateway before it"
            )


def scan_all(directories: Sequence[tuple[Location, str]], threads: int) -> list[Scan]:
    """List directories. Raises DataError if a store goes silent during a listing; folders have no time limit."""
    scanning = _Scanning(directories)
    return side_by_side(scanning.scan, range(len(directories)), threads, scanning.watch)


class _Scanning:
    """The listings in flight, by number of the directory, and the time at which the last page of each arrived."""

    def __init__(self, directories: Sequence[tuple[Location, str]]) -> None:
        self._directories = directories
        self._last_page: dict[int, float] = {}
        self._memory = MemoryWatch(list(dict.fromkeys(str(location) for location, _ in directories)))

    def scan(self, number: int) -> Scan:
        location, directory = self._directories[number]
        self._last_page[number] = time.monotonic()
        pages = location.pages(directory, lambda page: self._parse(number, page))
        del self._last_page[number]
        # Concatenated below into one block, which leaves fewer gaps in memory.
        tables = [scan.table for scan in pages] or [np.empty(0, dtype=FILE)]
        stray = next((scan.stray for scan in pages if scan.stray), None)
        return Scan(np.concatenate(tables), sum(scan.files for scan in pages), stray)

    def _parse(self, number: int, page: Page) -> Scan:
        table = parse_names(*page)
        self._last_page[number] = time.monotonic()
        self._memory.kept += table.nbytes
        return Scan(table, len(page.paths), None if len(table) else likeliest(page.paths))

    def watch(self) -> None:
        self._memory.check()
        for number, last_page in list(self._last_page.items()):
            location, directory = self._directories[number]
            if location.bucket and time.monotonic() - last_page > listings.PAGE_TIMEOUT_S:
                raise listings.stalled(f"{location}/{directory}")


def side_by_side(
    work: Callable[[T], R], items: Sequence[T], threads: int, watch: Callable[[], None] = lambda: None
) -> list[R]:
    """Run `work` for all items in threads; returns the results in order. An error or a signal ends the wait for others.

    `watch` is called every LOOK_S meanwhile, and may raise.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        results = [_result(future, watch) for future in [pool.submit(work, item) for item in items]]
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return results


def _result(future: Future[R], watch: Callable[[], None]) -> R:
    while not wait([future], LOOK_S).done:
        watch()
    return future.result()
