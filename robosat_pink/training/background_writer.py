"""Writing beside the network: copies of what is to be written, and a thread that writes it. Called by `results`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import torch

log = logging.getLogger(__name__)


def snapshot(content: Any) -> Any:
    """A copy of nested dicts and lists on the CPU, which what goes on meanwhile does not change."""
    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, Mapping):
        return {name: snapshot(value) for name, value in content.items()}
    return [snapshot(value) for value in content] if isinstance(content, list) else content


class Writer:
    """Writes in the background, one thing at a time, while the network computes. What fails is raised at the next call.

    What waits for its turn gives way to what comes later: the latest is all that counts. As a context it waits for the
    last one at its end.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._lock = threading.Lock()  # of all that follows
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
            log.exception("error: besides, writing failed")
        finally:
            self._thread.shutdown()

    def begin(self, write: Callable[[], None]) -> None:
        """`write` must use nothing that may change."""
        self.check()
        with self._lock:
            self._waiting = write
            if not self._is_writing:
                self._is_writing = True
                self._last = self._thread.submit(self._write_all)

    def wait(self) -> None:
        """Until all is written. Raises what went wrong."""
        if self._last:
            self._last.result()
        self.check()

    def check(self) -> None:
        """Raise what went wrong so far, without waiting."""
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
