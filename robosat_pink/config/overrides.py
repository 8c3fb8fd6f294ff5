"""Puts values given as text, by hyperparameters or the command line, into the tree. Called by `loading` and `parsing`.

`readings` lists what such a text may mean; `parsing` takes the first meaning that the key accepts.
"""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Mapping
from typing import Any

from robosat_pink.config.problems import Problems

MOST_DIGITS = 9  # per position in a list


class Text(str):
    """A value that was given as text, by another source than the file."""


def override(tree: dict[str, Any], values: Mapping[str, str], source: str, problems: Problems) -> None:
    """Put text values into a tree by dotted key; numbers in a key are positions in a list."""
    for dotted, text in values.items():
        problems.sources.pop(dotted, None)
        problems.sources[dotted] = source
        *parents, last = dotted.split(".")
        parent: Any = tree
        for name in parents:
            parent = _child(parent, name)
        if isinstance(parent, list) and _is_position(last, parent):
            parent[int(last)] = Text(text)
        elif isinstance(parent, dict):
            parent[last] = Text(text)
        else:
            problems.add(dotted, Text(text), "there is nothing at this key to set")


def _child(parent: Any, name: str) -> Any:
    """The dict or list at a key: created if it is missing, parsed if it was given as text."""
    key: Any = name
    if isinstance(parent, list):
        if not _is_position(name, parent):
            return None
        key = int(name)
    elif not isinstance(parent, dict):
        return None
    elif parent.get(name) is None:
        parent[name] = {}
    parent[key] = from_json(parent[key])
    return parent[key]


def _is_position(name: str, entries: list[Any]) -> bool:
    return name.isdecimal() and len(name) <= MOST_DIGITS and int(name) < len(entries)


def from_json(value: Any) -> Any:
    """Parse a section, or a list of sections, that was given as text; return anything else unchanged."""
    if isinstance(value, Text):
        with contextlib.suppress(ValueError, RecursionError):
            return _decoded(value)
    return value


def readings(value: Any) -> list[Any]:
    """Possible meanings of a value, most literal first. A value that is no Text means only itself.

    SageMaker's estimators encode every value as JSON, even one that is text already; its ModelTrainer encodes what is
    no text; its tuners write str(value).
    """
    if not isinstance(value, Text):
        return [value]
    plain = str(value)
    meanings: list[Any] = [plain]
    try:
        decoded = _decoded(plain)
    except (ValueError, RecursionError):
        pass
    else:
        if isinstance(decoded, str):
            return [decoded, *(readings(Text(decoded)) if decoded != plain else [])]
        meanings.append(decoded)
        if isinstance(decoded, float) and decoded.is_integer():
            meanings.append(int(decoded))
    lowered = plain.strip().lower()
    if lowered in ("true", "false", "none"):
        meanings.append({"true": True, "false": False, "none": None}[lowered])
    with contextlib.suppress(ValueError):
        meanings.append(float(plain))
    return meanings


def _decoded(text: str) -> Any:
    """The value of JSON text, or of a list or dict as Python writes it. Raises ValueError or RecursionError."""
    try:
        return json.loads(text)
    except ValueError:
        if not text.lstrip().startswith(("[", "{", "(")):
            raise
    try:
        decoded = ast.literal_eval(text)
        if isinstance(decoded, list | tuple | dict):
            return json.loads(json.dumps(decoded))  # as JSON has it: a tuple is a list
    except (SyntaxError, TypeError, MemoryError) as error:
        raise ValueError(str(error)) from error
    raise ValueError(f"{text} is no list and no section")  # but such as ("x"), which is "x"
