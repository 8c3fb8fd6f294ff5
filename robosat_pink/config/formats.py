"""Reads YAML, JSON and TOML files as nested dicts and lists. Unlike in their parsers, a duplicate key is an error.

Called by `loading`.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from robosat_pink.container.regular_file import decode_text, read_regular
from robosat_pink.errors import ConfigError

MOST_BYTES = 10**6
MOST_VALUES = 20_000  # keys, entries and values; an alias counts as all that it refers to
MOST_LEVELS = 50
MOST_DIGITS = 1000  # per number in YAML: the time to read one in base 60 grows with the square of its length
MOST_REASON = 300  # characters of a parser's message, which may quote a long key
TOO_MUCH = f"it holds more than {MOST_VALUES:,} values, counting what aliases stand for"
TOO_DEEP = f"it is nested deeper than {MOST_LEVELS} levels"
# Quotes in a parser's message. Single characters and the parser's own `<…>` are shown; all others may be secrets.
QUOTED = re.compile(r"""('\\?[^'\\]'|'<[a-z ]+>')|(['"]).*\2""", re.DOTALL)
LONG_TOML_KEY = re.compile(
    r"""(?<![\w"'-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){%d}""" % MOST_LEVELS  # noqa: UP031
)


class Refused(ValueError):
    """The reason to refuse a file, which quotes no value."""


def read_tree(path: Path, sections: Iterable[str], content: bytes | None = None) -> dict[str, Any]:
    """The file as nested dicts and lists. Raises ConfigError if it cannot be read in the format of its suffix.

    `content` is that of a file that is not written yet.
    """
    readers: dict[str, Callable[[str], Any]] = {
        ".yml": _read_yaml,
        ".yaml": _read_yaml,
        ".json": _read_json,
        ".toml": _read_toml,
    }
    if path.suffix.lower() not in readers:
        raise ConfigError(f"{path.name}: not an experiment file; accepted suffixes: {', '.join(readers)}")
    try:
        content = read_regular(path, MOST_BYTES) if content is None else content
    except OSError as error:
        where = "" if path.is_absolute() else f"; it was looked for at {path.absolute()}"
        raise ConfigError(f"{path}: cannot be read: {error.strerror}{where}") from error
    try:
        tree = readers[path.suffix.lower()](decode_text(content).replace("\r\n", "\n"))
        _check_extent(tree, _parts_of_tree)
    except Exception as error:
        reason = _reason(error)
        reason = reason if len(reason) <= MOST_REASON else f"{reason[:MOST_REASON]}…"
        # `from None`, because a traceback would quote the file.
        raise ConfigError(f"{path.name}: not readable as {path.suffix[1:].upper()}: {reason}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path.name}: holds no sections; accepted at the top level: {', '.join(sections)}")
    return tree


def _reason(error: Exception) -> str:
    """The kind and position of an error, without the text at that position, which may be a secret."""
    if isinstance(error, RecursionError):
        return TOO_DEEP
    if isinstance(error, Refused):
        return str(error)
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start + 1:,} is not {error.encoding}: {error.reason}; save it as UTF-8"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        return _unquoted(error.problem or error.context or "") + (_at(mark) if mark else "")
    words = " ".join(str(error).replace('in "<unicode string>",', "at").split())
    return _unquoted(words) or type(error).__name__


def _unquoted(words: str) -> str:
    return QUOTED.sub(lambda quoted: quoted[1] or "…", words)


def _check_extent(root: Any, parts: Callable[[Any], Iterable[Any]]) -> None:
    """Raises Refused if a tree is too large or too deep. Shared nodes count each time, so the walk of a cycle ends."""
    count, waiting = 0, [(root, 1)]
    while waiting:
        value, level = waiting.pop()
        count += 1
        if level > MOST_LEVELS:
            raise Refused(TOO_DEEP)
        if count > MOST_VALUES:
            raise Refused(TOO_MUCH)
        waiting += [(part, level + 1) for part in parts(value)]


def _parts_of_tree(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _read_toml(text: str) -> Any:
    if LONG_TOML_KEY.search(text):  # tomllib's time grows with the square of the key's length
        raise Refused(TOO_DEEP)
    return tomllib.loads(text)


def _read_json(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for name, value in pairs:
            if name in tree:
                raise Refused(f"the key {name!r} stands twice")
            tree[name] = value
        return tree

    return json.loads(text, object_pairs_hook=once)


class _YamlLoader(yaml.SafeLoader):
    """YAML as people expect it: 1e-3 is a number. Raises Refused for a duplicate key and for too many values."""

    composed = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.composed += 1
        if self.composed > MOST_VALUES:
            raise Refused(TOO_MUCH)
        return super().compose_node(parent, index)

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        _check_extent(node, _parts_of_node)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, Refused, RecursionError):
            raise
        except Exception as error:  # PyYAML raises IndexError, KeyError and others if a tag does not fit
            kind = node.tag.rpartition(":")[2]
            raise Refused(f"the value is no {kind}{_at(node.start_mark)}; quote it if it is text") from error


def _parts_of_node(node: yaml.Node | None) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    if isinstance(node, yaml.SequenceNode):
        return node.value
    if node and node.tag.endswith((":int", ":float")) and len(node.value) > MOST_DIGITS:
        raise Refused(f"the number{_at(node.start_mark)} is longer than {MOST_DIGITS:,} digits")
    return ()


def _at(mark: yaml.Mark) -> str:
    return f" at line {mark.line + 1}, column {mark.column + 1}"


def _mapping_once(loader: _YamlLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    # Not `<<`, which merges another mapping: keys may override the keys of that mapping.
    key_nodes = [key_node for key_node, _ in node.value if key_node.tag != "tag:yaml.org,2002:merge"]
    seen: set[Hashable] = set()
    for key_node in key_nodes:
        name = loader.construct_object(key_node)
        if isinstance(name, Hashable) and name in seen:
            raise Refused(f"the key {name!r} stands twice{_at(key_node.start_mark)}")
        if isinstance(name, Hashable):
            seen.add(name)
    return loader.construct_mapping(node, deep=True)


_YamlLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_once)
_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_YamlLoader)  # noqa: S506 - the loader is a SafeLoader
