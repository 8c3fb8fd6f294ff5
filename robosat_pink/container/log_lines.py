"""Which lines a person at a terminal sees, and which only a log has. Called by every room that logs at the start.

A log is what a failed job may leave, and what scripts read: it has everything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Literal

Place = Literal["log", "terminal"]

# For a line's `extra`; lines without it are for both.
IN_LOG: Mapping[str, Place] = {"place": "log"}
ON_TERMINAL: Mapping[str, Place] = {"place": "terminal"}


def shown_in(place: Place) -> Callable[[logging.LogRecord], bool]:
    """The filter of a handler that writes there."""
    return lambda record: getattr(record, "place", place) == place
