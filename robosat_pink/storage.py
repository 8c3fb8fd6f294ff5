"""Object storage: list, read and write, with the same calls for s3:// and folders.

A `Location` is a name from the experiment file and pickles; the client behind it is made on first use, once a process,
because clients survive neither pickling nor fork: in a child forked after the first use, they raise.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore import exceptions
from obstore.store import LocalStore, S3Store

from robosat_pink.credentials import identity
from robosat_pink.errors import ConfigError
from robosat_pink.explanations import NotFound, broke_off, explained, may_pass
from robosat_pink.rules import web_address

if TYPE_CHECKING:
    from obstore.store import ClientConfig

T = TypeVar("T")
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]+")
MD5 = re.compile('"[0-9a-f]{32}"')
LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1")
RETRY_S = 45.0  # no request begins later than this after the first of its kind
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
COLUMNS = ("path", "size", "e_tag")  # of a listing
PAGE_KEYS = 1000  # S3 gives no more at a time
RETRIES = 8  # of a listing's requests, by the client itself
# For a connection, for the first byte and any further part, and for a whole object: a slow line may take its time.
TIMEOUTS: ClientConfig = {
    "connect_timeout": timedelta(seconds=5),
    "read_timeout": timedelta(seconds=10),
    "timeout": timedelta(minutes=5),
}


@dataclass(frozen=True)
class Location:
    """A bucket with an optional prefix, or a folder; `name` is as the user spelt it, without scheme and final slash."""

    name: str
    bucket: str | None
    path: str  # the prefix in the bucket, or the folder
    profile: str | None = None
    endpoint_url: str | None = None
    verify_md5: bool | Literal["auto"] = "auto"  # auto: unless TLS does, or nothing leaves this machine

    @classmethod
    def parse(
        cls,
        text: str,
        channels: Mapping[str, Path] | None = None,
        profile: str | None = None,
        endpoint_url: str | None = None,
        verify_md5: bool | Literal["auto"] = "auto",
    ) -> Location:
        """`bucket[/prefix]` or `s3://…`; a folder starts with / ./ ../ or file://; `channel:NAME[/…]` is a channel."""
        name = text.removeprefix("file://").removeprefix("s3://").rstrip("/") or "/"
        if text.startswith("channel:"):
            channel, _, rest = name.removeprefix("channel:").partition("/")
            if channel not in (channels or {}):
                there = ", ".join(channels or {}) or "none"
                raise ConfigError(f"{text}: there is no channel {channel!r}; channels of this run: {there}")
            assert channels is not None
            return cls(name, None, str(channels[channel] / rest))
        if text.startswith(("/", "./", "../", "file://")) or text in (".", ".."):
            return cls(os.path.normpath(name), None, os.path.abspath(name))
        bucket, _, prefix = name.partition("/")
        if not BUCKET.fullmatch(bucket):
            raise ConfigError(f"{text!r}: accepted: bucket/prefix, s3://bucket/prefix, /folder, ./folder, channel:NAME")
        return cls(name, bucket, prefix, profile, endpoint_url, verify_md5)

    def __str__(self) -> str:
        return f"s3://{self.name}" if self.bucket else self.name

    def directories(self) -> list[str]:
        """Names of the directories right below, sorted."""

        def find() -> Sequence[str]:
            return obstore.list_with_delimiter(_client(self))["common_prefixes"]

        found, _ = self._persistently("", find, broke_off)  # who mistypes an endpoint shall know at once
        return sorted(str(name).rstrip("/").rsplit("/", 1)[-1] for name in found)

    def pages(self, directory: str, take: Callable[[Page], T]) -> list[T]:
        """What `take` makes of every page of a directory's flat listing, in order.

        From the first again where a page breaks off; what is wrong before a page begins, the client tries again itself.
        """

        def take_all() -> list[T]:
            found: list[T] = []
            for batch in obstore.list(_client(self), prefix=prefix, chunk_size=PAGE_KEYS, return_arrow=True):
                columns: Any = [batch.column(name).to_pylist() for name in COLUMNS]
                found.append(take(Page(prefix, *columns)))
            return found

        prefix = f"{directory}/"
        return self._persistently(prefix, take_all)[0]

    def read(self, path: str) -> bytes:
        """The whole object, by one GET."""
        return bytes(self.fetch(path).content)

    def fetch(self, path: str) -> Fetched:
        """The whole object, by one GET; by further ones, ever longer apart, while it is the network or the store that
        fails, for RETRY_S seconds. Length and, where the store gives one, MD5 are verified.
        """
        unlike: set[bytes] = set()

        def get() -> tuple[memoryview, StoredFile]:
            content, file = _get(self, path)
            digest = _digest_if_unlike(self, content, file.etag)
            if digest in unlike and self not in _with_md5:  # the same bytes again: they are the object's, not its ETag
                _without_md5.add(self)
            elif digest is not None:
                unlike.add(digest)
                raise exceptions.GenericError(
                    "what came is not what the store has, by its MD5 (if some ETags are none, set dataset.verify_md5 "
                    "to false)"
                )
            return content, file

        (content, file), retries = self._persistently(path, get)
        return Fetched(content, file, retries)

    def _persistently(
        self, path: str, work: Callable[[], T], is_to_retry: Callable[[Exception], bool] = may_pass
    ) -> tuple[T, int]:
        """What the work gives, and how often it had to be done again: for RETRY_S at most, ever longer apart."""
        started = time.monotonic()
        for retries in itertools.count():
            try:
                return work(), retries
            except (exceptions.BaseError, OSError) as caught:
                error = caught
            pause_s = min(FIRST_PAUSE_S * 2**retries, LONGEST_PAUSE_S) * random.uniform(0.1, 1.0)  # noqa: S311
            if not is_to_retry(error) or time.monotonic() - started + pause_s > RETRY_S:
                break
            time.sleep(pause_s)
        tried = f" (tried {retries + 1} times in {time.monotonic() - started:.0f} s)" if retries else ""
        with self._explained(path, tried):
            raise error

    def _explained(self, path: str, tried: str = "") -> AbstractContextManager[None]:
        return explained(f"{self}/{path}".rstrip("/"), self.bucket, self.profile, tried)


