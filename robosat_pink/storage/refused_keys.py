"""Names in a folder or bucket that obstore refuses, such as `a//b` and `..`, are passed over. Called by `storage`.

For one such name obstore gives up all of a listing. So folders are walked here, and where it has given up a bucket's,
boto3, if it is there, lists instead.
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

DEEPEST = 5  # directories below a listed one; tiles lie two deep, and links may form a ring
UNUSUAL = re.compile(r"\.{0,2}|.*[\x00-\x1f\x7f\ud800-\udfff].*", re.DOTALL)  # of a directory


class Key(NamedTuple):
    """A file's name, and what a listing says of it."""

    path: str  # below the bucket or folder
    size: int
    etag: str | None  # of a file in a folder, when it was modified, to the nanosecond
    modified: int  # whole seconds since 1970


def is_usual(name: str) -> bool:
    """Whether obstore reads from a directory of this name."""
    return not UNUSUAL.fullmatch(name)


def directories_in_folder(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return [each.name for each in entries if _is_directory(each)]


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return False
        raise


def in_folder(folder: str, prefix: str, deepest: int = DEEPEST) -> Iterator[Key]:
    """Every file below a directory, by the directory's name and a slash; none of one that is not there."""
    with contextlib.suppress(FileNotFoundError), os.scandir(f"{folder}/{prefix}") as entries:
        for each in entries:
            path = f"{prefix}{each.name}"
            try:
                is_directory, status = each.is_dir(), each.stat()
            except OSError as error:  # a link to nowhere or to itself, or what has just gone
                if error.errno in (errno.ENOENT, errno.ELOOP):
                    continue
                raise
            if not is_directory:
                yield Key(path, status.st_size, str(status.st_mtime_ns), int(status.st_mtime))
            elif deepest:
                yield from in_folder(folder, f"{path}/", deepest - 1)


class Bucket(NamedTuple):
    """As boto3 is to ask for it."""

    name: str
    endpoint: Endpoint
    profile: str | None

    def keys(self, prefix: str, within: str) -> Iterator[Key]:
        """Every object below the prefix; paths begin behind `within`, which the prefix begins with."""
        for page in self._pages(Prefix=prefix):
            for found in page.get("Contents", []):
                modified = int(found["LastModified"].timestamp())
                yield Key(found["Key"].removeprefix(within), found["Size"], found.get("ETag"), modified)

    def directories(self, prefix: str) -> list[str]:
        """Names right below the prefix, which ends with a slash or is empty."""
        pages = self._pages(Prefix=prefix, Delimiter="/")
        found = (each["Prefix"] for page in pages for each in page.get("CommonPrefixes", []))
        return [path.removeprefix(prefix).removesuffix("/") for path in found]

    def _pages(self, **asked: str) -> Iterator[Any]:
        where = f"s3://{self.name}/{asked['Prefix']}"
        if find_spec("boto3") is None:
            raise DataError(
                f"{where}: below it is a name that cannot be listed, with an empty directory (//), . or .. or a "
                "control character in it; pip install 'robosat_pink[profile]' passes over it, or remove it"
            )
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        url, virtual = self.endpoint.url, self.endpoint.is_virtual
        if url and virtual:  # boto3 puts the bucket before it
            url = url.replace(f"//{self.name}.", "//", 1)
        payer = os.environ.get("AWS_REQUEST_PAYER")
        config = Config(
            connect_timeout=5,
            read_timeout=10,
            retries={"mode": "standard", "total_max_attempts": 8},
            signature_version=UNSIGNED if is_anonymous() else None,
            s3={"addressing_style": "virtual" if virtual else "path" if url else "auto"},
        )
        try:
            client = boto3.Session(profile_name=self.profile).client(
                "s3", endpoint_url=url, region_name=identity(self.profile)["region"], config=config
            )
            request = {"Bucket": self.name} | asked | ({"RequestPayer": payer} if payer else {})
            yield from client.get_paginator("list_objects_v2").paginate(**request)
        except (BotoCoreError, ClientError) as error:
            raise DataError(f"{where}: {error}") from error
