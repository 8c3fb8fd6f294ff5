"""Hints for keys outside their section and for keys of the older program robosat.pink. Called by `loading`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robosat_pink.config.problems import Problems

OLDER_KEYS = {
    "dataset": {"path": "give image_bucket and mask_bucket, which may be folders"},
    "classes": {"title": "use name"},
    "channels": {"sub": "choose directories by dataset.imagery_directory_regex"},
}


def take_out_misplaced(tree: dict[str, Any], sections: Mapping[str, Sequence[str]], problems: Problems) -> None:
    """Remove misplaced keys, such as `epochs`, and keys of robosat.pink from the tree, with a hint for each."""
    for name in [name for name in tree if name not in sections]:
        homes = [f"{section}.{name}" for section, keys in sections.items() if name in keys]
        if homes:
            problems.add(name, tree.pop(name), f"no such key; did you mean {' or '.join(homes)}?")
    for section, hints in OLDER_KEYS.items():
        entries = tree.get(section)
        for number, entry in enumerate(entries) if isinstance(entries, list) else [("", entries)]:
            if not isinstance(entry, dict):
                continue
            for name in hints.keys() & entry.keys():
                dotted = ".".join(filter(None, (section, str(number), name)))
                problems.add(dotted, entry.pop(name), f"a key of robosat.pink, not of robosat_pink; {hints[name]}")
