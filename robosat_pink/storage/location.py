"""Object storage: list, read and write, with the same calls for s3:// and folders.

A `Location` is a name from the experiment file and pickles; the client behind it is made on first use, once a process,
because clients survive neither pickling nor fork: in a child forked after the first use, they raise.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

from obstore import exceptions
from obstore.store import LocalStore, S3Store

from robosat_pink.container.interruptible import interruptibly
from robosat_pink.errors import ConfigError, DataError
from robosat_pink.storage import listings, redirects, refused_keys
from robosat_pink.storage.credentials import carries_token, identity
from robosat_pink.storage.endpoints import endpoint
from robosat_pink.storage.error_advice import NotFound, broke_off, explained, may_pass
from robosat_pink.storage.listings import Page
from robosat_pink.storage.objects import TILE_BYTES, Fetched, Resized, StoredFile, decoded, md5_if_unlike, read_whole

if TYPE_CHECKING:
    from obstore.store import ClientConfig

__all__ = ["Fetched", "Location", "Page", "Resized", "StoredFile", "read_file"]

T = TypeVar("T")
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]+")
MD5 = re.compile('"[0-9a-f]{32}"')
LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1")
RETRY_S = 45.0  # no request begins later than this after the first of its kind
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
FILE_BYTES = 8 * 10**9  # of a file that is named by itself, such as a checkpoint
IDS_BYTES = 256 * 10**6  # of a file of tile ids
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

        def find() -> list[str]:
            try:
                prefixes = listings.directories(_client(self, retries=0), str(self))
            except exceptions.InvalidPathError:
                return self._as_bucket().directories(self._within())
            except exceptions.BaseError as error:
                if not may_pass(error):
                    raise
                prefixes = listings.directories(_client(self), str(self))
            return [prefix.rstrip("/").rsplit("/", 1)[-1] for prefix in prefixes]

        if self.bucket is None:
            _client(self)  # there is such a folder
            found, _ = self._persistently("", lambda: refused_keys.directories_in_folder(self.path))
        else:
            found, _ = self._persistently("", find, broke_off)  # who mistypes an endpoint shall know at once
        return sorted(filter(refused_keys.is_usual, found))

    def pages(self, directory: str, take: Callable[[Page], T]) -> list[T]:
        """What `take` makes of every page of a directory's flat listing, in order.

        From the first again where a page breaks off; what is wrong before a page begins, the client tries again itself.
        """

        def take_all() -> list[T]:
            try:
                return [take(page) for page in self._pages(prefix)]
            except exceptions.InvalidPathError:
                found = self._as_bucket().keys(f"{self._within()}{prefix}", self._within())
                return [take(page) for page in listings.paged(prefix, found)]

        prefix = f"{directory}/" if directory else ""
        return self._persistently(prefix, take_all)[0]

    def _pages(self, prefix: str) -> Iterator[Page]:
        """Raises InvalidPathError for a name in a bucket that the client refuses."""
        client = _client(self)
        if isinstance(client, LocalStore):
            return listings.paged(prefix, refused_keys.in_folder(self.path, prefix))
        return listings.pages(client, prefix, f"{self}/{prefix}".rstrip("/"))

    def _as_bucket(self) -> refused_keys.Bucket:
        assert self.bucket is not None
        return refused_keys.Bucket(self.bucket, endpoint(self.endpoint_url, self.profile), self.profile)

    def _within(self) -> str:
        """What all keys begin with."""
        return f"{self.path}/" if self.path else ""

    def read(self, path: str, most_bytes: int = FILE_BYTES) -> bytes:
        """The whole object, by one GET; DataError where it has more bytes than that."""
        return bytes(self.fetch(path, most_bytes=most_bytes).content)

    def fetch(self, path: str, size: int | None = None, most_bytes: int = TILE_BYTES) -> Fetched:
        """The whole object, by one GET; by further ones, ever longer apart, while it is the network or the store that
        fails, for RETRY_S seconds. Length and, where the store gives one, MD5 are verified.

        Raises Resized before it is read where it has not the size in bytes that was listed.
        """
        unlike: set[bytes] = set()
        where = f"{self}/{path}"

        def get() -> tuple[memoryview, StoredFile, str]:
            content, file, encoding = read_whole(_client(self, retries=0), path, where, size, most_bytes)
            digest = _digest_if_unlike(self, content, file.etag)
            if digest in unlike and self not in _with_md5:  # the same bytes again: they are the object's, not its ETag
                _without_md5.add(self)
            elif digest is not None:
                unlike.add(digest)
                raise exceptions.GenericError(
                    "what came is not what the store has, by its MD5 (if some ETags are none, set dataset.verify_md5 "
                    "to false)"
                )
            return content, file, encoding

        (content, file, encoding), retries = self._persistently(path, get)
        return Fetched(decoded(content, encoding, where, most_bytes), file, retries)

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


def local_or(text: str) -> str:
    """The absolute path of a file that is there, however it is named; or else the text, which may name a bucket's."""
    return os.path.abspath(text) if os.path.isfile(text) else text


