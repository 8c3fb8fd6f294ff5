"""Decides whether training stops or saves after a step, for all ranks alike. Created by `run`, called by `loop`."""

from __future__ import annotations

import time
from typing import NamedTuple

from robosat_pink.container.stop_request import Stopped, StopRequest
from robosat_pink.distributed.process_group import World
from robosat_pink.training.background_writer import BackgroundWriter


class Decision(NamedTuple):
    stop_reason: str | None  # None: continue
    should_save: bool


class LoopControl:
    def __init__(
        self,
        world: World,
        stop: StopRequest,
        writer: BackgroundWriter,
        save_every_s: float | None = None,
        max_seconds: float | None = None,
    ) -> None:
        """`save_every_s` is None without a folder for resume points. `max_seconds` counts from this call."""
        self._world, self._stop, self._writer = world, stop, writer
        self._save_every_s, self._max_seconds = save_every_s, max_seconds
        self._started = self._saved_at = time.monotonic()

    def after_step(self) -> Decision:
        """The decision, agreed between all ranks. Raises the error of the background writer if it has failed."""
        self._writer.raise_failure()
        now = time.monotonic()
        is_time_over = self._max_seconds is not None and now - self._started >= self._max_seconds
        signals, ranks_over, saves = self._world.sum_over_ranks(
            int(self._stop.requested), int(is_time_over), int(self._is_save_due(now))
        )
        if saves:
            self._saved_at = now
        if signals:
            return Decision(Stopped.BY_SIGNAL, bool(saves))
        reason = f"at runtime.max_seconds = {self._max_seconds:g}" if ranks_over else None
        return Decision(reason, bool(saves))

    def _is_save_due(self, now: float) -> bool:
        if self._save_every_s is None or not self._world.is_rank_zero or self._writer.is_busy():
            return False
        return now - self._saved_at >= self._save_every_s

    def interrupt(self) -> None:
        """Called while waiting for a batch. A single process stops now, if asked to; several stop after the step."""
        if self._world.size == 1:
            self._stop.raise_if_requested()
