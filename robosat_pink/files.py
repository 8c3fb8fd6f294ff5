"""Local files that are whole or not there, and whether a folder is in memory. Called by all that leaves something."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from robosat_pink.errors import ContractError

TEMPORARY = ".sagemaker-ignore"  # SageMaker's own suffix for files that are still being written


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
            is_full = reason.errno in (errno.ENOSPC, errno.EDQUOT)
            advice = (
                "make room there, or mount a larger volume" if is_full else "check the folder and who may write to it"
            )
            raise ContractError(f"{path}: cannot be written: {reason.strerror}; {advice}") from error
        raise


def is_in_memory(folder: Path) -> bool:
    """Whether the folder lies on a tmpfs, as /proc/mounts tells."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return False
    inside = [(point, kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return bool(inside) and max(inside, key=lambda each: len(each[0]))[1] in ("tmpfs", "ramfs")
