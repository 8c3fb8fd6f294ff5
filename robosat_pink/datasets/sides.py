"""The tiles of both sides of an experiment, images and masks, as their buckets or folders list them.

Called by `datasets`.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple, TypeVar

import numpy as np

from robosat_pink.container import hardware
from robosat_pink.container.some_names import some_names
from robosat_pink.datasets.expressions import Groups, Names, matching
from robosat_pink.datasets.file_names import FILE, SIDECARS, TILE_PATH, likeliest, misfit, parse_names
from robosat_pink.datasets.tiles import TileFiles
from robosat_pink.errors import DataError
from robosat_pink.storage import Location, Page, listings
from robosat_pink.storage.error_advice import NotFound

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
DIRECTORIES = 10  # of each side listed side by side; with more of them two cores have no time left
SAMPLES = 5  # tiles named in an error
MOST_GROWN = 2 * 10**9  # bytes of this process while it lists, beside what it keeps of the listings
LOOK_S = 1.0  # between two looks at listings that are under way


class Side(NamedTuple):
    """Where images or masks are, and what the experiment calls its keys: those of bucket and expression."""

    location: Location
    expression: str
    bucket_key: str
    expression_key: str


class Listed(NamedTuple):
    files: TileFiles
    groups: list[Groups]  # what the expression's named groups matched, by directory


class Scan(NamedTuple):
    """What one directory holds."""

    table: np.ndarray  # of tiles and sidecars
    files: int
    stray: str | None  # of a directory without tiles, a file that may have been meant for one


def list_sides(sides: Sequence[Side]) -> list[Listed]:
    """The tiles in the directories right below each side's location that match its expression.

    A signal ends the wait for a store that does not answer. Raises DataError where there is no tile, and ConfigError
    for an expression that takes too long.
    """
    memory = _Memory([str(side.location) for side in sides])
    there = side_by_side(_directories, sides, len(sides), memory.look)
    asked = [
        Names(side.expression_key, side.expression, names, str(side.location))
        for side, names in zip(sides, there, strict=True)
    ]
    matches = matching(asked)
    for side, names, found in zip(sides, there, matches, strict=True):
        if not found:
            raise DataError(
                f"{side.expression_key} = {side.expression!r} matches no directory of {side.location}; there are: "
                f"{some_names(names)}"
            )
    jobs = [(side.location, name) for side, found in zip(sides, matches, strict=True) for name in found]
    scans = iter(_scan_all(jobs, DIRECTORIES * len(sides)))
    of_sides = [{name: next(scans) for name in found} for found in matches]
    return [
        Listed(_tiles(side, scans_of_side), list(found.values()))
        for side, scans_of_side, found in zip(sides, of_sides, matches, strict=True)
    ]


def side_by_side(
    work: Callable[[T], R], items: Sequence[T], threads: int, look: Callable[[], None] = lambda: None
) -> list[R]:
    """What `work` makes of each item. Whoever is stopped, or has one error, does not wait for the other threads.

    `look` is called now and then meanwhile, and may raise.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        results = [_result(future, look) for future in [pool.submit(work, item) for item in items]]
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return results


def _result(future: Future[R], look: Callable[[], None]) -> R:
    while not wait([future], LOOK_S).done:
        look()
    return future.result()


def described(location: Location, files: TileFiles, expression: str) -> str:
    directories = some_names(files.directories)
    samples = ", ".join(files.path(row) for row in range(min(SAMPLES, len(files))))
    return (
        f"{location}, expression {expression!r}: {len(files)} tiles in the directories {directories}, such as {samples}"
    )


def _directories(side: Side) -> list[str]:
    location = side.location

    def refuse(page: Page) -> None:
        found = likeliest(page.paths) or "none"
        raise DataError(
            f"{side.bucket_key}: no directories lie below {location}, but files: found {found}; expected "
            "DIRECTORY/ZOOM/X/Y.tif for each tile; check bucket and prefix, or copy the tiles to such names"
        )

    try:
        names = location.directories()
        if not names:
            location.pages("", refuse)
    except NotFound as error:
        raise NotFound(f"{side.bucket_key}: {error}") from error
    if not names:
        raise DataError(f"{side.bucket_key}: no directories lie below {location}; check bucket and prefix")
    return names


