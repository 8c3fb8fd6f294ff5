"""Stop requests: SIGTERM from the platform, Ctrl-C from a person. Called by `train`, `training` and `distributed`."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Self


class Stopped(BaseException):
    """The run was asked to end early. This is no error, so `except Exception` must not catch it."""

    BY_SIGNAL = "by a signal"  # the platform kills the process soon after; other reasons leave time to finish

    def __init__(self, reason: str = BY_SIGNAL, is_agreed: bool = False) -> None:
        """`is_agreed`: all ranks stop at the same step, so none has to inform the others."""
        super().__init__(reason)
        self.reason, self.is_agreed = reason, is_agreed


class StopRequest:
    """SIGTERM or SIGINT, kept as a flag that the training loop reads after each step.

    Before the loop there is nothing to save: while `is_polled` is false, a signal raises Stopped at once. A second
    signal of the same kind ends the process. A signal of the other kind does not, because torchrun sends SIGTERM to
    processes that have already received SIGINT from a terminal.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.requested = False
        self.is_polled = False
        self._received: set[int] = set()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self.SIGNALS)  # start.sh has blocked them
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in getattr(self, "_previous_handlers", {}).items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if number in self._received:
            os._exit(128 + number)
        self._received.add(number)
        self.requested = True
        if not self.is_polled:
            raise Stopped

    @contextlib.contextmanager
    def postponed(self) -> Iterator[None]:
        """Raise Stopped at the end of the block, not inside: an interrupted import of C++ code aborts the process."""
        self.is_polled = True
        yield
        self.is_polled = False
        self.raise_if_requested()

    def raise_if_requested(self) -> None:
        if self.requested:
            raise Stopped
