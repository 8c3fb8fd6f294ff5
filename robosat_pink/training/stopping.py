"""Decides whether a run stops or saves after a step, for all ranks. Created by `run`, called by `loop`."""

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
        self.world, self._stop, self._writer = world, stop, writer
        self._save_every_s, self._max_seconds = save_every_s, max_seconds
        self._started = self._saved_at = time.monotonic()

    def after_step(self) -> Decision:
        """The decision, agreed between all ranks. Raises the error of the background writer if it has failed."""
        self._writer.raise_failure()
        now = time.monotonic()
        signals, ranks_over, saves = self.world.sum_over_ranks(
            int(self._stop.requested), int(self._is_time_over(now)), int(self._is_save_due(now))
        )
        if saves:
            self._saved_at = now
        if signals:
            return Decision(Stopped.BY_SIGNAL, bool(saves))
        return Decision(self._time_over if ranks_over else None, bool(saves))

    def raise_if_time_is_over(self) -> None:
        """Raises Stopped at the limit of time. For work of one rank after the last step."""
        if self._is_time_over(time.monotonic()):
            raise Stopped(self._time_over)

    @property
    def _time_over(self) -> str:
        return f"at runtime.max_seconds = {self._max_seconds:g}"

    def _is_time_over(self, now: float) -> bool:
        return self._max_seconds is not None and now - self._started >= self._max_seconds

    def _is_save_due(self, now: float) -> bool:
        if self._save_every_s is None or not self.world.is_rank_zero or self._writer.is_busy():
            return False
        return now - self._saved_at >= self._save_every_s

    def interrupt(self) -> None:
        """Called while waiting for a batch. A single process stops now, if asked to; several stop after the step."""
        if self.world.size == 1:
            self._stop.raise_if_requested()
