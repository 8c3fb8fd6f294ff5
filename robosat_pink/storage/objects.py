"""One object of a store or file of a folder: its size before it is read, its ETag, its MD5, its encoding.

Called by `storage`.
"""

from __future__ import annotations

import gzip
import hashlib
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

TILE_BYTES = 10**9  # a tile's file, and what its Content-Encoding undone gives
PORTION = 1 << 20  # bytes unzipped at a time
NO_ENCODINGS = {"", "identity", "aws-chunked"}  # the last is of an upload, and some stores keep it
GZIP, GZIP_BEGINS = ({"gzip"}, {"x-gzip"}), b"\x1f\x8b"
KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class Resized(DataError):
    """An object has another size than when it was listed."""


@dataclass(frozen=True)
class StoredFile:
    path: str
    size: int  # as it is stored: before an encoding is undone
    etag: str  # canonical; empty where the store gives none
    modified: int  # whole seconds since 1970; 0 where the store does not say


class Fetched(NamedTuple):
    content: memoryview  # the client's own, not copied; with its encoding undone
    file: StoredFile
    retries: int


def canonical_etags(etags: Sequence[str | None]) -> list[str]:
    """Opaque tags as headers have them: in double quotes, without W/; "" for none (RFC 9110, section 8.8.3)."""
    return [etag if etag and etag[0] == '"' and len(etag) > 2 else _canonical(etag) for etag in etags]


def _canonical(etag: str | None) -> str:
    opaque = (etag or "").strip().removeprefix("W/").strip('"')
    return f'"{opaque}"' if opaque else ""


def read_whole(
    client: S3Store | LocalStore, path: str, where: str, size: int | None, most_bytes: int
) -> tuple[memoryview, StoredFile, str]:
    """The bytes as they are stored, and their Content-Encoding. Raises DataError before any is read where there are
    more than `most_bytes`, and Resized where there are not `size`; the client's errors where fewer came.
    """
    if isinstance(client, LocalStore):
        _refuse_endless(Path(str(client.prefix), path), where)
    found = obstore.get(client, path)
    meta = found.meta
    file = StoredFile(path, meta["size"], _canonical(meta["e_tag"]), int(meta["last_modified"].timestamp()))
    if size is not None and file.size != size:
        raise Resized(f"{where}: has {file.size:,} bytes, and had {size:,} when it was listed")
    if file.size > most_bytes:
        raise DataError(f"{where}: has {file.size:,} bytes; accepted: up to {most_bytes:,}")
    content = memoryview(found.bytes())
    if len(content) != file.size:
        raise exceptions.GenericError(f"{len(content)} bytes came, of {file.size}")
    return content, file, found.attributes.get("Content-Encoding", "")


def _refuse_endless(path: Path, where: str) -> None:
    """What is no file might never end, or never begin. What is not there, the client says."""
    try:
        kind = KINDS.get(stat.S_IFMT(path.stat().st_mode))
    except OSError:
        return
    if kind:
        raise DataError(f"{where}: is {kind}; accepted: a file")


def decoded(content: memoryview, encoding: str, where: str, most_bytes: int) -> memoryview:
    """The content with its Content-Encoding undone, which gives `most_bytes` at most.

    Some stores undo it and say so all the same: what does not begin as gzip does is taken as it is.
    """
    encodings = {each.strip().lower() for each in encoding.split(",")} - NO_ENCODINGS
    if not encodings:
        return content
    if encodings not in GZIP:
        raise DataError(f"{where}: its Content-Encoding is {encoding}; accepted: gzip or none; upload it without one")
    if content[:2] != GZIP_BEGINS:
        return content
    try:
        return memoryview(_unzipped(content, where, most_bytes))
    except (zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{where}: its Content-Encoding is gzip, but is damaged ({error}); upload it anew") from error


def _unzipped(content: memoryview, where: str, most_bytes: int) -> bytearray:
    whole = bytearray()
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        while portion := file.read(PORTION):
            whole += portion
            if len(whole) > most_bytes:
                raise DataError(f"{where}: unzips to more than {most_bytes:,} bytes, which is the limit")
    return whole


def md5_if_unlike(content: memoryview, etag: str) -> bytes | None:
    """The content's MD5 if it should be the ETag and is not."""
    digest = hashlib.md5(content, usedforsecurity=False)
    return None if digest.hexdigest() == etag.strip('"') else digest.digest()
