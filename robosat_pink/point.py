"""What the content of a resume point must be, before a run goes on from it. Called by `resume`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from robosat_pink import checkpoint, metrics
from robosat_pink.errors import CheckpointError

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
PHASE_NUMBERS = (*metrics.NAMES, "tiles", "empty", "seconds")


def check_point(content: Mapping[str, Any], model: nn.Module, name: str) -> None:
    """CheckpointError if anything in it is not as a run of this network writes it; its name stands before."""
    for key, kinds in KINDS.items():
        value = content.get(key)
        if key not in content or not isinstance(value, kinds) or (isinstance(value, int) and value < 0):
            raise _refusal(name, f"its {key}")
    if not all(_is_row(row) for row in content["history"]) or not _is_phase(content["train"] or ANY_PHASE):
        raise _refusal(name, "its history")
    if content["best_epoch"] or content["best_state_dict"]:
        checkpoint.check_weights(content["best_state_dict"], model.state_dict(), name)


def check_moments(optimizer: torch.optim.Optimizer, name: str) -> None:
    """CheckpointError if a parameter's moments, once they are loaded, have another shape or are not finite."""
    for parameter, state in optimizer.state.items():
        for key in ("exp_avg", "exp_avg_sq"):
            moment = state.get(key)
            if not isinstance(moment, torch.Tensor) or moment.shape != parameter.shape:
                raise _refusal(name, f"the {key} of its optimizer for {tuple(parameter.shape)}")
            if not moment.isfinite().all():
                raise CheckpointError(f"{name}: its optimizer holds NaN or inf; take an earlier one")


ANY_PHASE: dict[str, Any] = dict.fromkeys(PHASE_NUMBERS, 0) | {"per_class": {}}


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and isinstance(row.get("epoch"), int)
        and isinstance(row.get("lr"), int | float)
        and _is_phase(row.get("train"))
        and _is_phase(row.get("val"))
    )


def _is_phase(values: Any) -> bool:
    return (
        isinstance(values, dict)
        and all(isinstance(values.get(key), int | float) for key in PHASE_NUMBERS)
        and isinstance(values.get("per_class"), dict)
    )


def _refusal(name: str, what: str) -> CheckpointError:
    return CheckpointError(f"{name}: not a resume point of this network and version, or damaged: {what}")
