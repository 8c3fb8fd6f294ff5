"""Checkpoints: what a run leaves in /opt/ml/model, and the resume points it continues from.

Files hold plain tensors and builtins only, so that they load with `weights_only=True`. The keys are those of
robosat.pink's checkpoints ("epoch", "state_dict", "optimizer"), without DataParallel's "module." prefix.
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
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import nn

from robosat_pink.container.atomic_write import write_atomically
from robosat_pink.container.regular_file import read_regular
from robosat_pink.container.some_names import some_names
from robosat_pink.errors import CheckpointError, DataError
from robosat_pink.storage import location

log = logging.getLogger(__name__)

EPOCH_FILE = re.compile(r"checkpoint-(\d{5})-of-(\d{5})\.pth")
RESUME_FILE = re.compile(r"resume-(\d{5})-(\d{6,})(?:-(\d+))?\.pth")
KEPT_RESUME_POINTS = 2
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # what weights are numbers of
UPLOADING = ".sagemaker-uploading"  # SageMaker's marker beside a file that it is copying to S3


@dataclass(frozen=True)
class Loaded:
    """What `load_weights` used, and what it left aside."""

    tensors: int
    epoch: int | None
    metadata: Mapping[str, Any]
    ignored: tuple[str, ...]


class ResumePoint(NamedTuple):
    path: Path
    content: dict[str, Any]


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint under its final name only when it is whole."""
    write_atomically(path, lambda file: torch.save(dict(content), file))


def load(path: str | Path) -> dict[str, Any]:
    """A local checkpoint on the CPU; CheckpointError if it is damaged, too large, or holds more than data."""
    try:
        return _unpack(read_regular(path, location.FILE_BYTES), str(path))
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EINVAL, errno.EFBIG):
            raise
        raise CheckpointError(f"{path}: not a checkpoint that can be loaded: {error.strerror}") from error


def read(text: str, **where: Any) -> dict[str, Any]:
    """The content of a checkpoint: a local file, s3://bucket/key or channel:NAME/file.

    Raises DataError if it cannot be read, CheckpointError if it is damaged or holds more than data.
    """
    return _unpack(location.read_file(text if "/" in text else f"./{text}", **where), text)


def load_weights(
    model: nn.Module, path_or_state: str | Path | Mapping[str, Any], name: str = "the given weights", **where: Any
) -> Loaded:
    """Put weights into `model`, from a path as `read` takes it, a checkpoint's content or a state dict.

    Taken as they are written: ours; robosat.pink's ("module." before each name, the ResNet's unused classifier, an
    optimizer beside); TernausNetV2's published ones (below "model"); plain state dicts. Raises CheckpointError with
    the list of names that are missing or too many, or whose shapes differ; `name` is what it calls a given state.
    """
    if isinstance(path_or_state, Mapping):
        content = dict(path_or_state)
    else:
        content, name = read(str(path_or_state), **where), str(path_or_state)
    expected = model.state_dict()
    given = weights_of(content, name)
    # Never trained and never used: robosat.pink kept the classifier of the ResNet it built on.
    ignored = tuple(key for key in given if key.startswith("resnet.fc.") and key not in expected)
    weights = {key: value for key, value in given.items() if key not in ignored}
    # Counts of batches came with torch 0.4.1; nothing here reads them.
    weights = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")} | weights
    check_weights(weights, expected, name)
    try:
        model.load_state_dict(weights)
    except Exception as error:  # of kinds of tensors that cannot be copied into usual ones
        raise CheckpointError(f"{name}: its weights cannot be taken: {error}") from error
    return Loaded(len(weights), content.get("epoch"), metadata_of(content), ignored)


def check_weights(weights: Mapping[str, Any], expected: Mapping[str, Any], name: str) -> None:
    """CheckpointError where names, shapes or types are not those of the network, or numbers are NaN or inf.

    Counts, which nothing reads, are of any usual type.
    """
    _check_fit(weights, expected, name)
    odd = [
        key
        for key, value in weights.items()
        if value.dtype not in FLOATS and (value.is_floating_point() or expected[key].is_floating_point())
    ]
    if odd:
        kinds = ", ".join(sorted({str(weights[key].dtype) for key in odd}))
        accepted = ", ".join(map(str, FLOATS))
        raise CheckpointError(f"{name}: its weights {_shortened(odd)} are of type {kinds}; accepted: {accepted}")
    # As float32, in which they are trained: larger ones would be inf there.
    wrong = [key for key, value in weights.items() if value.dtype in FLOATS and not value.float().isfinite().all()]
    if wrong:
        raise CheckpointError(f"{name}: holds NaN or inf, in {_shortened(wrong)}; take an earlier one")


