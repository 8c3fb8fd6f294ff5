"""A pair of tiles as a file of the cache: a page with the header, image, mask, and zeros to a whole page.

The image's bands lie last, as in batches. It is written past the system's page cache, and read through it. Called by
`cache`.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import struct
import threading
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import xxhash

HEADER = struct.Struct("<4s8sIII4x")  # magic, image type, bands, height, width
DIGEST = slice(HEADER.size, HEADER.size + 8)  # xxh3 of all else in the file, low byte first
NOTES = slice(HEADER.size + 8, 4096)  # text in UTF-8, zeros behind it
MAGIC = b"RSP5"
PLAIN = os.O_NOFOLLOW | os.O_NONBLOCK  # with which no link is followed, and no pipe waited for
MOST_BYTES = 1 << 32  # a longer file is no entry
PAGE = 4096  # of the format, whatever the system's are: no disk wants more for O_DIRECT


def pack(image: np.ndarray, mask: np.ndarray, notes: str) -> list[memoryview]:
    """An entry of image (C, H, W), mask (H, W) uint8 and notes, of at most 4,060 bytes, in parts.

    The pixels where they are if they fill whole pages, as in the batches of a worker where height x width is a multiple
    of 4096; or else copied to memory of this thread.
    """
    layout = _Layout(image.dtype, *image.shape)
    pixels = image.transpose(1, 2, 0)
    if _is_whole_pages(pixels) and _is_whole_pages(mask):
        head, parts = _memory_of_thread(PAGE), [pixels.reshape(-1).view(np.uint8).data, mask.reshape(-1).data]
    else:
        content = _memory_of_thread(PAGE + -(-layout.size // PAGE) * PAGE)
        head, parts = content[:PAGE], [content[PAGE:]]
        images, masks = layout.arrays(parts[0])
        images[:], masks[:] = image, mask
        parts[0][layout.size :] = bytes(len(parts[0]) - layout.size)
    head[:] = bytes(PAGE)
    HEADER.pack_into(head, 0, MAGIC, image.dtype.str.encode(), *image.shape)
    text = notes.encode()
    head[NOTES.start : NOTES.start + len(text)] = text
    head[DIGEST] = _digest(head, parts)
    return [head, *parts]


def write(path: str, parts: Sequence[memoryview]) -> None:
    """Past the system's page cache where the file system can: filling that takes more of a core than decoding does."""
    try:
        _write_by(os.O_DIRECT, path, parts)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _write_by(0, path, parts)


def _write_by(way: int, path: str, parts: Sequence[memoryview]) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | PLAIN | way, 0o644)
    try:
        if os.writev(file, parts) < sum(map(len, parts)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(file)


def read(path: str) -> memoryview | None:
    """The file's bytes in memory of this thread; None if there is no such file, or it can be no entry."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | PLAIN)
    except OSError:
        return None
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            return None
        data = _memory_of_thread(status.st_size)
        return data[: os.readv(file, [data])]
    except OSError:
        return None
    finally:
        os.close(file)


def unpack(content: memoryview) -> tuple[np.ndarray, np.ndarray, str] | None:
    """image (C, H, W) and mask (H, W) as views, and notes; None if a bit is not as it was; clears the digest there."""
    if len(content) < PAGE:
        return None
    head, pixels = content[:PAGE], content[PAGE:]
    digest, head[DIGEST] = bytes(head[DIGEST]), bytes(8)
    magic, dtype, *shape = HEADER.unpack_from(head)
    if magic != MAGIC or _digest(head, [pixels]) != digest:
        return None
    notes = bytes(head[NOTES]).rstrip(b"\0").decode()
    return *_Layout(np.dtype(dtype.rstrip(b"\0").decode()), *shape).arrays(pixels), notes


def _digest(head: memoryview, parts: Iterable[memoryview]) -> bytes:
    """Of the page, with zeros for the digest, and what follows."""
    digest = xxhash.xxh3_64(head)
    for part in parts:
        digest.update(part)
    return digest.intdigest().to_bytes(8, "little")


def _is_whole_pages(array: np.ndarray) -> bool:
    return array.flags.c_contiguous and array.ctypes.data % PAGE == array.nbytes % PAGE == 0


class _Layout(NamedTuple):
    """How image and mask lie behind an entry's first page."""

    dtype: np.dtype
    bands: int
    height: int
    width: int

    @property
    def image_size(self) -> int:
        return self.bands * self.height * self.width * self.dtype.itemsize

    @property
    def size(self) -> int:
        return self.image_size + self.height * self.width

    def arrays(self, memory: memoryview) -> tuple[np.ndarray, np.ndarray]:
        """image (C, H, W), whose memory is (H, W, C), and mask (H, W) uint8, as views."""
        image = np.frombuffer(memory[: self.image_size], dtype=self.dtype)
        mask = np.frombuffer(memory[self.image_size : self.size], dtype=np.uint8)
        return image.reshape(self.height, self.width, self.bands).transpose(2, 0, 1), mask.reshape(
            self.height, self.width
        )


_of_thread = threading.local()


def _memory_of_thread(size: int) -> memoryview:
    """The calling thread's own, until it asks again: new memory for every tile costs more than reading it does.

    It begins with a page, as O_DIRECT wants. It is no bytearray, which begins 16 bytes behind one: to such a place the
    kernel took 1.5 ms to copy a tile of 2.4 MB, to a page 0.35 (AMD EPYC, family 25, November 2026).
    """
    if not hasattr(_of_thread, "memory") or len(_of_thread.memory) < size:
        _of_thread.memory = mmap.mmap(-1, max(size, PAGE), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # where the system has none, pages of 4 KB, at 1.5 times the cost of a write
            _of_thread.memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(_of_thread.memory)[:size]
