"""Listings of a bucket, page by page, with an error for those that never end. Called by `location` and `scans`.

The client itself follows continuation tokens without limit, even if a store repeats them.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import obstore
from arro3.core import DataType
from obstore.store import LocalStore, S3Store

from robosat_pink.errors import DataError
from robosat_pink.storage.objects import canonical_etags
from robosat_pink.storage.refused_keys import ListedFile

T = TypeVar("T")
PAGE_KEYS = 1000  # the most that S3 lists at a time
COLUMNS = ("path", "size", "e_tag")
SECONDS = DataType.timestamp("s", tz="UTC")
PAGE_TIMEOUT_S = 90.0  # the client may spend half of it on retries
DIRECTORIES_TIMEOUT_S = 1800.0
LOOP_CHECK_AFTER_S = 10.0  # most listings of directories end before, after one request
LOOP_CHECK_PAGES, LOOP_CHECK_KEYS = 1000, 100  # pages that the check reads, and keys in each
MAX_REPEATS = 10  # of the same key; gateways may list a key twice


class Page(NamedTuple):
    """Up to PAGE_KEYS files of a directory, as columns."""

    prefix: str  # the directory and a slash, with which all paths begin
    paths: list[str]  # below the bucket or folder
    sizes: list[int]  # bytes
    etags: list[str]  # canonical; empty if the store has none
    modified: list[int]  # whole seconds since 1970


def pages(client: S3Store, prefix: str, where: str) -> Iterator[Page]:
    """The files below a prefix. Raises DataError, which names `where`, if the listing repeats itself.

    No time limit applies to a page, because nothing interrupts the client's wait: the caller runs this in a thread
    and watches PAGE_TIMEOUT_S.
    """
    loop = _LoopDetector(where)
    for batch in _stream(client, prefix):
        columns: list[Any] = [batch.column(name).to_pylist() for name in COLUMNS]
        modified: Any = batch.column("last_modified").cast(SECONDS).cast(DataType.int64()).to_pylist()
        paths, sizes, etags = columns
        loop.check(paths)
        yield Page(prefix, paths, sizes, canonical_etags(etags), modified)


def stalled(where: str) -> DataError:
    """The error for a listing without a new file for PAGE_TIMEOUT_S."""
    return DataError(
        f"{where}: no file was listed for {PAGE_TIMEOUT_S:.0f} s, though the store answers; its pages are empty, or "
        "repeat their continuation token; check the store, or the gateway before it"
    )


def in_pages(prefix: str, files: Iterator[ListedFile]) -> Iterator[Page]:
    """Pages of files that are listed one by one."""
    while rows := list(itertools.islice(files, PAGE_KEYS)):
        paths, sizes, etags, modified = map(list, zip(*rows, strict=True))
        yield Page(prefix, paths, sizes, canonical_etags(etags), modified)


def directories(client: S3Store | LocalStore, where: str) -> Sequence[str]:
    """The prefixes one level down. Raises DataError, which names `where`, if the listing does not end."""
    return asyncio.run(_directories(client, where))


async def _directories(client: S3Store | LocalStore, where: str) -> Sequence[str]:
    listing = asyncio.ensure_future(_awaited(obstore.list_with_delimiter_async(client)))
    check: asyncio.Future[None] | None = None
    try:
        await asyncio.wait({listing}, timeout=LOOP_CHECK_AFTER_S)
        if not listing.done() and isinstance(client, S3Store):
            check = asyncio.ensure_future(_check_for_loop(client, where))
            await asyncio.wait({listing, check}, return_when=asyncio.FIRST_COMPLETED)
            if not listing.done():
                check.result()
        if not listing.done():
            await asyncio.wait({listing}, timeout=DIRECTORIES_TIMEOUT_S)
        if not listing.done():
            raise DataError(f"{where}: the listing of its directories has not ended in {DIRECTORIES_TIMEOUT_S:.0f} s")
        return listing.result()["common_prefixes"]
    finally:
        listing.cancel()
        if check is not None:
            check.cancel()


async def _check_for_loop(client: S3Store, where: str) -> None:
    """Raises DataError if a listing of all files repeats itself: that of the directories then does, too."""
    stream, loop = _stream(client, None, LOOP_CHECK_KEYS), _LoopDetector(where)
    for _ in range(LOOP_CHECK_PAGES):
        batch = await _next(stream, where)
        if batch is None:
            return
        loop.check(batch.column("path").to_pylist())


def _stream(client: S3Store, prefix: str | None, keys: int = PAGE_KEYS) -> Any:
    return obstore.list(client, prefix=prefix, chunk_size=keys, return_arrow=True)


async def _next(stream: Any, where: str) -> Any:
    try:
        return await asyncio.wait_for(_awaited(stream.__anext__()), PAGE_TIMEOUT_S)
    except StopAsyncIteration:
        return None
    except TimeoutError as error:
        raise stalled(where) from error


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable


class _LoopDetector:
    """Finds a listing that repeats itself, by Brent's cycle detection.

    It remembers two keys and replaces them after 1, 2, 4, 8 … pages. A listing may repeat a key MAX_REPEATS times.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.files = self.pages = self.remembered_at_page = 0
        self.repeats: dict[str, int] = {}  # count per remembered key

    def check(self, paths: Sequence[str]) -> None:
        """Raises DataError if all remembered keys were listed more than MAX_REPEATS times."""
        self.pages += 1
        self.files += len(paths)
        if not paths:
            return
        if self.pages >= 2 * self.remembered_at_page:
            self.repeats = dict.fromkeys((paths[0], paths[-1]), 0)
            self.remembered_at_page = self.pages
        for path in self.repeats:
            self.repeats[path] += paths.count(path)
        if min(self.repeats.values()) > MAX_REPEATS:
            raise DataError(
                f"{self.where}: the listing repeats itself: {next(iter(self.repeats))} came more than {MAX_REPEATS} "
                f"times in {self.files:,} files ({max(self.files // PAGE_KEYS, 1):,} pages or more); the store repeats "
                "its continuation token; check it, or the gateway before it"
            )
