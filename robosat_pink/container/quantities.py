"""Durations, times of day, sizes and counts in sentences for people: one format each. Called by every room that logs.

What programs read, the `phase=` lines and JSON, has plain numbers.
"""

from __future__ import annotations

import time

UNITS = ("bytes", "kB", "MB", "GB", "TB")  # of 1000 each, as in dataset.cache.max_gb
DAY_S = 86400


def duration(seconds: float) -> str:
    """`12.3 s`, `5 min 07 s` or `3 h 25 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def clock(seconds: float) -> str:
    """The time of day, UTC, `seconds` from now; with the date if that is not today."""
    now, then = time.time(), time.time() + seconds
    is_today = time.gmtime(now).tm_yday == time.gmtime(then).tm_yday and seconds < DAY_S
    return time.strftime("%H:%M UTC" if is_today else "%Y-%m-%d %H:%M UTC", time.gmtime(then))


def size(num_bytes: float) -> str:
    """`512 bytes`, `67.1 MB` or `25.3 GB`."""
    value, unit = num_bytes, 0
    while value >= 999.95 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {UNITS[unit]}" if unit else f"{value:.0f} bytes"


def count(number: int, noun: str = "", plural: str = "") -> str:
    """`1,234`, or with a noun `1 epoch`, `1,234 epochs`; `plural` is for nouns that take more than an s."""
    if not noun:
        return f"{number:,}"
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
