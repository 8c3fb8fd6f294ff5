"""A tile's file and its sidecars as they are fetched, if they are those that were listed. Called by `reader`."""

from __future__ import annotations

import logging
from typing import NamedTuple

from robosat_pink.datasets.file_names import LARGEST, sidecar_names, version_of
from robosat_pink.errors import DataError
from robosat_pink.storage import Fetched, Location, Resized, StoredFile
from robosat_pink.storage.error_advice import NotFound

log = logging.getLogger(__name__)

SIDECAR_BYTES = 256 * 10**6


class Changed(DataError):
    """A tile is not the one that was listed, or is gone."""


class Entry(NamedTuple):
    """What a listing says of a tile's file."""

    path: str  # below the location
    version: int
    size: int  # bytes; LARGEST: that many, more, or not known
    modified: int
    sidecars: int


class TileFile(NamedTuple):
    content: memoryview
    sidecars: dict[str, memoryview]  # by .msk and .aux.xml
    fetched_bytes: int
    retries: int


def read(location: Location, entry: Entry, is_listed_here: bool) -> TileFile:
    """The file, by one GET, and one for each sidecar. Changed where it is not the one listed: no run shall see two."""
    fetched = _fetch(location, entry.path, entry.size if entry.size < LARGEST else None)
    if not _is_same(location, fetched.file, entry, is_listed_here):
        raise Changed(_changed(f"{location}/{entry.path}: has changed since it was listed"))
    beside = {name: _fetch(location, name, None, SIDECAR_BYTES) for name in sidecar_names(entry.path, entry.sidecars)}
    answers = [fetched, *beside.values()]
    return TileFile(
        content=fetched.content,
        sidecars={name.removeprefix(entry.path).lower(): sidecar.content for name, sidecar in beside.items()},
        fetched_bytes=sum(len(answer.content) for answer in answers),
        retries=sum(answer.retries for answer in answers),
    )


def _fetch(location: Location, path: str, size: int | None, max_bytes: int | None = None) -> Fetched:
    limit = {} if max_bytes is None else {"max_bytes": max_bytes}
    try:
        return location.fetch(path, size, **limit)
    except NotFound as error:
        raise Changed(_changed(f"{error}. It was there when listed")) from error
    except Resized as error:
        raise Changed(_changed(f"{location}/{path}: has changed since it was listed")) from error


def _changed(what: str) -> str:
    return f"{what}; start again to train on today's tiles"


_agreeing: set[Location] = set()  # where some file's ETag was that of the listing
_by_time: set[Location] = set()  # where size and Last-Modified are compared instead


def _is_same(location: Location, file: StoredFile, entry: Entry, is_listed_here: bool) -> bool:
    """By ETag. By size and Last-Modified where there is none, or where this store's never agree with its listings'.

    A file of a folder by its size; by its time, too, unless another host has listed it, which has copies of its own. A
    folder's ETags hold inodes, which some network mounts renumber.
    """
    is_of_that_time = file.size == entry.size and file.modified & LARGEST == entry.modified
    if location.bucket is None:
        return is_of_that_time or (file.size == entry.size and not is_listed_here)
    if file.etag and version_of(file.etag, file.size, file.modified) == entry.version:
        _agreeing.add(location)
        return True
    has_none = not file.etag or version_of("", file.size, file.modified) == entry.version
    if not is_of_that_time or not (has_none or location not in _agreeing):
        return False
    if location not in _by_time:
        _by_time.add(location)
        why = "does not give ETags" if has_none else "gives other ETags in listings than with the objects"
        log.warning(
            "warning: %s %s; it is compared by size and Last-Modified whether tiles have changed", location, why
        )
    return True
