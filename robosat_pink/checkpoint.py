"""Checkpoint files: weights in /opt/ml/model and resume points. Called by `training` and `trained`.

Files contain only tensors and builtins, so that `weights_only=True` loads them. Their keys are those of robosat.pink
("epoch", "state_dict", "optimizer"), without DataParallel's "module." prefix.
"""

from __future__ import annotations

import errno
import io
import logging
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from robosat_pink.container.atomic_write import write_atomically
from robosat_pink.container.regular_file import read_regular
from robosat_pink.container.some_names import some_names
from robosat_pink.errors import CheckpointError, DataError
from robosat_pink.models.older_weights import is_plain_tensor, with_current_names, with_current_weights
from robosat_pink.storage import location

log = logging.getLogger(__name__)

EPOCH_FILE = re.compile(r"checkpoint-(\d{5})-of-(\d{5})\.pth")
RESUME_FILE = re.compile(r"resume-(\d{5})-(\d{6,})(?:-(\d+))?\.pth")
KEPT_RESUME_POINTS = 2
FLOAT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
UPLOADING_SUFFIX = ".sagemaker-uploading"  # suffix of the marker that SageMaker keeps while it copies a file to S3


@dataclass(frozen=True)
class Loaded:
    """The result of `load_weights`, with the names that it ignored."""

    tensors: int
    epoch: int | None
    metadata: Mapping[str, Any]
    ignored: tuple[str, ...]


class ResumePoint(NamedTuple):
    path: Path
    content: dict[str, Any]


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint file atomically."""
    write_atomically(path, lambda file: torch.save(dict(content), file))


def load(path: str | Path) -> dict[str, Any]:
    """The content of a local checkpoint, on the CPU.

    Raises CheckpointError if the file is damaged, too large, or contains code.
    """
    try:
        return unpack(read_regular(path, location.MAX_FILE_BYTES), str(path))
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EINVAL, errno.EFBIG):
            raise
        raise CheckpointError(f"{path}: not a checkpoint that can be loaded: {error.strerror}") from error


def read(text: str, **where: Any) -> dict[str, Any]:
    """The content of the checkpoint at a local path, s3://bucket/key or channel:NAME/file.

    Raises DataError if it cannot be read, CheckpointError if it is damaged or contains code.
    """
    return unpack(location.read_file(text if "/" in text else f"./{text}", **where), text)


def load_weights(
    model: nn.Module, path_or_state: str | Path | Mapping[str, Any], name: str = "the given weights", **where: Any
) -> Loaded:
    """Load weights into `model` from a path that `read` accepts, a checkpoint's content, or a state dict.

    Accepted formats: ours; robosat.pink's ("module." before each name, the ResNet's unused classifier, an
    optimizer); TernausNetV2's published ones (below "model"); plain state dicts. Raises CheckpointError with the names
    that are missing or unexpected, or whose shapes differ. If no path is given, messages use `name`.
    """
    if isinstance(path_or_state, Mapping):
        content = dict(path_or_state)
    else:
        content, name = read(str(path_or_state), **where), str(path_or_state)
    expected = model.state_dict()
    given = weights_of(content, name)
    # robosat.pink saved the ResNet's classifier, but neither used nor trained it.
    ignored = tuple(key for key in given if key.startswith("resnet.fc.") and key not in expected)
    weights = {key: value for key, value in given.items() if key not in ignored}
    # Files from before torch 0.4.1 have no num_batches_tracked, and nothing here reads it.
    weights = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")} | weights
    check_weights(weights, expected, name)
    try:
        model.load_state_dict(weights)
    except Exception as error:  # tensors of a kind that cannot be copied into strided ones
        raise CheckpointError(f"{name}: its weights cannot be loaded: {error}") from error
    return Loaded(len(weights), content.get("epoch"), metadata_of(content), ignored)


def check_weights(weights: Mapping[str, Any], expected: Mapping[str, Any], name: str) -> None:
    """Raises CheckpointError if names, shapes or dtypes do not fit the network, or if a weight is NaN or inf.

    Integer tensors are counts that nothing reads, and may have any integer dtype.
    """
    _check_fit(weights, expected, name)
    misfits = [
        key
        for key, value in weights.items()
        if value.dtype not in FLOAT_TYPES and (value.is_floating_point() or expected[key].is_floating_point())
    ]
    if misfits:
        kinds = ", ".join(sorted({str(weights[key].dtype) for key in misfits}))
        accepted = ", ".join(map(str, FLOAT_TYPES))
        raise CheckpointError(f"{name}: its weights {_shortened(misfits)} are of type {kinds}; accepted: {accepted}")
    # Training uses float32, in which large float64 numbers are inf.
    floats = {key: value for key, value in weights.items() if value.dtype in FLOAT_TYPES}
    nonfinite = [key for key, value in floats.items() if not value.float().isfinite().all()]
    if nonfinite:
        raise CheckpointError(f"{name}: holds NaN or inf, in {_shortened(nonfinite)}; take an earlier one")


def weights_of(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A checkpoint's tensors by name, in file order, without wrappers' prefixes.

    Raises CheckpointError if there are none.
    """
    return with_current_names(_state_dict_of(content, name))


def metadata_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Version, config, bands, scale and classes of one of our checkpoints; empty for other programs' files."""
    metadata = content.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def warn_if_not_evaluated(content: Mapping[str, Any], name: str) -> None:
    """Warn of the weights of a run that was stopped in its first epoch, which `content` says by an epoch of 0."""
    if metadata_of(content) and content.get("epoch") == 0:
        log.warning(
            "warning: %s: its run was stopped in the first epoch, so that these weights were never evaluated", name
        )


