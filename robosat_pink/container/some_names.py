"""Names in a message: the first few, and how many more there are. Called by every room that lists names."""

from __future__ import annotations

from collections.abc import Sequence


def some_names(names: Sequence[str], most: int = 5, none: str = "none", separator: str = ", ") -> str:
    """`a, b, c and 4 more`; `none` if there are no names."""
    shown = separator.join(names[:most]) or none
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
