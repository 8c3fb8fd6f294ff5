"""Lists folders and buckets with names that obstore refuses. Called by `location`.

Names such as `a//b` or `..` make obstore fail a whole listing. So os.scandir lists folders, and boto3, if it is
installed, lists the buckets on which obstore failed. Tiles with such names are left out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

from robosat_pink.errors import DataError
from robosat_pink.storage.credentials import identity, is_anonymous
from robosat_pink.storage.endpoints import Endpoint

MAX_DEPTH = 5  # of directories below a listed one: tiles are two levels deep, and links may form a cycle
REFUSED_DIRECTORY = re.compile(r"\.{0,2}|.*[\x00-\x1f\x7f\ud800-\udfff].*", re.DOTALL)


class ListedFile(NamedTuple):
    """A file or object in a listing."""

    path: str  # below the bucket or folder
    size: int  # bytes
    etag: str | None  # for a file in a folder, its modification time in nanoseconds
    modified: int  # whole seconds since 1970


def can_be_read(directory: str) -> bool:
    """Whether obstore can read the files in a directory with this name."""
    return not REFUSED_DIRECTORY.fullmatch(directory)


def directories_in_folder(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if _is_directory(entry)]


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return False
        raise


def files_in_folder(folder: str, prefix: str, max_depth: int = MAX_DEPTH) -> Iterator[ListedFile]:
    """Every file below `folder`/`prefix`, or none if that is missing. The prefix is empty or ends with a slash."""
    with contextlib.suppress(FileNotFoundError), os.scandir(f"{folder}/{prefix}") as entries:
        for entry in entries:
            path = f"{prefix}{entry.name}"
            status = _status(entry)
            if status is None:
                continue
            if not entry.is_dir():
                yield ListedFile(path, status.st_size, str(status.st_mtime_ns), int(status.st_mtime))
            elif max_depth:
                yield from files_in_folder(folder, f"{path}/", max_depth - 1)


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """The file's status; None for a broken or circular link, or for a file that was removed meanwhile."""
    try:
        return entry.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise


class Boto3Bucket(NamedTuple):
    """A bucket, listed with boto3. Methods raise DataError."""

    name: str
    endpoint: Endpoint
    profile: str | None

    def files(self, prefix: str, base: str) -> Iterator[ListedFile]:
        """Every object below the prefix. The prefix begins with `base`, and paths are relative to `base`."""
        for page in self._pages(Prefix=prefix):
            for entry in page.get("Contents", []):
                modified = int(entry["LastModified"].timestamp())
                yield ListedFile(entry["Key"].removeprefix(base), entry["Size"], entry.get("ETag"), modified)

    def directories(self, prefix: str) -> list[str]:
        """Names of the directories right below the prefix, which is empty or ends with a slash."""
        pages = self._pages(Prefix=prefix, Delimiter="/")
        paths = (entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", []))
        return [path.removeprefix(prefix).removesuffix("/") for path in paths]

    def _pages(self, **request: str) -> Iterator[Any]:
        where = f"s3://{self.name}/{request['Prefix']}"
        if find_spec("boto3") is None:
            raise DataError(
                f"{where}: holds a name that cannot be listed, with an empty directory (//), . or .. or a "
                "control character in it; pip install 'robosat_pink[profile]' to skip such names, or remove it"
            )
        from botocore.exceptions import BotoCoreError, ClientError

        payer = os.environ.get("AWS_REQUEST_PAYER")
        request |= {"Bucket": self.name} | ({"RequestPayer": payer} if payer else {})
        try:
            yield from self._client().get_paginator("list_objects_v2").paginate(**request)
        except (BotoCoreError, ClientError) as error:
            raise DataError(f"{where}: {error}") from error

    def _client(self) -> Any:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config

        url, is_virtual = self.endpoint.url, self.endpoint.is_virtual
        if url and is_virtual:
            url = url.replace(f"//{self.name}.", "//", 1)  # boto3 adds the bucket itself
        config = Config(
            connect_timeout=5,
            read_timeout=10,
            retries={"mode": "standard", "total_max_attempts": 8},
            signature_version=UNSIGNED if is_anonymous() else None,
            s3={"addressing_style": "virtual" if is_virtual else "path" if url else "auto"},
        )
        session = boto3.Session(profile_name=self.profile)
        return session.client("s3", endpoint_url=url, region_name=identity(self.profile)["region"], config=config)
