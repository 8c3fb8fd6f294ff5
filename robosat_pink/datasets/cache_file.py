"""A pair of tiles as a file of the cache: a page with the header, image, mask, and zeros to a whole page.

The pixels lie as in a batch of one. It is written past the system's page cache, and read through it. Called by `cache`.
"""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import os
import stat
import struct
import threading
from collections.abc import Iterable, Sequence

import numpy as np
import xxhash

from robosat_pink.datasets.pixel_layout import PixelLayout

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
    layout = _layout(image.dtype.str, *image.shape)
    pixels = image.transpose(1, 2, 0)
    if _is_whole_pages(pixels) and _is_whole_pages(mask):
        head, parts = _memory_of_thread(PAGE), [pixels.reshape(-1).view(np.uint8).data, mask.reshape(-1).data]
    else:
        content = _memory_of_thread(PAGE + math.ceil(layout.size / PAGE) * PAGE)
        head, parts = content[:PAGE], [content[PAGE:]]
        images, masks = layout.arrays(np.frombuffer(parts[0], dtype=np.uint8))
        images[0], masks[0] = image, mask
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
        _write_with(os.O_DIRECT, path, parts)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _write_with(0, path, parts)


def _write_with(flags: int, path: str, parts: Sequence[memoryview]) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | PLAIN | flags, 0o644)
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
    """image (C, H, W) and mask (H, W) as views, and notes; None if a bit has changed. Overwrites the digest."""
    if len(content) < PAGE:
        return None
    head, pixels = content[:PAGE], content[PAGE:]
    digest, head[DIGEST] = bytes(head[DIGEST]), bytes(8)
    magic, dtype, *shape = HEADER.unpack_from(head)
    if magic != MAGIC or _digest(head, [pixels]) != digest:
        return None
    notes = bytes(head[NOTES]).rstrip(b"\0").decode()
    layout = _layout(dtype.rstrip(b"\0").decode(), *shape)
    images, masks = layout.arrays(np.frombuffer(pixels, dtype=np.uint8))
    return images[0], masks[0], notes


def _layout(dtype: str, bands: int, height: int, width: int) -> PixelLayout:
    return PixelLayout(dtype, (1, height, width, bands))


def _digest(head: memoryview, parts: Iterable[memoryview]) -> bytes:
    """Of the page, with zeros for the digest, and what follows."""
    digest = xxhash.xxh3_64(head)
    for part in parts:
        digest.update(part)
    return digest.intdigest().to_bytes(8, "little")


def _is_whole_pages(array: np.ndarray) -> bool:
    return array.flags.c_contiguous and array.ctypes.data % PAGE == array.nbytes % PAGE == 0


_of_thread = threading.local()


def _memory_of_thread(size: int) -> memoryview:
    """The calling thread's own, until it asks again: new memory for every tile costs more than reading it does.

    It begins with a page, as O_DIRECT wants. It is no bytearray, which begins 16 bytes behind one: to copy a tile of
    2.4 MB to such an address took the kernel 1.5 ms, to a page 0.35 (AMD EPYC, family 25, November 2026).
    """
    if not hasattr(_of_thread, "memory") or len(_of_thread.memory) < size:
        _of_thread.memory = mmap.mmap(-1, max(size, PAGE), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # where the system has none, pages of 4 KB, at 1.5 times the cost of a write
            _of_thread.memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(_of_thread.memory)[:size]
