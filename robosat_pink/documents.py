"""YAML, JSON and TOML files as nested dicts and lists, stricter than their parsers: a key given twice is an error.

Called by `config`, which knows what the keys mean.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from robosat_pink.errors import ConfigError


def read_tree(path: Path, sections: Iterable[str]) -> dict[str, Any]:
    """The file as nested dicts and lists; ConfigError if it is not readable as what its suffix says."""
    readers: dict[str, Callable[[str], Any]] = {
        ".yml": _read_yaml,
        ".yaml": _read_yaml,
        ".json": _read_json,
        ".toml": tomllib.loads,
    }
    if path.suffix.lower() not in readers:
        raise ConfigError(f"{path.name}: not an experiment file; accepted suffixes: {', '.join(readers)}")
    try:
        tree = readers[path.suffix.lower()](path.read_text(encoding="utf-8"))
    except OSError as error:
        where = "" if path.is_absolute() else f"; it was looked for at {path.absolute()}"
        raise ConfigError(f"{path}: cannot be read: {error.strerror}{where}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>",', "at").split())
        raise ConfigError(f"{path.name}: not readable as {path.suffix[1:].upper()}: {reason}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path.name}: holds no sections; accepted at the top level: {', '.join(sections)}")
    return tree


def _read_json(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"the key {repeated[0]!r} stands twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


class _YamlLoader(yaml.SafeLoader):
    """YAML as people expect it: 1e-3 is a number, and a key given twice is an error."""


def _mapping_once(loader: _YamlLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    # `<<` merges another mapping, whose keys may well be overridden.
    key_nodes = [key_node for key_node, _ in node.value if key_node.tag != "tag:yaml.org,2002:merge"]
    names = [loader.construct_object(key_node) for key_node in key_nodes]
    for name, key_node in reversed(list(zip(names, key_nodes, strict=True))):
        if names.count(name) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} stands twice", key_node.start_mark)
    return loader.construct_mapping(node, deep=True)


_YamlLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_once)
_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_YamlLoader)  # noqa: S506 - the loader is a SafeLoader