def read_file(
    text: str, channels: Mapping[str, Path] | None = None, most_bytes: int = FILE_BYTES, **options: Any
) -> bytes:
    """A single file named like a location: a local path, s3://bucket/key or channel:NAME/file.

    Raises DataError, before it is read, where it has more bytes than that.
    """
    parent, slash, name = local_or(text).rpartition("/")
    if not slash or not name or parent in ("s3:", "s3:/", "file:", "file:/"):
        raise ConfigError(f"{text!r}: accepted: s3://bucket/key, /folder/file, ./file, channel:NAME/file")
    location = Location.parse(f"{parent}/", channels, **options)
    return interruptibly(lambda: location.read(name, most_bytes))


_with_md5: set[Location] = set()  # where an ETag has been one,
_without_md5: set[Location] = set()  # and where one has been none


def _digest_if_unlike(location: Location, content: memoryview, etag: str) -> bytes | None:
    """The content's MD5 if it should be the ETag and is not.

    ETags of objects that were uploaded in parts do not look like one; of those that S3 encrypts by KMS they do.
    """
    if not _verifies_md5(location) or location in _without_md5 or not MD5.fullmatch(etag):
        return None
    digest = md5_if_unlike(content, etag)
    if digest is None:
        _with_md5.add(location)
    return digest


@functools.cache
def _verifies_md5(location: Location) -> bool:
    if location.verify_md5 != "auto":
        return location.verify_md5
    address = urlsplit(endpoint(location.endpoint_url, location.profile).url or "https://")
    return address.scheme == "http" and not LOOPBACK.fullmatch(address.hostname or "")


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
        try:
            is_folder = Path(location.path).is_dir()
        except OSError as error:  # a name too long, or a folder on the way that nobody may look into
            raise DataError(
                f"{location}: cannot be read: {error.strerror}; check the name and who may read it"
            ) from error
        if not is_folder:
            where = "" if location.name == location.path else f"; it was looked for at {location.path}"
            raise NotFound(f"{location}: no such folder{where}")
        return LocalStore(location.path)
    place, who = endpoint(location.endpoint_url, location.profile), identity(location.profile)
    options: ClientConfig = {"allow_http": bool(place.url and place.url.startswith("http://")), **TIMEOUTS}
    options |= redirects.blocked(place.url, who["region"])
    if place.certificates:
        options["root_certificate"] = place.certificates
    if place.url and carries_token(who):
        redirects.refuse(f"{place.bucket_url(location.bucket)}?list-type=2&max-keys=0", str(location))
    try:
        return S3Store(
            location.bucket,
            prefix=location.path or None,
            client_options=options,
            retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=RETRY_S)},
            **who | place.options(location.bucket),
        )
    except (exceptions.BaseError, ValueError) as error:
        what = str(error).split("\n")[0]
        raise ConfigError(f"{location}: {what}; check the AWS_* variables and the profile") from error
