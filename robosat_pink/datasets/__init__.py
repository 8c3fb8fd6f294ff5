"""From tiles in two buckets to batches: which tiles there are, their pixels, the cache, the worker processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robosat_pink.datasets.pairs import TilePairs

__all__ = ["TilePairs"]


def __getattr__(name: str) -> Any:
    """`TilePairs` on first use: worker processes import this room, and load no torch."""
    if name == "TilePairs":
        from robosat_pink.datasets.pairs import TilePairs

        return TilePairs
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
