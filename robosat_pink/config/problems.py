"""The problems of an experiment, collected to be reported together.

Filled by `parsing`, `overrides`, `hints`, `sections` and `initial_checkpoint`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Sequence

from robosat_pink.container.redaction import SECRET_NAME, redacted_tree
from robosat_pink.errors import ConfigError

MOST_SHOWN = 100  # characters of a value or a key in a message
MOST_PROBLEMS = 40  # reported one by one; the others are counted


class Problems:
    """The problems, one line each: where, key, value, what is accepted and the way out."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sources: dict[str, str] = {}  # by key, if another source than the file has set it; the latest is last
        self.lines: list[str] = []
        self._untold = 0

    def add(self, dotted: str, value: object, advice: str) -> None:
        if len(self.lines) == MOST_PROBLEMS:
            self._untold += 1
            return
        source = self._source_of(dotted)
        shown = "***" if SECRET_NAME.search(dotted) else _shown(value)
        shown = "" if value is dataclasses.MISSING else f" = {shown}"
        self.lines.append(f"{source}: {_cut(dotted)}{shown}: {advice}")

    def _source_of(self, dotted: str) -> str:
        for key, source in reversed(self.sources.items()):
            if f"{dotted}.".startswith(f"{key}.") or f"{key}.".startswith(f"{dotted}."):
                return source
        return self.source

    def nearest(self, word: str, names: Sequence[str]) -> str:
        """The most similar name; empty if none is similar, or if further problems are only counted."""
        if len(self.lines) == MOST_PROBLEMS:
            return ""
        return next(iter(difflib.get_close_matches(word[:MOST_SHOWN], names, n=1)), "")

    def raise_if_any(self) -> None:
        if self.lines:
            more = [f"and {self._untold:,} more"] if self._untold else []
            raise ConfigError("\n".join(self.lines + more))


def _shown(value: object) -> str:
    try:
        return _cut(json.dumps(redacted_tree(value), default=str, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):  # YAML has keys that JSON lacks; values may be nested too deeply
        pass
    try:
        return _cut(repr(redacted_tree(value)))
    except (ValueError, RecursionError):  # Python refuses to print numbers of thousands of digits, too
        return f"({type(value).__name__})"


def _cut(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}… ({len(text):,} characters)"
