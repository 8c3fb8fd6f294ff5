"""Reading a local file of limited size, and decoding its text. Called by `contract`, `config` and `checkpoint`."""

from __future__ import annotations

import codecs
import errno
import os
import stat
from pathlib import Path

CHUNK_BYTES = 2**20  # per read from files that report no size, such as those in /proc

# Longer marks come first, because the mark of UTF-32 begins with the mark of UTF-16.
ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}


def read_regular(path: Path | str, max_bytes: int) -> bytes:
    """The content of a regular file.

    Raises OSError, with the reason in `strerror`, if the file is longer than `max_bytes` or not regular. Never blocks:
    a pipe is opened without waiting for its writer, and then refused.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device; accepted: a regular file", str(path))
        chunks: list[bytes] = []
        length = 0
        while max(status.st_size, length) <= max_bytes:
            chunk = file.read(max(status.st_size - length, CHUNK_BYTES))  # allocates that many bytes at once
            if not chunk:
                return b"".join(chunks)
            chunks.append(chunk)
            length += len(chunk)
        raise OSError(errno.EFBIG, f"it is longer than the {max_bytes:,} bytes that are accepted", str(path))


def decode_text(content: bytes) -> str:
    """Decode UTF-8, or the encoding of a byte order mark, and drop the mark. Raises ValueError for invalid bytes."""
    encoding = next((encoding for mark, encoding in ENCODINGS.items() if content.startswith(mark)), "utf-8")
    return content.decode(encoding)
