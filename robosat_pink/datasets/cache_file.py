"""The file of a cache entry, one per pair of tiles: a page with the header, image, mask, and zeros to a whole page.

Pixels have the layout of a batch of one sample. Writing bypasses the system's page cache; reading uses it. Called by
`cache`.
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
DIGEST = slice(HEADER.size, HEADER.size + 8)  # xxh3 of the rest of the file, little-endian
NOTES = slice(HEADER.size + 8, 4096)  # text in UTF-8, padded with zeros
MAGIC = b"RSP5"
PLAIN = os.O_NOFOLLOW | os.O_NONBLOCK  # do not follow links, do not wait for pipes
MOST_BYTES = 1 << 32  # a larger file is not an entry
PAGE = 4096  # of the format, not of the system; no disk needs a larger alignment for O_DIRECT


def pack(image: np.ndarray, mask: np.ndarray, notes: str) -> list[memoryview]:
    """The parts of an entry with image (C, H, W), mask (H, W) uint8 and notes of at most 4,060 bytes.

    Pixels that fill whole pages are not copied. In a worker's batch, they fill whole pages if height x width is a
    multiple of 4096. Other pixels are copied to this thread's buffer.
    """
    layout = _layout(image.dtype.str, *image.shape)
    pixels = image.transpose(1, 2, 0)
    if _is_whole_pages(pixels) and _is_whole_pages(mask):
        head, parts = _thread_buffer(PAGE), [pixels.reshape(-1).view(np.uint8).data, mask.reshape(-1).data]
    else:
        content = _thread_buffer(PAGE + math.ceil(layout.size / PAGE) * PAGE)
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
    """Bypass the page cache if the file system allows it: filling the cache takes more CPU time than decoding."""
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
    """The file's bytes in this thread's buffer; None if the file is missing or cannot be an entry."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | PLAIN)
    except OSError:
        return None
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            return None
        data = _thread_buffer(status.st_size)
        return data[: os.readv(file, [data])]
    except OSError:
        return None
    finally:
        os.close(file)


def unpack(content: memoryview) -> tuple[np.ndarray, np.ndarray, str] | None:
    """image (C, H, W) and mask (H, W) as views, and notes; None if the content is damaged. Overwrites the digest."""
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
    """The digest of the header's page, which has zeros in place of the digest, and of the pixels."""
    digest = xxhash.xxh3_64(head)
    for part in parts:
        digest.update(part)
    return digest.intdigest().to_bytes(8, "little")


def _is_whole_pages(array: np.ndarray) -> bool:
    return array.flags.c_contiguous and array.ctypes.data % PAGE == array.nbytes % PAGE == 0


_thread = threading.local()


def _thread_buffer(size: int) -> memoryview:
    """The calling thread's buffer, valid until its next call. New memory for each tile costs more than reading it.

    The buffer is page-aligned, as O_DIRECT requires. A bytearray begins 16 bytes after a page boundary: the kernel took
    1.5 ms to copy a tile of 2.4 MB there, and 0.35 ms to a page boundary (AMD EPYC, family 25, November 2026).
    """
    if not hasattr(_thread, "buffer") or len(_thread.buffer) < size:
        _thread.buffer = mmap.mmap(-1, max(size, PAGE), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # without huge pages, a write takes 1.5 times as long
            _thread.buffer.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(_thread.buffer)[:size]
