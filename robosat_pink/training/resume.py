"""What a run goes on from: its own resume point, a checkpoint to resume, or weights alone. Called by `train`."""

from __future__ import annotations

import dataclasses
import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from robosat_pink import checkpoint
from robosat_pink.checkpoint import ResumePoints
from robosat_pink.config import Config, to_tree
from robosat_pink.config.parsing import build
from robosat_pink.config.problems import Problems
from robosat_pink.config.sections import LARGEST
from robosat_pink.container.redaction import redacted_tree
from robosat_pink.datasets import TilePairs
from robosat_pink.datasets.split import Split
from robosat_pink.errors import CheckpointError, ConfigError, RobosatError
from robosat_pink.training.resume_point import check_moments, check_point
from robosat_pink.training.state import State

log = logging.getLogger(__name__)

FREE_TO_CHANGE = (  # between stop and resume; of runtime all but the seed
    *("model.epochs", "model.patience", "runtime.", "checkpoint.resume", "checkpoint.every_", "checkpoint.if_"),
    *("dataset.cache.", "dataset.aws_profile", "dataset.verify_md5", "dataset.if_changed"),
)
MOST_ID_BYTES, MOST_IDS = 256 * 10**6, 10**7  # of all parts of the split
Form = Literal["plain", "transposed"] | int
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # entries of state dicts that are no parameters


@dataclass(frozen=True)
class Start:
    """A checkpoint's content, and what is taken from it."""

    name: str
    content: Mapping[str, Any]
    is_resumed: bool  # with optimizer and epoch, and if it is a resume point of ours, all the rest

    @property
    def is_whole(self) -> bool:
        return self.is_resumed and "history" in self.content


def find(config: Config, points: ResumePoints | None, where: Mapping[str, Any]) -> Start | None:
    """The newest resume point of this run, or else what the experiment names.

    Raises DataError if that cannot be read, CheckpointError if it is damaged or holds more than data.
    """
    point = points.newest() if points else None
    if point:
        return Start(str(point.path), point.content, is_resumed=True)
    named = config.checkpoint.resume or config.checkpoint.path
    if not named:
        return None
    return Start(named, checkpoint.read(named, **where), is_resumed=config.checkpoint.resume is not None)


def with_scales_settled(config: Config, start: Start | None) -> Config:
    """The experiment with every channel's `scale` spelt out, given what it starts from, if anything.

    Digital numbers as they were is what weights without our metadata have learnt from; those with it say.
    """
    metadata = checkpoint.metadata_of(start.content) if start else {}
    known = _known_scales(start.name, metadata) if start else []
    channels = []
    for number, channel in enumerate(config.channels):
        scale = channel.scale
        if scale is None and start and not metadata:
            scale = "raw"
            log.warning(
                "warning: %s does not say how its images were scaled: feeding digital numbers as they are, without "
                "mean and std, as planet-snowcover did; set channels.%d.scale to have it otherwise",
                *(start.name, number),
            )
        elif scale is None:
            scale = known[number] if number < len(known) else "auto"
        elif number < len(known) and scale != known[number]:
            log.warning(
                "warning: channels.%d.scale = %s, but the weights to start from learnt with %s",
                *(number, scale, known[number]),
            )
        channels.append(dataclasses.replace(channel, scale=scale))
    scales = [channel.scale for channel in channels]
    if "tags" in scales and set(scales) != {"tags"}:
        raise ConfigError(
            f"channels[].scale would be {', '.join(map(str, scales))}, where not given as the weights to start from "
            "learnt; accepted: tags for all channels or none; give each channel the same scale"
        )
    return dataclasses.replace(config, channels=tuple(channels))


def _known_scales(name: str, metadata: Mapping[str, Any]) -> list[Any]:
    """What the weights' channels were scaled by, as far as known. Raises CheckpointError at what is no scale."""
    known = metadata.get("scale", [])
    is_list = isinstance(known, list) and all(_is_scale(each) for each in known)
    if is_list and ("tags" not in known or set(known) == {"tags"}):
        return list(known)
    accepted = f"a list of auto, raw or a number above 0 and up to {LARGEST:,} of each channel, or tags of all"
    raise _damage(name, "metadata.scale", known, accepted)


