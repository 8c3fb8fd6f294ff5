"""Local files: small ones read, others written whole or not at all, and whether a folder is in memory."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO

from robosat_pink.errors import ContractError

TEMPORARY = ".sagemaker-ignore"  # SageMaker's own suffix for files that are still being written
PORTION = 2**20  # bytes that are read at once of a file that does not say its length, as those in /proc do not


# The longer ones first: that of UTF-32 begins like that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}


def read_regular(path: Path | str, most_bytes: int) -> bytes:
    """The content of a regular file. OSError, whose strerror says why, for a longer one and for anything else.

    It does not wait: a pipe that nobody writes to is opened at once, and then refused for what it is.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device; accepted: a regular file", str(path))
        portions: list[bytes] = []
        length = 0
        while max(status.st_size, length) <= most_bytes:
            portion = file.read(max(status.st_size - length, PORTION))  # room for as much is taken at once
            if not portion:
                return b"".join(portions)
            portions.append(portion)
            length += len(portion)
        raise OSError(errno.EFBIG, f"it is longer than the {most_bytes:,} bytes that are accepted", str(path))


def text_of(content: bytes) -> str:
    """UTF-8, or as a byte order mark says, without the mark. Raises ValueError for what is neither."""
    return content.decode(next((encoding for mark, encoding in MARKS.items() if content.startswith(mark)), "utf-8"))


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a local file so that its name never shows half of it: under another name, to the disk, then renamed.

    Raises ContractError, with the reason, where the disk does not take it.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")  # two that fail at once both say why
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        reason = error if isinstance(error, OSError) else error.__context__  # torch.save hides what the disk said
        if isinstance(reason, OSError):
            raise _unwritable(path, reason) from error
        raise


def check_writable(folder: Path) -> None:
    """ContractError if a file cannot be made and filled in there: for its rights, or for want of room."""
    path = folder / f"probe.{os.getpid()}{TEMPORARY}"
    try:
        path.write_bytes(bytes(1))
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        with contextlib.suppress(OSError):  # another process of this run may have taken it for half-written
            os.unlink(path)


def _unwritable(path: Path, reason: OSError) -> ContractError:
    if reason.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "make room there (of inodes, too: see df -i), or mount a larger volume"
    else:
        advice = "check the folder and who may write to it"
    return ContractError(f"{path}: cannot be written: {reason.strerror}; {advice}")


def is_in_memory(folder: Path) -> bool:
    """Whether the folder lies on a tmpfs, as /proc/mounts tells."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return False
    inside = [(point, kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return bool(inside) and max(inside, key=lambda each: len(each[0]))[1] in ("tmpfs", "ramfs")
