"""Decoded tile pairs on the machine's disk, so that later epochs request nothing from the store.

Opened by `pairs` and `images`, read and filled by `reader`.

An entry is a file named by a digest of everything that determines its content (`TileReader._cache_key`): paths and
listed metadata of image and mask, bands, classes. An image that is read without a mask has a mask of 0, and 255 where
it is missing. A pair with sidecar files is not cached, because these may change
without their tile. An entry is written atomically and verified when read; a damaged entry counts as missing. Any number
of processes may share a folder: each adds only whole files, and all share one count of bytes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import random
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robosat_pink.config import CacheConfig
from robosat_pink.container import quantities
from robosat_pink.container.atomic_write import TEMPORARY_SUFFIX
from robosat_pink.container.hardware import is_in_memory
from robosat_pink.datasets import cache_file
from robosat_pink.errors import ConfigError
from robosat_pink.storage import Location

log = logging.getLogger(__name__)

DEFAULT_FOLDER = Path(tempfile.gettempdir()) / "robosat_pink_cache"
SUFFIX = ".tile"
USED_SHARE = 0.5  # share of the free disk that a cache without max_gb uses
SMALLEST_BYTES = 1 << 30  # a cache without max_gb is switched off if it would be smaller
# Entries not read for this long are evicted first. Many systems record only a file's first reading of a day.
STALE_S = 2 * 86400
LOCK_S = 10.0  # seconds of waiting for the lock of the count; whoever holds it longer is suspended or malicious
COUNT = "bytes"  # file in the folder with the total size of all entries: 8 bytes, little-endian
GB = 10**9


@dataclass
class TileCache:
    """A folder of entries that take at most `max_bytes`.

    A full cache accepts no new entry, because the old ones serve every epoch. `make_room` evicts between runs.
    """

    folder: Path
    max_bytes: int
    _is_writable: bool = True

    def has(self, key: str) -> bool:
        """Whether there is an entry, whole or damaged."""
        return os.path.exists(self._path(key))

    def get(self, key: str) -> tuple[np.ndarray, np.ndarray, str] | None:
        """image (C, H, W) in its own dtype, mask (H, W) uint8 and notes; None if missing, cut short or damaged.

        The arrays are views of the calling thread's buffer, valid until its next `get` or `put` of any cache.
        """
        data = cache_file.read(self._path(key))
        if data is None:
            return None
        entry = cache_file.unpack(data)
        if entry is None:
            log.warning("warning: the cache entry %s is damaged and will be fetched again", self._path(key))
            return None
        return entry

    def put(self, key: str, image: np.ndarray, mask: np.ndarray, notes: str = "") -> None:
        """Store a pair if there is room. If the disk cannot be written, warn once, and store nothing from then on."""
        if not self._is_writable:
            return
        parts = cache_file.pack(image, mask, notes)
        path = self._path(key)
        temporary = f"{path}.{os.getpid()}-{threading.get_ident()}{TEMPORARY_SUFFIX}"
        try:
            # Minus the size of an existing file: a damaged entry, or one that another process stored first.
            added = sum(map(len, parts)) - _size(path)
            if not self._take(added):
                return
            try:
                cache_file.write(temporary, parts)
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
                self._take(-added)
                raise
        except OSError as error:
            self._is_writable = False
            log.warning("warning: the cache %s cannot be written (%s); tiles are not kept", self.folder, error.strerror)

    def make_room(self) -> int:
        """Once per run, remove what killed processes left half-written, and evict the least recently read entries.

        Above 9/10 of the limit, stale entries are evicted, down to half of it; above the limit, all others, too, down
        to 9/10. Sets the count that all processes share to the bytes that remain, and returns it.
        """
        entries = []
        for path in self.folder.iterdir():
            try:
                status = path.lstat()
                if path.name.endswith(TEMPORARY_SUFFIX) and time.time() - status.st_mtime > 3600:
                    path.unlink()
                elif path.suffix == SUFFIX:
                    entries.append((max(status.st_atime, status.st_mtime), status.st_size, path))
            except OSError:
                continue  # another process has removed it
        used = sum(size for _, size, _ in entries)
        with contextlib.suppress(OSError):  # the folder may be read-only
            fresh_share = 0.9 if used > self.max_bytes else 1.0
            for read, size, path in sorted(entries) if used > 0.9 * self.max_bytes else ():
                if used <= self.max_bytes * (0.5 if read < time.time() - STALE_S else fresh_share):
                    break
                path.unlink(missing_ok=True)
                used -= size
            with self._count() as file:
                _write_count(file, used)
        return used

    def _take(self, size: int) -> bool:
        """Add `size`, which may be negative, to the count of all processes. Returns False if the limit forbids it."""
        with self._count() as file:
            counted = os.pread(file, 8, 0)
            used = (int.from_bytes(counted, "little") if counted else _held_bytes(self.folder)) + size
            if size > 0 and used > self.max_bytes:
                return False
            _write_count(file, used)
            return True

    @contextlib.contextmanager
    def _count(self) -> Iterator[int]:
        """The file with the count, locked by this process. Raises OSError if it cannot be locked within LOCK_S."""
        file = os.open(self.folder / COUNT, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | cache_file.PLAIN, 0o644)
        try:
            _lock(file)
            yield file
        finally:
            os.close(file)

    def _path(self, key: str) -> str:
        return f"{self.folder}/{key}{SUFFIX}"


def cache_of(locations: Sequence[Location], settings: CacheConfig) -> TileCache | None:
    """The cache, if tiles are in a bucket or the experiment asks for it: folders are on a disk already."""
    is_remote = any(location.bucket is not None for location in locations)
    if not is_remote and settings.dir is None and settings.max_gb is None:
        return None
    return open_cache(settings.dir, settings.max_gb)


def open_cache(directory: str | None, max_gb: float | None) -> TileCache | None:
    """The cache that dataset.cache configures, ready for a run; None if it is switched off, or cannot be used.

    By default it is in the machine's folder for temporary files, and takes up to half of the space that is free or
    its own, if that half is 1 GiB or more and on a disk.
    """
    if max_gb == 0:
        log.info("cache: off, as dataset.cache.max_gb says")
        return None
    folder = Path(directory) if directory else _own_folder()
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.scandir(folder).close()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        if directory:
            raise ConfigError(
                f"dataset.cache.dir = {directory}: cannot be made or read: {error.strerror}; name a folder that can, "
                "or set dataset.cache.max_gb to 0"
            ) from error
        log.info("cache: off, %s cannot be read (%s)", folder, error.strerror)
        return None
    if max_gb is None and directory is None and is_in_memory(folder):
        log.info("cache: off, %s is in memory; name a disk by dataset.cache.dir", folder)
        return None
    cache = TileCache(folder, int(max_gb * GB) if max_gb else 0)
    if max_gb is None:
        cache.max_bytes = int((free + _held_bytes(folder)) * USED_SHARE)
        if cache.max_bytes < SMALLEST_BYTES:
            log.info("cache: off, %s has only %s free", folder, quantities.size(free))
            return None
    held = cache.make_room()
    log.info("cache: %s, up to %s, holds %s", folder, quantities.size(cache.max_bytes), quantities.size(held))
    return cache


def _own_folder() -> Path | None:
    """The default folder or, if it is another user's, one named with this user's id; None if neither can be used.

    Anybody may create any name in a folder for temporary files: a folder that others own or can write is not trusted.
    """
    user = os.geteuid()
    for folder in (DEFAULT_FOLDER, DEFAULT_FOLDER.with_name(f"{DEFAULT_FOLDER.name}_{user}")):
        try:
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            status = folder.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == user and not status.st_mode & 0o022:
                folder.chmod(0o700)
                return folder
            reason = "is no folder that this user alone can write"
        except OSError as error:
            reason = f"cannot be made ({error.strerror})"
    log.info("cache: off, %s %s; name a folder by dataset.cache.dir", folder, reason)
    return None


def _lock(file: int) -> None:
    deadline = time.monotonic() + LOCK_S
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise OSError(errno.ETIMEDOUT, f"its count was locked for {LOCK_S:g} s") from None
            time.sleep(random.uniform(0.0001, 0.001))  # noqa: S311


def _held_bytes(folder: Path) -> int:
    return sum(_size(path) for path in folder.glob(f"*{SUFFIX}"))


def _write_count(file: int, used: int) -> None:
    os.pwrite(file, max(used, 0).to_bytes(8, "little"), 0)


def _size(path: Path | str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0
