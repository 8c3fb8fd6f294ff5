"""Lists, reads and writes object storage, by the same calls for s3:// and folders. Called by several rooms.

A `Location` is parsed from a name in the experiment file, and can be pickled. Each process creates its client on first
use. A failed request is retried with backoff (`backoff`) or explained to the user (`error_advice`).
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore import exceptions
from obstore.store import LocalStore, S3Store

from robosat_pink.container.atomic_write import make_folder, write_atomically
from robosat_pink.container.interruptible import interruptibly
from robosat_pink.errors import ConfigError, DataError
from robosat_pink.storage import backoff, listings, redirects, refused_keys
from robosat_pink.storage.credentials import carries_token, identity
from robosat_pink.storage.endpoints import endpoint
from robosat_pink.storage.error_advice import READING, WRITING, NotFound, data_error, is_transient, is_truncated
from robosat_pink.storage.listings import Page
from robosat_pink.storage.md5 import MD5Check
from robosat_pink.storage.objects import MAX_TILE_BYTES, Fetched, Resized, StoredFile, decode_content, get_object

if TYPE_CHECKING:
    from obstore.store import ClientConfig

__all__ = ["Fetched", "Location", "Page", "Resized", "StoredFile", "read_file"]

T = TypeVar("T")
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]+")
LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1")
MAX_FILE_BYTES = 8 * 10**9  # of a single file, such as a checkpoint
MAX_IDS_BYTES = 256 * 10**6  # of a file of tile ids
CLIENT_RETRIES = 8  # per request of a listing
# Limits to connect, between two reads, and for a whole object, which takes long over a slow line.
TIMEOUTS: ClientConfig = {
    "connect_timeout": timedelta(seconds=5),
    "read_timeout": timedelta(seconds=10),
    "timeout": timedelta(minutes=5),
}


@dataclass(frozen=True)
class Location:
    """A bucket with an optional prefix, or a folder."""

    name: str  # as the user spelt it, without scheme and final slash
    bucket: str | None
    path: str  # the prefix in the bucket, or the folder
    profile: str | None = None
    endpoint_url: str | None = None
    verify_md5: bool | Literal["auto"] = "auto"  # auto: only over plain HTTP to another machine

    @classmethod
    def parse(
        cls,
        text: str,
        channels: Mapping[str, Path] | None = None,
        profile: str | None = None,
        endpoint_url: str | None = None,
        verify_md5: bool | Literal["auto"] = "auto",
    ) -> Location:
        """Parse `bucket[/prefix]`, `s3://…`, `channel:NAME[/…]`, or a folder, which starts with / ./ ../ or file://."""
        name = text.removeprefix("file://").removeprefix("s3://").rstrip("/") or "/"
        if text.startswith("channel:"):
            channel, _, rest = name.removeprefix("channel:").partition("/")
            if channel not in (channels or {}):
                names = ", ".join(channels or {}) or "none"
                raise ConfigError(f"{text}: there is no channel {channel!r}; channels of this run: {names}")
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
        """The sorted names of the directories one level down."""
        if self.bucket is None:
            _client(self)  # raises NotFound if there is no such folder
            names, _ = self._retry("", lambda: refused_keys.directories_in_folder(self.path))
        else:
            names, _ = self._retry("", self._directories_in_bucket, is_truncated)  # reports a wrong endpoint at once
        return sorted(filter(refused_keys.can_be_read, names))

    def _directories_in_bucket(self) -> list[str]:
        try:
            prefixes = listings.directories(_client(self, retries=0), str(self))
        except exceptions.InvalidPathError:
            return self._boto3_bucket().directories(self._key_prefix())
        except exceptions.BaseError as error:
            if not is_transient(error):
                raise
            prefixes = listings.directories(_client(self), str(self))
        return [prefix.rstrip("/").rsplit("/", 1)[-1] for prefix in prefixes]

    def pages(self, directory: str, take: Callable[[Page], T]) -> list[T]:
        """The results of `take` for every page of a directory's flat listing, in order.

        A listing that breaks off starts over at its first page. The client itself retries other failed requests.
        """
        prefix = f"{directory}/" if directory else ""
        return self._retry(prefix, lambda: self._take_pages(prefix, take))[0]

    def _take_pages(self, prefix: str, take: Callable[[Page], T]) -> list[T]:
        client = _client(self)
        if isinstance(client, LocalStore):
            return [take(page) for page in listings.in_pages(prefix, refused_keys.files_in_folder(self.path, prefix))]
        try:
            return [take(page) for page in listings.pages(client, prefix, f"{self}/{prefix}".rstrip("/"))]
        except exceptions.InvalidPathError:
            files = self._boto3_bucket().files(f"{self._key_prefix()}{prefix}", self._key_prefix())
            return [take(page) for page in listings.in_pages(prefix, files)]

    def _boto3_bucket(self) -> refused_keys.Boto3Bucket:
        assert self.bucket is not None
        return refused_keys.Boto3Bucket(self.bucket, endpoint(self.endpoint_url, self.profile), self.profile)

    def _key_prefix(self) -> str:
        return f"{self.path}/" if self.path else ""

    def read(self, path: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """The whole object, from one GET. Raises DataError if it is longer than `max_bytes`."""
        return bytes(self.fetch(path, max_bytes=max_bytes).content)

    def fetch(self, path: str, size: int | None = None, max_bytes: int = MAX_TILE_BYTES) -> Fetched:
        """The whole object, from one GET, which `_retry` and not the client repeats.

        Verifies its length and, with `verify_md5`, its MD5. Raises Resized, before reading, if the object no longer has
        the `size` in bytes that was listed.
        """
        where = f"{self}/{path}"
        md5 = MD5Check(self)

        def get() -> tuple[memoryview, StoredFile, str]:
            content, file, encoding = get_object(_client(self, retries=0), path, where, size, max_bytes)
            if _verifies_md5(self):
                md5.verify(content, file.etag)
            return content, file, encoding

        (content, file, encoding), retries = self._retry(path, get)
        return Fetched(decode_content(content, encoding, where, max_bytes), file, retries)

    def write(self, path: str, content: bytes | Path) -> None:
        """Write an object or file, given its content or a file that holds it; whole or not at all.

        A large object is sent in parts. Raises DataError, with advice, or ContractError for a folder.
        """
        if self.bucket is None:
            target = Path(self.path) / path
            make_folder(target.parent)
            write_atomically(target, lambda file: _copy(content, file))
            return
        self._retry(path, lambda: obstore.put(_client(self), path, content), actions=WRITING)

    def _retry(
        self,
        path: str,
        work: Callable[[], T],
        is_retried: Callable[[Exception], bool] = is_transient,
        actions: str = READING,
    ) -> tuple[T, int]:
        """The result of `work`, and the number of retries. Raises DataError, with advice, for the client's errors."""

        def explain(error: Exception, attempts: str) -> DataError:
            where = f"{self}/{path}".rstrip("/")
            if self.bucket and not path and os.path.isdir(self.name):
                where = f"there is a folder ./{self.name} (a folder begins with / or ./), but as a bucket, {where}"
            return data_error(error, where, self.bucket, self.profile, attempts, actions)

        return backoff.retry_with_backoff(work, is_retried, explain)


def _copy(content: bytes | Path, file: IO[bytes]) -> None:
    if isinstance(content, bytes):
        file.write(content)
        return
    with content.open("rb") as source:
        shutil.copyfileobj(source, file)


def local_path_or(text: str) -> str:
    """The absolute path of an existing local file; otherwise the text, which may name a file in a bucket."""
    return os.path.abspath(text) if os.path.isfile(text) else text


def read_file(
    text: str, channels: Mapping[str, Path] | None = None, max_bytes: int = MAX_FILE_BYTES, **options: Any
) -> bytes:
    """The content of a single file: a local path, s3://bucket/key or channel:NAME/file.

    Raises DataError, before reading, if it is longer than `max_bytes`.
    """
    parent, slash, name = local_path_or(text).rpartition("/")
    if not slash or not name or parent in ("s3:", "s3:/", "file:", "file:/"):
        raise ConfigError(f"{text!r}: accepted: s3://bucket/key, /folder/file, ./file, channel:NAME/file")
    location = Location.parse(f"{parent}/", channels, **options)
    return interruptibly(lambda: location.read(name, max_bytes))


@functools.cache
def _verifies_md5(location: Location) -> bool:
    if location.verify_md5 != "auto":
        return location.verify_md5
    address = urlsplit(endpoint(location.endpoint_url, location.profile).url or "https://")
    return address.scheme == "http" and not LOOPBACK.fullmatch(address.hostname or "")


def _client(location: Location, retries: int = CLIENT_RETRIES) -> S3Store | LocalStore:
    """The client of a location. Raises RuntimeError in a forked process: fork copies clients, but not their threads."""
    if _process_with_clients() != os.getpid():
        raise RuntimeError(
            f"{location}: this process was forked from one that had read from a store before, and would hang; start it "
            "by forkserver or spawn, as in DataLoader(..., multiprocessing_context='forkserver')"
        )
    return _client_of_this_process(location, retries)


@functools.cache
def _process_with_clients() -> int:
    return os.getpid()


@functools.cache
def _client_of_this_process(location: Location, retries: int) -> S3Store | LocalStore:
    if location.bucket is None:
        try:
            is_folder = Path(location.path).is_dir()
        except OSError as error:  # the name is too long, or a parent folder denies access
            raise DataError(
                f"{location}: cannot be read: {error.strerror}; check the name and who may read it"
            ) from error
        if not is_folder:
            where = "" if location.name == location.path else f"; it was looked for at {location.path}"
            raise NotFound(f"{location}: no such folder{where}")
        return LocalStore(location.path)
    store, credentials = endpoint(location.endpoint_url, location.profile), identity(location.profile)
    options: ClientConfig = {"allow_http": bool(store.url and store.url.startswith("http://")), **TIMEOUTS}
    options |= redirects.blocked(store.url, credentials["region"])
    if store.certificates:
        options["root_certificate"] = store.certificates
    if store.url and carries_token(credentials):
        redirects.check_none(f"{store.bucket_url(location.bucket)}?list-type=2&max-keys=0", str(location))
    try:
        return S3Store(
            location.bucket,
            prefix=location.path or None,
            client_options=options,
            retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=backoff.RETRY_S)},
            **credentials | store.options(location.bucket),
        )
    except (exceptions.BaseError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(f"{location}: {reason}; check the AWS_* variables and the profile") from error
