"""Writes files in a thread while the model trains, and copies the state to write. Called by `outputs` and `run`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import torch

log = logging.getLogger(__name__)


def snapshot(content: Any) -> Any:
    """A copy on the CPU of nested dicts, lists and tensors, which later training steps do not change."""
    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, Mapping):
        return {name: snapshot(value) for name, value in content.items()}
    return [snapshot(value) for value in content] if isinstance(content, list) else content


class BackgroundWriter:
    """Runs one write at a time in a thread. A failure is raised at the next call.

    Of the writes that wait, only the latest is kept, because it supersedes the others. Leaving the context waits until
    everything is written.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._lock = threading.Lock()  # guards all attributes below
        self._last: Future[None] | None = None
        self._waiting: Callable[[], None] | None = None
        self._is_writing = False
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except Exception:
            if kind is None:
                raise
            log.exception("error: writing in the background failed, too")
        finally:
            self._thread.shutdown()

    def submit(self, write: Callable[[], None]) -> None:
        """Run `write` in the thread; it must use nothing that changes later. Raises the failure of an earlier write."""
        self.raise_failure()
        with self._lock:
            self._waiting = write
            if not self._is_writing:
                self._is_writing = True
                self._last = self._thread.submit(self._write_all)

    def wait(self) -> None:
        """Wait until everything is written. Raises the failure of a write."""
        if self._last:
            self._last.result()
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise the failure of an earlier write, if there is one, without waiting."""
        with self._lock:
            error, self._error = self._error, None
        if error:
            raise error

    def is_busy(self) -> bool:
        with self._lock:
            return self._is_writing

    def _write_all(self) -> None:
        while True:
            with self._lock:
                write, self._waiting = self._waiting, None
                self._is_writing = write is not None
            if write is None:
                return
            try:
                write()
            except BaseException as error:
                with self._lock:
                    self._error, self._waiting, self._is_writing = error, None, False
                return
