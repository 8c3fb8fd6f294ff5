"""Lists directories of a bucket or folder concurrently, with limits on silence and memory.

Called by `sides`, and by `drafting` for directories that no experiment names yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple, TypeVar

import numpy as np

from robosat_pink.container import hardware
from robosat_pink.container.quantities import size
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
                f"{' or '.join(self.locations)}: to list it has taken {size(grown)} of memory beside what is "
                "kept of it; a page of the listing does not end; check the store, or the gateway before it"
            )


def scan_all(directories: Sequence[tuple[Location, str]], threads: int) -> list[Scan]:
    """List directories. Raises DataError if a store goes silent during a listing; folders have no time limit."""
    scans = _scan(directories, threads, lambda page: {page.prefix: _parsed(page)})
    return [by_prefix[f"{name}/"] for (_, name), by_prefix in zip(directories, scans, strict=True)]


def scan_layout(location: Location) -> dict[str, Scan]:
    """The tiles of a whole location, by the directory in which their z/x/y is, "" for the location itself.

    A directory with files but no tile has an empty table. Raises DataError as `scan_all` does.
    """
    (by_directory,) = _scan([(location, "")], 1, _by_directory)
    return {directory.removesuffix("/"): scan for directory, scan in by_directory.items() if scan.files}


def _scan(
    directories: Sequence[tuple[Location, str]], threads: int, parse: Callable[[Page], dict[str, Scan]]
) -> list[dict[str, Scan]]:
    scanning = _Scanning(directories, parse)
    return side_by_side(scanning.scan, range(len(directories)), threads, scanning.watch)


def _parsed(page: Page) -> Scan:
    table = parse_names(*page)
    return Scan(table, len(page.paths), None if len(table) else likeliest(page.paths))


def _by_directory(page: Page) -> dict[str, Scan]:
    rows: dict[str, list[int]] = {}
    for row, path in enumerate(page.paths):
        prefix = path.rsplit("/", 3)[0] + "/" if path.count("/") > 2 else ""
        rows.setdefault(prefix, []).append(row)
    pages = {
        prefix: Page(prefix, *([column[row] for row in chosen] for column in page[1:]))  # type: ignore[arg-type]
        for prefix, chosen in rows.items()
    }
    return {prefix: _parsed(page) for prefix, page in pages.items()}


class _Scanning:
    """The listings in flight, by number of the directory, and the time at which the last page of each arrived."""

    def __init__(self, directories: Sequence[tuple[Location, str]], parse: Callable[[Page], dict[str, Scan]]) -> None:
        self._directories, self._parse = directories, parse
        self._last_page: dict[int, float] = {}
        self._memory = MemoryWatch(list(dict.fromkeys(str(location) for location, _ in directories)))

    def scan(self, number: int) -> dict[str, Scan]:
        """The scans of a listing by prefix; of a listing without files, an empty one of the whole directory."""
        location, directory = self._directories[number]
        self._last_page[number] = time.monotonic()
        pages = location.pages(directory, lambda page: self._take(number, page))
        del self._last_page[number]
        scans: dict[str, list[Scan]] = {} if pages else {f"{directory}/": []}
        for by_prefix in pages:
            for prefix, scan in by_prefix.items():
                scans.setdefault(prefix, []).append(scan)
        return {prefix: _joined(of_prefix) for prefix, of_prefix in scans.items()}

    def _take(self, number: int, page: Page) -> dict[str, Scan]:
        scans = self._parse(page)
        self._last_page[number] = time.monotonic()
        self._memory.kept += sum(scan.table.nbytes for scan in scans.values())
        return scans

    def watch(self) -> None:
        self._memory.check()
        for number, last_page in list(self._last_page.items()):
            location, directory = self._directories[number]
            if location.bucket and time.monotonic() - last_page > listings.PAGE_TIMEOUT_S:
                raise listings.stalled(f"{location}/{directory}")


def _joined(scans: Sequence[Scan]) -> Scan:
    """The scans of several pages as one, whose table is one block, which leaves fewer gaps in memory."""
    tables = [scan.table for scan in scans] or [np.empty(0, dtype=FILE)]
    stray = next((scan.stray for scan in scans if scan.stray), None)
    return Scan(np.concatenate(tables), sum(scan.files for scan in scans), stray)


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