def weights_of(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The tensors of a checkpoint by plain names, in its order. Raises CheckpointError if it has none."""
    return _plainly_named(_state_dict_of(content, name))


def metadata_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """What our checkpoints say of themselves (version, config, bands, scale, classes); empty for anybody else's."""
    metadata = content.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def epoch_name(epoch: int, epochs: int) -> str:
    return f"checkpoint-{epoch:05d}-of-{epochs:05d}.pth"


def save_epoch(folder: Path, epoch: int, epochs: int, content: Mapping[str, Any]) -> Path:
    """checkpoint-00001-of-00050.pth; the one before it goes once this one is there."""
    path = folder / epoch_name(epoch, epochs)
    save(path, content)
    for other in folder.iterdir():
        if EPOCH_FILE.fullmatch(other.name) and other != path:
            other.unlink()
    return path


class ResumePoints:
    """The resume points of a folder: resume-00001-000020.pth, 20 steps after epoch 1, with all state.

    The platform copies the folder to S3 meanwhile, and what is removed here is removed there. So a name is written
    once; a place that is reached again, as in an epoch that has begun anew, has a higher number behind it. The last two
    that are known to be whole stay; and one that is just being copied goes with a later call. Other files, among them
    the platform's marks of what it copies, come and go, and are its own business.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._whole: list[Path] = []  # that this run has read or written, the latest last

    def newest(self) -> ResumePoint | None:
        """The newest that is whole, with a warning for each damaged one. Raises DataError if one cannot be read."""
        for path in sorted(self._there(), key=_place_of, reverse=True):
            try:
                point = ResumePoint(path, load(path))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror}") from error
            except CheckpointError as error:
                log.warning("warning: %s; trying the one before", error)
            else:
                self._whole = [path]
                return point
        return None

    def save(self, epoch: int, step: int, content: Mapping[str, Any]) -> Path:
        earlier = [_place_of(each) for each in (*self._there(), *self._whole)]
        number = max((each[0] + (each[1:] >= (epoch, step)) for each in earlier), default=0)
        path = self.folder / f"resume-{epoch:05d}-{step:06d}{f'-{number}' * (number > 0)}.pth"
        save(path, content)
        self._whole.append(path)
        kept = self._whole[-KEPT_RESUME_POINTS:]
        # One alone is known to be whole: then the one before may be needed, if this one is damaged on its way.
        others = sorted((each for each in self._there() if each not in kept), key=_place_of)
        for old in others[: len(others) - (KEPT_RESUME_POINTS - len(kept))]:
            if not old.with_name(old.name + UPLOADING).exists():
                old.unlink(missing_ok=True)
        return path

    def _there(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if RESUME_FILE.fullmatch(path.name)]


def _place_of(path: Path) -> tuple[int, int, int]:
    """Number, epoch and step of a resume point, by its name: the later one is the greater."""
    match = RESUME_FILE.fullmatch(path.name)
    assert match
    epoch, step, number = (int(each or 0) for each in match.groups())
    return number, epoch, step


def _check_sums(data: bytes) -> None:
    """torch reads its zip files without looking at their checksums: a flipped bit would be a wrong weight."""
    file = io.BytesIO(data)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            # torch compresses nothing; what does, or counts bytes twice, may unpack to more than any memory.
            if sum(entry.file_size for entry in archive.infolist()) > len(data):
                raise zipfile.BadZipFile("compressed")
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(damaged)


def _state_dict_of(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not content or not all(isinstance(key, str) and is_usual(value) for key, value in content.items()):
        raise CheckpointError(
            f"{name}: no state dict; accepted: one, or a checkpoint with it under state_dict or model"
        )
    return content


def is_usual(value: object) -> TypeGuard[torch.Tensor]:
    """A tensor whose numbers lie in memory one by one; others come of hands that mean harm, or of quantization."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )


def _plainly_named(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Without what wrappers put before names (DataParallel, torch.compile) or into them (activated batch norms)."""
    plain = {key.removeprefix("_orig_mod.").removeprefix("module."): value for key, value in weights.items()}
    return {re.sub(r"(\bbn\d)\.bn\.", r"\1.", key): value for key, value in plain.items()}


def _check_fit(weights: Mapping[str, Any], expected: Mapping[str, Any], name: str) -> None:
    """Band and class counts are told apart from other differences: they are what users change."""
    missing, surplus = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    differing = [key for key in expected if key in weights and weights[key].shape != expected[key].shape]
    reasons = []
    kernels = [key for key, value in expected.items() if value.ndim == 4]
    ends = [(kernels[0], 1, "band(s), channels[].bands"), (kernels[-1], 0, "class(es), classes")] if kernels else []
    for key, axis, what in ends:
        if key in differing and weights[key].ndim == 4 and weights[key].shape[axis] != expected[key].shape[axis]:
            reasons.append(f"trained for {weights[key].shape[axis]} {what} name {expected[key].shape[axis]}")
    if missing:
        reasons.append(f"missing: {_shortened(missing)}")
    if surplus:
        reasons.append(f"too many: {_shortened(surplus)}")
    if differing:
        shapes = [f"{key} {tuple(weights[key].shape)} for {tuple(expected[key].shape)}" for key in differing]
        reasons.append(f"of another shape: {_shortened(shapes)}")
    if reasons:
        raise CheckpointError(f"{name}: not weights of this network: {'; '.join(reasons)}")


def _unpack(data: bytes, name: str) -> dict[str, Any]:
    try:
        _check_sums(data)
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damaged byte happens to break
        # torch's own advice is to load without weights_only, which would run whatever is in the file.
        reason = "it holds more than tensors and plain values" if "weights_only" in str(error) else "it is damaged"
        raise CheckpointError(f"{name}: not a checkpoint that can be loaded: {reason}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{name}: holds {type(content).__name__}, not a checkpoint or a state dict")
    return content


def _shortened(names: list[str]) -> str:
    return some_names([name[:100] for name in names], most=8)
