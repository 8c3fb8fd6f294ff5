"""Hints for keys of other sections and of robosat.pink, better than the nearest spelling. Called by `loading`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robosat_pink.config.problems import Problems

ROBOSAT_KEYS = {
    "dataset": {"path": "tiles are named by image_bucket and mask_bucket, which may be folders"},
    "classes": {"title": "call it name"},
    "channels": {"sub": "choose directories by dataset.imagery_directory_regex"},
}


def point_to_sections(tree: dict[str, Any], sections: Mapping[str, Sequence[str]], problems: Problems) -> None:
    """Remove keys outside their section (`epochs`) and keys of robosat.pink from the tree, with a hint for each."""
    for name in [name for name in tree if name not in sections]:
        homes = [f"{section}.{name}" for section, keys in sections.items() if name in keys]
        if homes:
            problems.add(name, tree.pop(name), f"no such key; did you mean {' or '.join(homes)}?")
    for section, names in ROBOSAT_KEYS.items():
        entries = tree.get(section)
        for number, entry in enumerate(entries) if isinstance(entries, list) else [("", entries)]:
            if not isinstance(entry, dict):
                continue
            for name in names.keys() & entry.keys():
                dotted = ".".join(filter(None, (section, str(number), name)))
                problems.add(dotted, entry.pop(name), f"robosat.pink's key, not known here; {names[name]}")
