"""The checkpoint a run starts from: a resume point, or one that the experiment names. Called by `run` and `check`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from robosat_pink import checkpoint
from robosat_pink.checkpoint import ResumePoints
from robosat_pink.config import Config
from robosat_pink.config.problems import Problems
from robosat_pink.errors import CheckpointError

Upsampling = Literal["plain", "transposed"] | int


@dataclass(frozen=True)
class InitialCheckpoint:
    name: str
    content: Mapping[str, Any]
    is_resumed: bool  # whether optimizer and epoch are restored, too, or only the weights

    @property
    def is_resume_point(self) -> bool:
        """Whether the whole state is restored: a resume point has a history, other checkpoints do not."""
        return self.is_resumed and "history" in self.content


def find(config: Config, points: ResumePoints | None, store: Mapping[str, Any]) -> InitialCheckpoint | None:
    """The newest resume point of this run; without one, the checkpoint that checkpoint.resume or checkpoint.path names.

    `store` has the options to read the latter. Raises DataError if it cannot be read, CheckpointError if it is damaged
    or contains more than data.
    """
    point = points.newest() if points else None
    if point:
        return InitialCheckpoint(str(point.path), point.content, is_resumed=True)
    path = config.checkpoint.resume or config.checkpoint.path
    if not path:
        return None
    return InitialCheckpoint(path, checkpoint.read(path, **store), is_resumed=config.checkpoint.resume is not None)


def saved_upsampling(initial: InitialCheckpoint, default: Upsampling) -> Upsampling:
    """The form of upsampling of the run that wrote a resume point. Raises CheckpointError for an impossible form."""
    value: Any = initial.content.get("upsampling", default)
    is_name = isinstance(value, str) and value in ("plain", "transposed")
    if is_name or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        form: Upsampling = value
        return form
    raise damaged(initial.name, "upsampling", value, "plain, transposed or a whole number from 1")


def damaged(name: str, key: str, value: Any, accepted: str) -> CheckpointError:
    problems = Problems(f"{name}: damaged")
    problems.add(key, value, f"accepted: {accepted}; take an earlier checkpoint")
    return CheckpointError(problems.lines[0])
