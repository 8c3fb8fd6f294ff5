"""Decoded tile pairs on the node's disk: epochs after the first ask the store for nothing.

Opened by `datasets`, read and filled by `reader`.

An entry is a file named by a digest of everything that decides its content: where image and mask are, what the store
says of their contents (ETag, size), bands and classes. It is written whole or not at all and checked when read; a
damaged entry counts as absent. Any number of processes may share a folder: they only ever add whole files, and count
the bytes of all of them together.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import shutil
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from robosat_pink.errors import ConfigError
from robosat_pink.files import TEMPORARY, is_in_memory

log = logging.getLogger(__name__)

DEFAULT_FOLDER = Path(tempfile.gettempdir()) / "robosat_pink_cache"
SUFFIX = ".tile"
HEADER = struct.Struct("<4s8sIII4xQ")  # magic, image type, bands, height, width, xxh3 of what follows
MAGIC = b"RSP3"
USED_SHARE = 0.5  # of the free disk, unless max_gb says otherwise
SMALLEST_BYTES = 1 << 30  # a smaller cache by default is none
COUNT = "bytes"  # the file in the folder that tells how many bytes all entries take, 8 bytes, low ones first
GB = 10**9


@dataclass
class TileCache:
    """At most `max_bytes` of entries in a folder. Full is full: what is there serves every epoch, so nothing is evicted
    for what comes later, but entries that no run has read for longest go when a run begins.
    """

    folder: Path
    max_bytes: int
    _is_writable: bool = True

    def has(self, key: str) -> bool:
        """Whether there is an entry, whole or damaged."""
        return os.path.exists(self._path(key))

    def get(self, key: str) -> tuple[np.ndarray, np.ndarray] | None:
        """image (C, H, W) in its own type and mask (H, W) uint8, or None if absent, cut short or damaged.

        They lie in memory of the calling thread, until its next `get` or `put`.
        """
        data = _read(self._path(key))
        if data is None:
            return None
        found = _unpack(data)
        if found is None:
            log.warning("warning: the cache entry %s is damaged and will be fetched again", self._path(key))
            return None
        return found

    def put(self, key: str, image: np.ndarray, mask: np.ndarray) -> None:
        """Keep a pair if there is room. A disk that is full or cannot be written only means that nothing is kept."""
        if not self._is_writable:
            return
        content = _pack(image, mask)
        path = self._path(key)
        temporary = f"{path}.{os.getpid()}-{threading.get_ident()}{TEMPORARY}"
        try:
            added = len(content) - _size(path)  # of a damaged entry, or one that another process was faster to keep
            if not self._take(added):
                return
            try:
                _write(temporary, content)
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
        """Once a run: remove what a killed process left half-written, and entries read longest ago, down to 9/10.

        Returns how many bytes are left, and has all processes count from there.
        """
        entries = []
        for path in self.folder.iterdir():
            try:
                status = path.stat()
                if path.name.endswith(TEMPORARY) and time.time() - status.st_mtime > 3600:
                    path.unlink()
                elif path.suffix == SUFFIX:
                    entries.append((max(status.st_atime, status.st_mtime), status.st_size, path))
            except OSError:
                continue  # another process was faster
        used = sum(size for _, size, _ in entries)
        with contextlib.suppress(OSError):  # where the folder can only be read
            if used > self.max_bytes:
                for _, size, path in sorted(entries):
                    path.unlink(missing_ok=True)
                    used -= size
                    if used <= 0.9 * self.max_bytes:
                        break
            with self._count() as file:
                _write_count(file, used)
        return used

    def _take(self, size: int) -> bool:
        """Count so many bytes more (or less) for all processes together; not if that were more than the limit."""
        with self._count() as file:
            counted = os.pread(file, 8, 0)
            used = (int.from_bytes(counted, "little") if counted else _held_bytes(self.folder)) + size
            if size > 0 and used > self.max_bytes:
                return False
            _write_count(file, used)
            return True

    @contextlib.contextmanager
    def _count(self) -> Iterator[int]:
        """The file with the count, which nobody else has meanwhile."""
        file = os.open(self.folder / COUNT, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _path(self, key: str) -> str:
        return f"{self.folder}/{key}{SUFFIX}"


def open_cache(directory: str | None, max_gb: float | None) -> TileCache | None:
    """The cache that an experiment's dataset.cache names, ready for a run; None where there shall or can be none.

    By default in the machine's folder for temporary files, up to half of its free space, if that is 1 GiB or more and
    on a disk.
    """
    if max_gb == 0:
        log.info("cache: off, as dataset.cache.max_gb says")
        return None
    folder = Path(directory) if directory else DEFAULT_FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        if directory:
            raise ConfigError(
                f"dataset.cache.dir = {directory}: cannot be made: {error.strerror}; name a folder that can, or set "
                "dataset.cache.max_gb to 0"
            ) from error
        log.info("cache: off, %s cannot be made (%s)", folder, error.strerror)
        return None
    if max_gb is None and directory is None and is_in_memory(folder):
        log.info("cache: off, %s is in memory; name a disk by dataset.cache.dir", folder)
        return None
    cache = TileCache(folder, int(max_gb * GB) if max_gb else 0)
    if max_gb is None:
        cache.max_bytes = int((free + _held_bytes(folder)) * USED_SHARE)
        if cache.max_bytes < SMALLEST_BYTES:
            log.info("cache: off, %s has only %.2f GB free", folder, free / GB)
            return None
    held = cache.make_room()
    log.info("cache: %s, up to %.1f GB, holds %.2f GB", folder, cache.max_bytes / GB, held / GB)
    return cache


_of_thread = threading.local()


def _memory_of_thread(size: int) -> memoryview:
    """The calling thread's own, until it asks again: new memory for every tile costs more than reading it does.

    It begins with a page, as O_DIRECT wants. To a few bytes behind one, some kernels copy at a quarter of the speed.
    """
    if not hasattr(_of_thread, "memory") or len(_of_thread.memory) < size:
        _of_thread.memory = mmap.mmap(-1, max(size, mmap.PAGESIZE), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # where the system has none, pages of 4 KB, at 1.5 times the cost of a write
            _of_thread.memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(_of_thread.memory)[:size]


def _write(path: str, content: memoryview) -> None:
    """Past the system's page cache where the file system can: filling that takes more of a core than decoding does."""
    try:
        _write_by(os.O_DIRECT, path, content)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _write_by(0, path, content)


