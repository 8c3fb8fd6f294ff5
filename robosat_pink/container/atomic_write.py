"""Atomic writes of local files. Called by `contract`, `checkpoint`, `training` and `report`."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from robosat_pink.errors import ContractError

TEMPORARY_SUFFIX = ".sagemaker-ignore"  # SageMaker does not upload files whose names end with this


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a temporary file, sync it to disk and rename it, so that `path` never shows a half-written file.

    Raises ContractError, with the reason, if the disk refuses it.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")  # two processes may write at once
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        reason = error if isinstance(error, OSError) else error.__context__  # torch.save hides the disk's error
        if isinstance(reason, OSError):
            raise _unwritable(path, reason) from error
        raise


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, if they are missing. Raises ContractError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def check_writable(folder: Path) -> None:
    """Raises ContractError if no file can be written to the folder: no permission, or no space."""
    path = folder / f"probe.{os.getpid()}{TEMPORARY_SUFFIX}"
    try:
        path.write_bytes(bytes(1))
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        with contextlib.suppress(OSError):  # another process of this run may have removed it as half-written
            os.unlink(path)


def _unwritable(path: Path, reason: OSError) -> ContractError:
    if reason.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "make room there (of inodes, too: see df -i), or mount a larger volume"
    else:
        advice = "check the folder and who may write to it"
    return ContractError(f"{path}: cannot be written: {reason.strerror}; {advice}")