def _is_scale(value: Any) -> bool:
    if isinstance(value, str):
        return value in ("auto", "raw", "tags")
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LARGEST


def noted_upsampling(start: Start, usual: Form) -> Form:
    """The form of convolutions that a resume point's run was begun with. Raises CheckpointError where it is none."""
    value: Any = start.content.get("upsampling", usual)
    is_name = isinstance(value, str) and value in ("plain", "transposed")
    if is_name or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        form: Form = value
        return form
    raise _damage(start.name, "upsampling", value, "plain, transposed or a whole number from 1")


def _damage(name: str, key: str, value: Any, accepted: str) -> CheckpointError:
    problems = Problems(f"{name}: damaged")
    problems.add(key, value, f"accepted: {accepted}; take an earlier checkpoint")
    return CheckpointError(problems.lines[0])


def restore(state: State, start: Start, config: Config, tiles: TilePairs, split: Split) -> None:
    """Put what a run goes on from into the state. Raises CheckpointError if it is of another experiment."""
    if not start.is_resumed:
        loaded = checkpoint.load_weights(state.model, start.content, name=start.name)
        log.info("starting from %s: %d tensors, epoch %s", start.name, loaded.tensors, loaded.epoch)
        return
    state.is_resumed = True
    try:
        _restore(state, start, config, tiles, split)
    except RobosatError:
        raise
    except Exception as error:  # whatever the damaged or foreign part happens to break
        raise CheckpointError(f"{start.name}: damaged, or of another program: {error}") from error
    left = "" if state.epoch < config.model.epochs else "; nothing is left to train: for more, raise model.epochs"
    log.info("continuing from %s: %d epochs and %d steps are done%s", start.name, state.epoch, state.step, left)


def _restore(state: State, start: Start, config: Config, tiles: TilePairs, split: Split) -> None:
    _check_same_experiment(start, config)
    epoch, epochs = start.content.get("epoch"), config.model.epochs
    step = start.content.get("step", 0)
    if not isinstance(epoch, int) or not isinstance(step, int) or epoch < 0:
        raise CheckpointError(f"{start.name}: does not say after how many epochs it was written, or is damaged")
    if epoch + (step > 0 or not start.is_whole) > epochs:
        behind = f"{epoch} epochs and {step} steps" if step else f"{epoch} epochs"
        raise CheckpointError(
            f"{start.name} has {behind} behind it, model.epochs = {epochs}; ask for more, or give this run an empty "
            "checkpoints folder and no checkpoint.resume"
        )
    if start.is_whole:
        check_point(start.content, state.model, start.name)
        checkpoint.check_weights(start.content["state_dict"], state.model.state_dict(), start.name)
        state.restore(start.content)
        _compare_tiles(state, start, config, tiles, split)
    else:
        checkpoint.load_weights(state.model, start.content, name=start.name)
        adopt_optimizer(state.optimizer, state.model, start)
        state.epoch = epoch
        log.warning("warning: %s holds weights, optimizer and epoch; its history is not known", start.name)


def adopt_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, start: Start) -> None:
    """Adam's moments of a checkpoint, by the names of its parameters: robosat.pink's had some that are not here."""
    saved = start.content.get("optimizer")
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"{start.name}: holds no optimizer; checkpoint.path starts from weights alone")
    theirs = [name for name in checkpoint.weights_of(start.content, start.name) if not name.endswith(STATISTICS)]
    moments = {theirs[number]: moments for number, moments in saved["state"].items() if number < len(theirs)}
    state = {}
    for number, (name, parameter) in enumerate(model.named_parameters()):
        found = moments.get(name)
        if found is None or found["exp_avg"].shape != parameter.shape:
            raise CheckpointError(f"{start.name}: its optimizer has no moments for {name} of {tuple(parameter.shape)}")
        state[number] = {
            "step": torch.tensor(float(found["step"])),
            "exp_avg": found["exp_avg"],
            "exp_avg_sq": found["exp_avg_sq"],
        }
    check_moments(state, list(model.parameters()), start.name)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def ids_of(tiles: TilePairs, split: Split) -> dict[str, list[str]]:
    """The ids of the tiles of each part of the split."""
    parts = {"train": split.train, "val": split.val, "holdout": split.holdout}
    return {name: [tiles.id(row) for row in rows] for name, rows in parts.items()}