def _scan_all(jobs: Sequence[tuple[Location, str]], threads: int) -> list[Scan]:
    """Raises DataError where a store is silent in the middle of a listing; a folder may be as slow as it is large."""
    heard: dict[int, float] = {}  # when the last page of each listing under way has come, by the job's number
    memory = _Memory(list(dict.fromkeys(str(location) for location, _ in jobs)))

    def scan(number: int) -> Scan:
        def beat(table: np.ndarray) -> None:
            heard[number] = time.monotonic()
            memory.kept += table.nbytes

        heard[number] = time.monotonic()
        found = _scan(jobs[number], beat)
        del heard[number]
        return found

    def look() -> None:
        memory.look()
        for number, when in list(heard.items()):
            location, directory = jobs[number]
            if location.bucket and time.monotonic() - when > listings.PAGE_TIMEOUT_S:
                raise listings.stalled(f"{location}/{directory}")

    return side_by_side(scan, range(len(jobs)), threads, look)


class _Memory:
    """Finds a page that does not end, which the client takes in whole, by what this process has grown by."""

    def __init__(self, places: Sequence[str]) -> None:
        self.places, self.began, self.kept = places, hardware.resident_bytes(), 0

    def look(self) -> None:
        """Raises DataError where that is too much; tables, of `kept` bytes, are for a moment there twice."""
        grown = hardware.resident_bytes() - self.began - 2 * self.kept
        if grown > MOST_GROWN:
            raise DataError(
                f"{' or '.join(self.places)}: to list it has taken {grown / 1e9:.1f} GB of memory beside what is kept "
                "of it; a page of the listing does not end; check the store, or the gateway before it"
            )


def _scan(job: tuple[Location, str], beat: Callable[[np.ndarray], None]) -> Scan:
    """What a directory holds; `beat` is called with each page's table."""
    location, directory = job
    strays: list[str] = []

    def parse(page: Page) -> tuple[np.ndarray, int]:
        table = parse_names(*page)
        beat(table)
        if not len(table) and not strays:
            strays.extend(filter(None, [likeliest(page.paths)]))
        return table, len(page.paths)

    pages = location.pages(directory, parse)
    table = np.concatenate([table for table, _ in pages] or [np.empty(0, dtype=FILE)])  # fewer blocks fall to pieces
    return Scan(table, sum(files for _, files in pages), strays[0] if strays else None)


def _tiles(side: Side, scans: Mapping[str, Scan]) -> TileFiles:
    files = TileFiles.from_tables({name: [scan.table] for name, scan in scans.items()})
    if not len(files):
        raise DataError(_why_no_tile(side, scans))
    others = sum(scan.files - len(scan.table) for scan in scans.values())
    log.info("listed %d tiles of %s (directories: %d, other files: %d)", len(files), side.location, len(scans), others)
    if with_sidecars := int((files.sidecars > 0).sum()):
        log.info("%d of them have a file beside them (%s)", with_sidecars, ", ".join(SIDECARS[:2]))
    return files


def _why_no_tile(side: Side, scans: Mapping[str, Scan]) -> str:
    """What was found, what is expected, and the way out."""
    where = f"{side.bucket_key}: {side.location} holds no tile in its directories {some_names(list(scans))}"
    found = likeliest([scan.stray for scan in scans.values() if scan.stray])
    if found is None:
        return f"{where}, and no other file; check bucket, prefix and {side.expression_key}"
    zxy = "/".join(found.split("/")[-3:])
    depth = found.count("/")
    if not TILE_PATH.fullmatch(zxy):
        expected = "DIRECTORY/ZOOM/X/Y.tif"
        way_out = f"{misfit(found)}; copy the tiles to such names"
    elif depth == 2:
        expected = f"DIRECTORY/{found}"
        way_out = f"the tiles lie directly below the bucket; {_one_level_up(side, found)}"
    else:
        directory, _, rest = found.removesuffix(f"/{zxy}").rpartition("/")
        expected = f"{rest}/{zxy}"
        way_out = f"the tiles lie deeper; give {side.bucket_key}: {_spelt(side.location)}/{directory}"
    return f"{where}: found {found}, expected {expected}: {way_out}"


def _one_level_up(side: Side, found: str) -> str:
    location = side.location
    parent, _, directory = _spelt(location).rpartition("/")
    if parent and not parent.endswith("/"):
        return f"give {side.bucket_key}: {parent} and {side.expression_key}: {re.escape(directory)}$"
    zoom = found.partition("/")[0]
    return f"copy them below a directory: aws s3 cp --recursive s3://{location.name}/{zoom}/ s3://{location.name}/scene/{zoom}/"


def _spelt(location: Location) -> str:
    """As an experiment file may have it."""
    return f"s3://{location.name}" if location.bucket else location.path
