"""What lies in a store or folder, page by page, and none of them again and again.

Called by `storage`. The client itself follows continuation tokens for as long as there are any, in silence.
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
from robosat_pink.storage.refused_keys import Key

T = TypeVar("T")
PAGE_KEYS = 1000  # S3 gives no more at a time
COLUMNS = ("path", "size", "e_tag")  # beside when it was last modified
SECONDS = DataType.timestamp("s", tz="UTC")
PAGE_S = 90.0  # for a page; the client may repeat a request for half of it
PATIENCE_S = 10.0  # for the names of directories, which come by one request mostly, before it is found out why not
WHOLE_S = 1800.0  # for the names of directories
LOOKED_INTO, SOME_KEYS = 1000, 100  # pages, and keys in each, to find out
REPEATS = 10  # of the same keys are no accident


class Page(NamedTuple):
    """Some of a directory's files, as columns."""

    prefix: str  # of all paths: the directory and a slash
    paths: list[str]  # below the bucket or folder
    sizes: list[int]
    etags: list[str]  # canonical; empty where the store gives none
    modified: list[int]  # whole seconds since 1970


def pages(client: S3Store, prefix: str, where: str) -> Iterator[Page]:
    """The files below a prefix. Raises DataError, which names `where`, if the listing goes round.

    For a page that does not come there is no limit of time here: the client waits in a way that nothing ends. Whoever
    asks in a thread of its own looks at the clock.
    """
    rounds = _Rounds(where)
    for batch in _stream(client, prefix):
        columns: list[Any] = [batch.column(name).to_pylist() for name in COLUMNS]
        modified: Any = batch.column("last_modified").cast(SECONDS).cast(DataType.int64()).to_pylist()
        paths, sizes, etags = columns
        rounds.look(paths)
        yield Page(prefix, paths, sizes, canonical_etags(etags), modified)


def silence(where: str) -> DataError:
    """What to say of a listing that has not gone on for PAGE_S."""
    return DataError(
        f"{where}: no file was listed for {PAGE_S:.0f} s, though the store answers; its pages are empty, or repeat "
        "their continuation token; check the store, or the gateway before it"
    )


def paged(prefix: str, found: Iterator[Key]) -> Iterator[Page]:
    """The same of files that come one by one."""
    while rows := list(itertools.islice(found, PAGE_KEYS)):
        paths, sizes, etags, modified = map(list, zip(*rows, strict=True))
        yield Page(prefix, paths, sizes, canonical_etags(etags), modified)


def directories(client: S3Store | LocalStore, where: str) -> Sequence[str]:
    """The prefixes right below, by a slash. Raises DataError, which names `where`, if the listing does not end."""

    async def find() -> Sequence[str]:
        listing = asyncio.ensure_future(_awaited(obstore.list_with_delimiter_async(client)))
        try:
            await asyncio.wait({listing}, timeout=PATIENCE_S)
            if not listing.done() and isinstance(client, S3Store):
                await _look_into(client, where)
            if not listing.done():
                await asyncio.wait({listing}, timeout=WHOLE_S)
            if not listing.done():
                raise DataError(f"{where}: the listing of its directories has not ended in {WHOLE_S:.0f} s")
            return listing.result()["common_prefixes"]
        finally:
            listing.cancel()

    return asyncio.run(find())


async def _look_into(client: S3Store, where: str) -> None:
    """Whether listings go on here, and not round, by the files that lie anywhere below."""
    stream, rounds = _stream(client, None, SOME_KEYS), _Rounds(where)
    for _ in range(LOOKED_INTO):
        batch = await _next(stream, where)
        if batch is None:
            return
        rounds.look(batch.column("path").to_pylist())


def _stream(client: S3Store, prefix: str | None, keys: int = PAGE_KEYS) -> Any:
    return obstore.list(client, prefix=prefix, chunk_size=keys, return_arrow=True)


async def _next(stream: Any, where: str) -> Any:
    try:
        return await asyncio.wait_for(_awaited(stream.__anext__()), PAGE_S)
    except StopAsyncIteration:
        return None
    except TimeoutError as error:
        raise silence(where) from error


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable


class _Rounds:
    """Finds a listing that goes round, by Brent's way: two keys are remembered, and others in their place after 1, 2,
    4, 8 … pages. A store that lists a key more than once, or in any order, does not go round.
    """

    def __init__(self, where: str) -> None:
        self.where, self.files, self.pages, self.renewed = where, 0, 0, 0
        self.seen: dict[str, int] = {}

    def look(self, paths: Sequence[str]) -> None:
        """Raises DataError if these paths have come again and again."""
        self.pages, self.files = self.pages + 1, self.files + len(paths)
        if not paths:
            return
        if self.pages >= 2 * self.renewed:
            self.seen, self.renewed = dict.fromkeys((paths[0], paths[-1]), 0), self.pages
        for path in self.seen:
            self.seen[path] += paths.count(path)
        if min(self.seen.values()) > REPEATS:
            raise DataError(
                f"{self.where}: the listing goes round: {next(iter(self.seen))} came more than {REPEATS} times in "
                f"{self.files:,} files ({max(self.files // PAGE_KEYS, 1):,} pages or more); the store repeats its "
                "continuation token; check it, or the gateway before it"
            )