def packed_ids(parts: Mapping[str, Sequence[str]]) -> dict[str, torch.Tensor]:
    """Lists of tile ids as a checkpoint holds them: compressed, for there may be a million."""
    return {
        name: torch.frombuffer(bytearray(zlib.compress("\n".join(ids).encode())), dtype=torch.uint8)
        for name, ids in parts.items()
    }


def unpacked_ids(parts: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    lists, bytes_left, ids_left = {}, MOST_ID_BYTES, MOST_IDS
    for name, ids in parts.items():
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(ids.numpy().data, bytes_left + 1)
        bytes_left -= len(text)
        ids_left -= text.count(b"\n") + 1
        if bytes_left < 0 or ids_left < 0 or not unpacking.eof:
            raise ValueError(f"its ids are cut short, or more than {MOST_IDS:,} or {MOST_ID_BYTES:,} bytes")
        lists[name] = text.decode().split("\n") if text else []
    return lists


def _check_same_experiment(start: Start, config: Config) -> None:
    metadata = checkpoint.metadata_of(start.content)
    if not metadata:
        return  # somebody else's, who did not say
    if not isinstance(metadata.get("config"), dict):
        raise CheckpointError(f"{start.name}: damaged: its metadata do not say of which experiment it is")
    before, now = _flat(_with_today_s_keys(metadata["config"])), _flat(to_tree(config))
    shown_before, shown_now = (_flat(redacted_tree(tree)) for tree in (before, now))
    differing = [
        f"{key} = {json.dumps(shown_now.get(key))}, there {json.dumps(shown_before.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if not _agree(before.get(key), now.get(key)) and (key == "runtime.seed" or not key.startswith(FREE_TO_CHANGE))
    ]
    if not differing:
        return
    if config.checkpoint.if_different == "continue":
        log.warning("warning: continuing %s with another experiment: %s", start.name, "; ".join(differing))
        return
    raise CheckpointError(
        f"{start.name} is of another experiment: {'; '.join(differing)}. Restore these keys to continue it, give this "
        "run an empty checkpoints folder, or set checkpoint.if_different = continue"
    )


def _agree(before: Any, now: Any) -> bool:
    """Whether values are the same, as far as the redacted parts let one see."""
    if not isinstance(before, str) or "***" not in before:
        return bool(before == now)
    if before == "***":
        return True
    first, *middle, last = before.split("***")
    if not isinstance(now, str) or not now.startswith(first) or not now[len(first) :].endswith(last):
        return False
    place, end = len(first), len(now) - len(last)
    for part in middle:
        place = now.find(part, place, end)
        if place < 0:
            return False
        place += len(part)
    return True


def _with_today_s_keys(tree: Any) -> Any:
    """An earlier version's experiment, with the defaults of keys that it did not have."""
    then = build(Config, tree, Problems("an earlier run's experiment"))
    return tree if then is None else to_tree(then)


def _compare_tiles(state: State, start: Start, config: Config, tiles: TilePairs, split: Split) -> None:
    """Begin the epoch anew where its tiles or their order are no longer those it was begun with."""
    metadata = checkpoint.metadata_of(start.content)
    # What a folder tells of the contents of its files changes with every copy.
    has_changed = tiles.image_location.bucket is not None and metadata["data_digest"] != tiles.digest()
    begun, now = unpacked_ids(start.content["ids"]), ids_of(tiles, split)
    before, there = ({each for ids in parts.values() for each in ids} for parts in (begun, now))
    if has_changed or before != there:
        log.warning(
            "warning: the tiles have changed since %s was written (%d are new, %d are gone); continuing with today's",
            *(start.name, len(there - before), len(before - there)),
        )
    then = metadata["config"]
    order = (then["model"]["batch_size"], then["runtime"]["seed"])
    if has_changed or begun != now or order != (config.model.batch_size, config.runtime.seed):
        if state.step or state.train:
            log.warning("warning: epoch %d begins anew", state.epoch + 1)
        state.restart_epoch()


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values."""
    entries = enumerate(tree) if isinstance(tree, list) else tree.items() if isinstance(tree, dict) else None
    if entries is None:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for name, value in entries:
        flat |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return flat
