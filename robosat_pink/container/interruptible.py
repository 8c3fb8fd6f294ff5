"""Waits that a signal can interrupt, around native code that ignores signals (obstore, torch.distributed).

Called by `storage` and `distributed`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def interruptibly(work: Callable[[], T]) -> T:
    """The result of `work`, which runs in a daemon thread. A signal ends the wait; the thread ends with the process."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # obstore's panics are not of the type Exception
            outcome.set_exception(error)

    threading.Thread(target=run, name="interruptible", daemon=True).start()
    return outcome.result()
