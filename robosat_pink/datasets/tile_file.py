"""Fetches a tile's file, if it is still the one that was listed, and its sidecars. Called by `reader`."""

from __future__ import annotations

import logging
from typing import NamedTuple

from robosat_pink.datasets.file_names import LARGEST, sidecar_paths, version_of
from robosat_pink.errors import DataError
from robosat_pink.storage import Fetched, Location, Resized, StoredFile
from robosat_pink.storage.error_advice import NotFound

log = logging.getLogger(__name__)

SIDECAR_BYTES = 256 * 10**6
START_AGAIN = "; start again to read today's tiles"


class Changed(DataError):
    """A tile has changed since it was listed, or is gone."""


class Entry(NamedTuple):
    """A tile's file in a listing."""

    path: str  # below the location
    version: int
    size: int  # bytes; LARGEST: that many or more, or unknown
    modified: int
    sidecars: int  # a bit for each of file_names.SIDECARS


class TileFile(NamedTuple):
    content: memoryview
    sidecars: dict[str, memoryview]  # by suffix, .msk or .aux.xml
    fetched_bytes: int
    retries: int


def read(location: Location, entry: Entry, is_listed_here: bool) -> TileFile:
    """Fetch the file by one GET, and each sidecar by another.

    Raises Changed if the file is not the listed one: a run must not see two versions of a tile.
    """
    fetched = _fetch(location, entry.path, entry.size if entry.size < LARGEST else None)
    if not _is_same(location, fetched.file, entry, is_listed_here):
        raise Changed(_changed(f"{location}/{entry.path}: has changed since it was listed"))
    beside = {name: _fetch(location, name, None, SIDECAR_BYTES) for name in sidecar_paths(entry.path, entry.sidecars)}
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
    return what + START_AGAIN


_agreeing: set[Location] = set()  # locations where some file's ETag was equal to that of the listing
_by_time: set[Location] = set()  # locations where size and Last-Modified are compared instead


def _is_same(location: Location, file: StoredFile, entry: Entry, is_listed_here: bool) -> bool:
    """Whether a fetched file is the listed one.

    In a bucket, compares ETags; size and Last-Modified if there is no ETag, or if this store's ETags never agree with
    those of its listings. In a folder, compares size and time; only size if another host has listed the folder, where
    copies have other times. A folder's ETags contain inodes, which some network mounts renumber.
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
