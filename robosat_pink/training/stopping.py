"""When the loop shall stop and when save, decided by all processes together. Made by `train`, asked by `loop`."""

from __future__ import annotations

import time
from typing import NamedTuple

from robosat_pink.container.stop_request import Stopped, StopRequest
from robosat_pink.distributed.process_group import World
from robosat_pink.training.background_writer import Writer


class Due(NamedTuple):
    stop: str | None  # why
    save: bool


class Watch:
    def __init__(
        self,
        world: World,
        stop: StopRequest,
        writer: Writer,
        save_every_s: float | None = None,
        max_seconds: float | None = None,
    ) -> None:
        """`save_every_s` is None where there is no folder for resume points; the time budget counts from here."""
        self._world, self._stop, self._writer = world, stop, writer
        self._save_every_s, self._max_seconds = save_every_s, max_seconds
        self._started = self._saved = time.monotonic()

    def __call__(self) -> Due:
        """Asked after each step. Raises what went wrong in the background."""
        self._writer.check()
        now = time.monotonic()
        is_asked = self._stop.requested
        is_over = self._max_seconds is not None and now - self._started >= self._max_seconds
        is_due = self._save_every_s is not None and now - self._saved >= self._save_every_s
        is_due = is_due and self._world.is_rank_zero and not self._writer.is_busy()
        asked, over, saves = self._world.sum_over_ranks(int(is_asked), int(is_over), int(is_due))
        if saves:
            self._saved = now
        reason = f"because runtime.max_seconds = {self._max_seconds or 0:g} are over" if over else None
        return Due(Stopped.BY_SIGNAL if asked else reason, bool(saves))

    def interrupt(self) -> None:
        """Called during a wait for tiles. Alone, a run ends there; several end together, after the step."""
        if self._world.size == 1:
            self._stop.raise_if_requested()