@dataclass(frozen=True)
class StoredFile:
    path: str
    size: int
    etag: str  # empty where the store gives none


class Page(NamedTuple):
    """Some of a directory's files, as columns."""

    prefix: str  # of all paths: the directory and a slash
    paths: list[str]  # below the bucket or folder
    sizes: list[int]
    etags: list[str | None]


class Fetched(NamedTuple):
    content: memoryview  # the client's own, not copied
    file: StoredFile
    retries: int


def read_file(text: str, channels: Mapping[str, Path] | None = None, **options: Any) -> bytes:
    """A single file named like a location: s3://bucket/key, a local path, or channel:NAME/file."""
    parent, slash, name = text.rpartition("/")
    if not slash or not name or parent in ("s3:", "s3:/", "file:", "file:/"):
        raise ConfigError(f"{text!r}: accepted: s3://bucket/key, /folder/file, ./file, channel:NAME/file")
    return Location.parse(f"{parent}/", channels, **options).read(name)


def _get(location: Location, path: str) -> tuple[memoryview, StoredFile]:
    found = obstore.get(_client(location, retries=0), path)
    content = memoryview(found.bytes())
    file = StoredFile(path, found.meta["size"], found.meta["e_tag"] or "")
    if len(content) != file.size:
        raise exceptions.GenericError(f"{len(content)} bytes came, of {file.size}")
    return content, file


_with_md5: set[Location] = set()  # where an ETag has been one,
_without_md5: set[Location] = set()  # and where one has been none


def _digest_if_unlike(location: Location, content: memoryview, etag: str) -> bytes | None:
    """The content's MD5 if it should be the ETag and is not.

    ETags of objects that were uploaded in parts do not look like one; of those that S3 encrypts by KMS they do.
    """
    if not _verifies_md5(location) or location in _without_md5 or not MD5.fullmatch(etag):
        return None
    digest = hashlib.md5(content, usedforsecurity=False)
    if digest.hexdigest() != etag.strip('"'):
        return digest.digest()
    _with_md5.add(location)
    return None


@functools.cache
def _verifies_md5(location: Location) -> bool:
    if location.verify_md5 != "auto":
        return location.verify_md5
    address = urlsplit(_endpoint(location) or "https://")
    return address.scheme == "http" and not LOOPBACK.fullmatch(address.hostname or "")


def _endpoint(location: Location) -> str | None:
    """Raises ConfigError for a variable that is no address; an empty one is as good as none, also to the client."""
    if location.endpoint_url:
        return location.endpoint_url
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        value = os.environ.get(name)
        if value and not web_address.holds(value):
            raise ConfigError(f"environment: {name} = {value!r}: accepted: {web_address.accepts}")
        if value:
            return value
        os.environ.pop(name, None)
    return None


def _client(location: Location, retries: int = RETRIES) -> S3Store | LocalStore:
    """Raises RuntimeError in a process that was forked from one with clients: their threads are not in it."""
    if _process_with_clients() != os.getpid():
        raise RuntimeError(
            f"{location}: this process was forked from one that had read from a store before, and would hang; start it "
            "by forkserver or spawn, as in DataLoader(..., multiprocessing_context='forkserver')"
        )
    return _client_here(location, retries)


@functools.cache
def _process_with_clients() -> int:
    return os.getpid()


@functools.cache
def _client_here(location: Location, retries: int) -> S3Store | LocalStore:
    if location.bucket is None:
        if not Path(location.path).is_dir():
            where = "" if location.name == location.path else f"; it was looked for at {location.path}"
            raise NotFound(f"{location}: no such folder{where}")
        return LocalStore(location.path)
    endpoint = _endpoint(location)
    return S3Store(
        location.bucket,
        prefix=location.path or None,
        client_options={"allow_http": bool(endpoint and endpoint.startswith("http://")), **TIMEOUTS},
        retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=RETRY_S)},
        **identity(location.profile) | ({"endpoint": endpoint} if endpoint else {}),
    )
