"""Checks that a resume point belongs to this run's experiment. Called by `resume`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from robosat_pink.config import Config, to_tree
from robosat_pink.config.parsing import build
from robosat_pink.config.problems import Problems
from robosat_pink.container.redaction import redacted_tree
from robosat_pink.errors import CheckpointError

log = logging.getLogger(__name__)

# Keys that may change between stop and resume; among `runtime.`, all except the seed.
FREE_TO_CHANGE = (
    "model.epochs",
    "model.patience",
    "model.symmetries",
    "runtime.",
    "checkpoint.resume",
    "checkpoint.every_",
    "checkpoint.if_",
    "dataset.cache.",
    "dataset.aws_profile",
    "dataset.verify_md5",
    "dataset.if_changed",
)


def check_same_experiment(name: str, metadata: Mapping[str, Any], config: Config) -> None:
    """Raises CheckpointError with the keys that differ; only warns with checkpoint.if_different = continue."""
    if not metadata:
        return  # a checkpoint of another program
    if not isinstance(metadata.get("config"), dict):
        raise CheckpointError(f"{name}: damaged: its metadata do not say of which experiment it is")
    saved, current = _flat(_with_current_keys(metadata["config"])), _flat(to_tree(config))
    saved_shown, current_shown = (_flat(redacted_tree(tree)) for tree in (saved, current))
    differing = [
        f"{key} = {json.dumps(current_shown.get(key))}, there {json.dumps(saved_shown.get(key))}"
        for key in sorted(saved.keys() | current.keys())
        if not agrees(saved.get(key), current.get(key)) and not _is_free_to_change(key)
    ]
    if not differing:
        return
    if config.checkpoint.if_different == "continue":
        log.warning("warning: continuing %s with another experiment: %s", name, "; ".join(differing))
        return
    raise CheckpointError(
        f"{name} is of another experiment: {'; '.join(differing)}. Restore these keys to continue it, give this "
        "run an empty checkpoints folder, or set checkpoint.if_different = continue"
    )


def agrees(saved: Any, current: Any) -> bool:
    """Whether two values are equal. In the saved value, *** matches any text, because secrets were redacted."""
    if not isinstance(saved, str) or "***" not in saved:
        return bool(saved == current)
    if saved == "***":
        return True
    first, *middle, last = saved.split("***")
    if not isinstance(current, str) or not current.startswith(first) or not current[len(first) :].endswith(last):
        return False
    position, end = len(first), len(current) - len(last)
    for piece in middle:
        position = current.find(piece, position, end)
        if position < 0:
            return False
        position += len(piece)
    return True


def _is_free_to_change(key: str) -> bool:
    return key != "runtime.seed" and key.startswith(FREE_TO_CHANGE)


def _with_current_keys(tree: Any) -> Any:
    """An earlier version's experiment, completed by the defaults of newer keys."""
    config = build(Config, tree, Problems("an earlier run's experiment"))
    return tree if config is None else to_tree(config)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a tree to a dict from dotted keys to values."""
    entries = enumerate(tree) if isinstance(tree, list) else tree.items() if isinstance(tree, dict) else None
    if entries is None:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for name, value in entries:
        flat |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return flat
