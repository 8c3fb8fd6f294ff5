"""Retry with backoff: repeats a request that failed for a transient reason. Called by `location`."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from typing import TypeVar

from obstore import exceptions

from robosat_pink.container.quantities import duration

T = TypeVar("T")

RETRY_S = 45.0  # no attempt begins later than this after the first began
MIN_PAUSE_S, MAX_PAUSE_S = 0.1, 5.0


def retry_with_backoff(
    work: Callable[[], T],
    is_retried: Callable[[Exception], bool],
    explain: Callable[[Exception, str], Exception],
) -> tuple[T, int]:
    """The result of `work`, and the number of retries. Pauses double up to MAX_PAUSE_S, with jitter.

    Raises the exception that `explain` returns for the last error and a note on the attempts. The note is empty after a
    single attempt.
    """
    started = time.monotonic()
    for retries in itertools.count():
        try:
            return work(), retries
        except (exceptions.BaseError, OSError) as caught:
            error = caught
        pause_s = min(MIN_PAUSE_S * 2**retries, MAX_PAUSE_S) * random.uniform(0.1, 1.0)  # noqa: S311
        elapsed_s = time.monotonic() - started
        if not is_retried(error) or elapsed_s + pause_s > RETRY_S:
            break
        time.sleep(pause_s)
    raise explain(error, f" (tried {retries + 1} times in {duration(elapsed_s)})" if retries else "") from error
