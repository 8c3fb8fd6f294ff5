"""One object of a bucket or file of a folder: its size limit, its ETag, its Content-Encoding. Called by `location`."""

from __future__ import annotations

import gzip
import io
import stat
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import obstore
from obstore import exceptions
from obstore.store import LocalStore, S3Store

from robosat_pink.errors import DataError

MAX_TILE_BYTES = 10**9  # per tile, as stored and unzipped
CHUNK_BYTES = 1 << 20  # unzipped at a time
NO_ENCODING = {"", "identity", "aws-chunked"}  # aws-chunked belongs to an upload, but some stores keep it
GZIP_NAMES, GZIP_MAGIC = ({"gzip"}, {"x-gzip"}), b"\x1f\x8b"
NOT_A_FILE = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class Resized(DataError):
    """The size of an object has changed since it was listed."""


@dataclass(frozen=True)
class StoredFile:
    path: str
    size: int  # bytes as stored, with any Content-Encoding
    etag: str  # canonical; empty if the store has none
    modified: int  # whole seconds since 1970; 0 if the store does not report it


class Fetched(NamedTuple):
    content: memoryview  # decoded; if it was not encoded, the client's memory, not a copy
    file: StoredFile
    retries: int


def canonical_etags(etags: Sequence[str | None]) -> list[str]:
    """ETags in double quotes (RFC 9110, section 8.8.3), without the W/ of weak ones; "" for none."""
    return [etag if etag and etag[0] == '"' and len(etag) > 2 else _canonical(etag) for etag in etags]


def _canonical(etag: str | None) -> str:
    opaque = (etag or "").strip().removeprefix("W/").strip('"')
    return f'"{opaque}"' if opaque else ""


def get_object(
    client: S3Store | LocalStore, path: str, where: str, size: int | None, max_bytes: int
) -> tuple[memoryview, StoredFile, str]:
    """The bytes as stored, the object's metadata, and its Content-Encoding.

    Raises, before reading, Resized if its size is not `size` and DataError if it is above `max_bytes`. Raises the
    client's error if fewer bytes came.
    """
    if isinstance(client, LocalStore):
        _check_is_file(Path(str(client.prefix), path), where)
    answer = obstore.get(client, path)
    meta = answer.meta
    file = StoredFile(path, meta["size"], _canonical(meta["e_tag"]), int(meta["last_modified"].timestamp()))
    if size is not None and file.size != size:
        raise Resized(f"{where}: has {file.size:,} bytes, and had {size:,} when it was listed")
    if file.size > max_bytes:
        raise DataError(f"{where}: has {file.size:,} bytes; accepted: up to {max_bytes:,}")
    content = memoryview(answer.bytes())
    if len(content) != file.size:
        raise exceptions.GenericError(f"{len(content)} bytes came, of {file.size}")
    return content, file, answer.attributes.get("Content-Encoding", "")


def _check_is_file(path: Path, where: str) -> None:
    """Raises DataError for a pipe, socket or device, which may block or never end. The client reports missing files."""
    try:
        kind = NOT_A_FILE.get(stat.S_IFMT(path.stat().st_mode))
    except OSError:
        return
    if kind:
        raise DataError(f"{where}: is {kind}; accepted: a file")


def decode_content(content: memoryview, encoding: str, where: str, max_bytes: int) -> memoryview:
    """The content without its Content-Encoding, at most `max_bytes`. Raises DataError for other encodings than gzip.

    Some stores send this header with content that they have unzipped. So content without gzip's first bytes is returned
    unchanged.
    """
    encodings = {name.strip().lower() for name in encoding.split(",")} - NO_ENCODING
    if not encodings:
        return content
    if encodings not in GZIP_NAMES:
        raise DataError(f"{where}: its Content-Encoding is {encoding}; accepted: gzip or none; upload it without one")
    if content[:2] != GZIP_MAGIC:
        return content
    try:
        return memoryview(_unzip(content, where, max_bytes))
    except (zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{where}: its Content-Encoding is gzip, but is damaged ({error}); upload it again") from error


def _unzip(content: memoryview, where: str, max_bytes: int) -> bytearray:
    unzipped = bytearray()
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        while chunk := file.read(CHUNK_BYTES):
            unzipped += chunk
            if len(unzipped) > max_bytes:
                raise DataError(f"{where}: unzips to more than {max_bytes:,} bytes, which is the limit")
    return unzipped