def epoch_name(epoch: int, epochs: int) -> str:
    return f"checkpoint-{epoch:05d}-of-{epochs:05d}.pth"


def save_epoch(folder: Path, epoch: int, epochs: int, content: Mapping[str, Any]) -> Path:
    """Write checkpoint-00001-of-00050.pth, then remove the file of the previous epoch."""
    path = folder / epoch_name(epoch, epochs)
    save(path, content)
    for other in folder.iterdir():
        if EPOCH_FILE.fullmatch(other.name) and other != path:
            other.unlink()
    return path


class ResumePoints:
    """The resume points of a folder. resume-00001-000020.pth contains the whole state, 20 steps after epoch 1.

    SageMaker copies the folder to S3 during the run, and deletes from S3 what is deleted here. Therefore no name is
    written twice: if a restarted epoch reaches a position again, the name gets a suffix, resume-00001-000020-1.pth. The
    last two files that this run has read or written are kept. A later `save` removes a file that is being copied.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._verified: list[Path] = []  # files that this run has read or written, the latest last

    def newest(self) -> ResumePoint | None:
        """The newest undamaged resume point; warns of each damaged one. Raises DataError if one cannot be read."""
        for path in sorted(self._files(), key=_position, reverse=True):
            try:
                point = ResumePoint(path, load(path))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror}") from error
            except CheckpointError as error:
                log.warning("warning: %s; trying the one before", error)
            else:
                self._verified = [path]
                return point
        return None

    def save(self, epoch: int, step: int, content: Mapping[str, Any]) -> Path:
        """Write a resume point, then remove all but the latest KEPT_RESUME_POINTS."""
        positions = [_position(path) for path in (*self._files(), *self._verified)]
        # At least as many restarts as every file; one more than those at this or a later position.
        restarts = max((count + int(tuple(position) >= (epoch, step)) for count, *position in positions), default=0)
        suffix = f"-{restarts}" if restarts else ""
        path = self.folder / f"resume-{epoch:05d}-{step:06d}{suffix}.pth"
        save(path, content)
        self._verified.append(path)
        kept = self._verified[-KEPT_RESUME_POINTS:]
        # If this file is the only verified one, the newest other file is kept, too: the copy in S3 may be damaged.
        others = sorted((path for path in self._files() if path not in kept), key=_position)
        for old in others[: len(others) - (KEPT_RESUME_POINTS - len(kept))]:
            if not old.with_name(old.name + UPLOADING_SUFFIX).exists():
                old.unlink(missing_ok=True)
        return path

    def _files(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if RESUME_FILE.fullmatch(path.name)]


def _position(path: Path) -> tuple[int, int, int]:
    """Number of restarts, epoch and step, from a file name. Later resume points compare greater."""
    match = RESUME_FILE.fullmatch(path.name)
    assert match
    epoch, step, restarts = (int(digits or 0) for digits in match.groups())
    return restarts, epoch, step


def _verify_checksums(data: bytes) -> None:
    """Raises BadZipFile if the file is damaged. torch ignores the checksums: a flipped bit would be a wrong weight."""
    file = io.BytesIO(data)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            # torch writes no compressed entries. In a malicious file, they could unpack to any size.
            if sum(entry.file_size for entry in archive.infolist()) > len(data):
                raise zipfile.BadZipFile("compressed")
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(damaged)


def _state_dict_of(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not content or not all(isinstance(key, str) and is_plain_tensor(value) for key, value in content.items()):
        raise CheckpointError(
            f"{name}: no state dict; accepted: one, or a checkpoint with it under state_dict or model"
        )
    return content


def _check_fit(weights: Mapping[str, Any], expected: Mapping[str, Any], name: str) -> None:
    """Raises CheckpointError if names or shapes differ. Its message says if the number of bands or classes differs."""
    missing, surplus = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    differing = [key for key in expected if key in weights and weights[key].shape != expected[key].shape]
    reasons = []
    kernels = [key for key, value in expected.items() if value.ndim == 4]
    ends = [(kernels[0], 1, "band(s), channels[].bands"), (kernels[-1], 0, "class(es), classes")] if kernels else []
    for key, axis, changed in ends:
        if key in differing and weights[key].ndim == 4 and weights[key].shape[axis] != expected[key].shape[axis]:
            reasons.append(f"trained for {weights[key].shape[axis]} {changed} name {expected[key].shape[axis]}")
    if missing:
        reasons.append(f"missing: {_shortened(missing)}")
    if surplus:
        reasons.append(f"unexpected: {_shortened(surplus)}")
    if differing:
        shapes = [f"{key} {tuple(weights[key].shape)} for {tuple(expected[key].shape)}" for key in differing]
        reasons.append(f"of another shape: {_shortened(shapes)}")
    if reasons:
        raise CheckpointError(f"{name}: not weights of this network: {'; '.join(reasons)}")


def unpack(data: bytes, name: str) -> dict[str, Any]:
    """The content of a checkpoint file. Raises CheckpointError if it is damaged or contains code."""
    try:
        _verify_checksums(data)
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # any type, depending on which byte is damaged
        # torch's own message advises weights_only=False, which would run code in the file.
        reason = "it holds more than tensors and plain values" if "weights_only" in str(error) else "it is damaged"
        raise CheckpointError(f"{name}: not a checkpoint that can be loaded: {reason}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{name}: holds {type(content).__name__}, not a checkpoint or a state dict")
    return {
        key: with_current_weights(value) if isinstance(value, dict) else value
        for key, value in with_current_weights(content).items()
    }


def _shortened(names: list[str]) -> str:
    return some_names([name[:100] for name in names], most=8)
