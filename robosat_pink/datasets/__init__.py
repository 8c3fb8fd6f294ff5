"""Turns the tiles of two buckets into batches: lists, pairs and splits them, reads and caches pixels, runs workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robosat_pink.datasets.pairs import TilePairs

__all__ = ["TilePairs"]


def __getattr__(name: str) -> Any:
    """Import `TilePairs` on first use: worker processes import this package, but must not load torch."""
    if name == "TilePairs":
        from robosat_pink.datasets.pairs import TilePairs

        return TilePairs
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
