"""Checks the content of a resume point before a run resumes from it. Called by `resume`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from robosat_pink import checkpoint
from robosat_pink.errors import CheckpointError
from robosat_pink.models.older_weights import is_plain_tensor

KINDS: dict[str, tuple[type, ...]] = {
    "epoch": (int,),
    "step": (int,),
    "tallies": (list, type(None)),
    "train": (dict, type(None)),
    "state_dict": (dict,),
    "optimizer": (dict,),
    "history": (list,),
    "best_epoch": (int,),
    "best_state_dict": (dict,),
    "skipped": (int,),
    "metadata": (dict,),
    "ids": (dict,),
}
PHASE_METRICS = ("loss", "iou", "tiles", "empty", "seconds")  # in every version; later versions added metrics
CLASS_METRICS = ("iou",)
LARGEST_NUMBER = 1e300  # exclusive limit of numbers in history, metrics and optimizer


def check_point(content: Mapping[str, Any], model: nn.Module, name: str) -> None:
    """Raises CheckpointError, which begins with `name`, if a part checked here cannot be from a run of this model.

    Must be called before a tensor is copied: a few bytes may claim to be a tensor larger than any memory.
    """
    for key, kinds in KINDS.items():
        value = content.get(key)
        if key not in content or not isinstance(value, kinds) or (isinstance(value, int) and value < 0):
            raise _refusal(name, f"its {key}")
    epochs = [row["epoch"] for row in content["history"] if _is_row(row, content["epoch"])]
    if len(epochs) < len(content["history"]) or not (content["train"] is None or _is_phase(content["train"])):
        raise _refusal(name, "its history")
    if content["best_epoch"] not in (epochs or [0]):
        raise _refusal(name, "its best_epoch")
    if content["best_epoch"] or content["best_state_dict"]:
        checkpoint.check_weights(content["best_state_dict"], model.state_dict(), name)
    groups = content["optimizer"].get("param_groups")
    if not isinstance(groups, list) or not groups or not _is_number(groups[0].get("lr")):
        raise _refusal(name, "the learning rate of its optimizer")
    check_moments(content["optimizer"]["state"], list(model.parameters()), name)


def check_average(content: Mapping[str, Any], model: nn.Module, name: str) -> None:
    """Raises CheckpointError if the content has an average of the weights that cannot be of this model."""
    if "trained_state_dict" not in content:
        return
    updates = content.get("updates")
    if not isinstance(updates, int) or updates < 0:
        raise _refusal(name, "its updates")
    for key in ("state_dict", "trained_state_dict"):
        if not isinstance(content.get(key), dict):
            raise _refusal(name, f"its {key}")
        checkpoint.check_weights(content[key], model.state_dict(), name)


def check_moments(state: Mapping[int, Mapping[str, Any]], parameters: Sequence[torch.Tensor], name: str) -> None:
    """Raises CheckpointError unless `state` can be Adam's moments of these parameters, by index."""
    for number, moments in state.items():
        if number not in range(len(parameters)):
            raise _refusal(name, "its optimizer is of other parameters")
        expected = {"step": torch.Size(), "exp_avg": parameters[number].shape, "exp_avg_sq": parameters[number].shape}
        for key, shape in expected.items():
            moment = moments.get(key)
            if not is_plain_tensor(moment) or moment.dtype not in checkpoint.FLOAT_TYPES or moment.shape != shape:
                raise _refusal(name, f"its optimizer's {key} for shape {tuple(parameters[number].shape)}")
            if not moment.float().isfinite().all():
                raise CheckpointError(f"{name}: its optimizer holds NaN or inf; take an earlier one")
            if key != "exp_avg" and (moment < 0).any():
                raise _refusal(name, f"the {key} of its optimizer is negative")


def _is_row(row: Any, last: int) -> bool:
    return (
        isinstance(row, dict)
        and row.keys() == {"epoch", "lr", "train", "val"}
        and isinstance(row["epoch"], int)
        and 0 < row["epoch"] <= last
        and _is_number(row["lr"])
        and _is_phase(row["train"])
        and _is_phase(row["val"])
    )


def _is_phase(values: Any) -> bool:
    if not isinstance(values, dict) or not isinstance(values.get("per_class"), dict):
        return False
    numbers = {name: value for name, value in values.items() if name != "per_class"}
    return _are_numbers(numbers, PHASE_METRICS) and all(
        isinstance(name, str) and _are_numbers(scores, CLASS_METRICS) for name, scores in values["per_class"].items()
    )


def _are_numbers(values: Any, names: Sequence[str]) -> bool:
    """Whether `values` is a dict of numbers that has at least these names."""
    return isinstance(values, dict) and set(names) <= values.keys() and all(map(_is_number, values.values()))


def _is_number(value: Any) -> bool:
    """Whether it is NaN (an undefined score), or a number that can be computed with and written as JSON."""
    return isinstance(value, int | float) and (abs(value) < LARGEST_NUMBER or value != value)


def _refusal(name: str, what: str) -> CheckpointError:
    return CheckpointError(f"{name}: not a resume point of this network and version, or damaged: {what}")
