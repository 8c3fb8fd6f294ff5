"""Waiting that a signal ends, for code that looks at none: a store's client, torch. Called by `storage` and others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def interruptibly(work: Callable[[], T]) -> T:
    """What the work gives, which a thread does. Who is stopped leaves it there: the process ends without it."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # a panic of obstore's, too, which is no Exception
            outcome.set_exception(error)

    threading.Thread(target=run, name="waited for", daemon=True).start()
    return outcome.result()
