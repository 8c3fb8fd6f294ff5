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

MAX_TILE_BYTES = 10**9  # as stored, and unzipped
CHUNK_BYTES = 1 << 20  # unzipped at a time
NO_ENCODING = {"", "identity", "aws-chunked"}  # the last belongs to an upload; some stores keep it
GZIP_NAMES, GZIP_MAGIC = ({"gzip"}, {"x-gzip"}), b"\x1f\x8b"
NOT_A_FILE = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class Resized(DataError):
    """An object has another size than when it was listed."""


@dataclass(frozen=True)
class StoredFile:
    path: str
    size: int  # bytes as stored, with any Content-Encoding
    etag: str  # canonical; empty where the store has none
    modified: int  # whole seconds since 1970; 0 where the store does not say


class Fetched(NamedTuple):
    content: memoryview  # decoded; the client's memory, not a copy, if it was not encoded
    file: StoredFile
    retries: int


def canonical_etags(etags: Sequence[str | None]) -> list[str]:
    """ETags in double quotes and without W/, as RFC 9110, section 8.8.3 has them; "" for none."""
    return [etag if etag and etag[0] == '"' and len(etag) > 2 else _canonical(etag) for etag in etags]


def _canonical(etag: str | None) -> str:
    opaque = (etag or "").strip().removeprefix("W/").strip('"')
    return f'"{opaque}"' if opaque else ""


def get_object(
    client: S3Store | LocalStore, path: str, where: str, size: int | None, max_bytes: int
) -> tuple[memoryview, StoredFile, str]:
    """The bytes as stored, and their Content-Encoding.

    Raises, before reading, Resized if the size is not `size` and DataError if it is above `max_bytes`; the client's
    error if fewer bytes came.
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
    """DataError for a pipe, socket or device, which may block or never end. The client reports missing files."""
    try:
        kind = NOT_A_FILE.get(stat.S_IFMT(path.stat().st_mode))
    except OSError:
        return
    if kind:
        raise DataError(f"{where}: is {kind}; accepted: a file")


def decode_content(content: memoryview, encoding: str, where: str, max_bytes: int) -> memoryview:
    """The content without its Content-Encoding, at most `max_bytes`. Raises DataError for other encodings than gzip.

    Some stores send the header with content that they have unzipped: without gzip's first bytes it stays as it is.
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