def _write_by(way: int, path: str, content: memoryview) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | way, 0o644)
    try:
        if os.write(file, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(file)


def _read(path: str) -> memoryview | None:
    """The file's bytes; None if there is no such file."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = _memory_of_thread(os.fstat(file).st_size)
        return data[: os.readv(file, [data])]
    except OSError:
        return None
    finally:
        os.close(file)


def _pack(image: np.ndarray, mask: np.ndarray) -> memoryview:
    """Header, image (H, W, C), mask, and zeros to whole pages, in memory of this thread."""
    about = (MAGIC, image.dtype.str.encode(), *image.shape)
    layout = _Layout(image.dtype, *image.shape)
    content = _memory_of_thread(-(-layout.size // mmap.PAGESIZE) * mmap.PAGESIZE)
    images, masks = layout.arrays(content)
    images[:], masks[:] = image, mask
    content[layout.size :] = bytes(len(content) - layout.size)
    digest = xxhash.xxh3_64_intdigest(content[HEADER.size :], seed=_seed(about))
    HEADER.pack_into(content, 0, *about, digest)
    return content


def _unpack(content: memoryview) -> tuple[np.ndarray, np.ndarray] | None:
    if len(content) < HEADER.size:
        return None
    *about, digest = HEADER.unpack_from(content)
    if about[0] != MAGIC or xxhash.xxh3_64_intdigest(content[HEADER.size :], seed=_seed(tuple(about))) != digest:
        return None
    _, dtype, *shape = about
    return _Layout(np.dtype(dtype.rstrip(b"\0").decode()), *shape).arrays(content)


def _seed(about: tuple[Any, ...]) -> int:
    """Makes the digest one of header and pixels alike."""
    return xxhash.xxh3_64_intdigest(HEADER.pack(*about, 0))


class _Layout(NamedTuple):
    """Where in an entry image and mask are."""

    dtype: np.dtype
    bands: int
    height: int
    width: int

    @property
    def image_end(self) -> int:
        return HEADER.size + self.bands * self.height * self.width * self.dtype.itemsize

    @property
    def size(self) -> int:
        return self.image_end + self.height * self.width

    def arrays(self, content: memoryview) -> tuple[np.ndarray, np.ndarray]:
        """image (C, H, W), whose memory is (H, W, C), and mask (H, W) uint8, as views."""
        image = np.frombuffer(content[HEADER.size : self.image_end], dtype=self.dtype)
        mask = np.frombuffer(content[self.image_end : self.size], dtype=np.uint8)
        return image.reshape(self.height, self.width, self.bands).transpose(2, 0, 1), mask.reshape(self.height, -1)


def _held_bytes(folder: Path) -> int:
    return sum(_size(path) for path in folder.glob(f"*{SUFFIX}"))


def _write_count(file: int, used: int) -> None:
    os.pwrite(file, max(used, 0).to_bytes(8, "little"), 0)


def _size(path: Path | str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
