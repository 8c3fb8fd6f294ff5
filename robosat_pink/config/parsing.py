"""Builds frozen dataclasses from a tree of dicts and lists, and collects every problem. Called by `loading`.

`sections` declares the dataclasses. `trained` and `experiment_diff` call it for trained models and resume points.
"""

# pydantic 2.14 was tried as a replacement on 27 November 2026, with all sections ported. Sections, parsing, constraints
# and problems had 769 lines instead of 770: pydantic returns nothing for a section with a wrong value, so rules across
# keys needed a second validation, and reading text by type, sources, hints and secrets still needed our own code. To
# report a misspelt key took 0.58 s of processor time instead of 0.24 s, and bounds in annotations fail mypy.

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

from robosat_pink.config.constraints import MOST_TEXT, Rule, positive_weight
from robosat_pink.config.keys import Key, alternatives, keys_of, spelling
from robosat_pink.config.overrides import from_json, readings
from robosat_pink.config.problems import Problems

Section = TypeVar("Section")

UNUSABLE = re.compile("[\0\ud800-\udfff]")  # no path may contain a null character, no encoding has surrogates


def plain(value: Any) -> Any:
    """The tree from which `build` makes this section, with keys spelt as in the file."""
    if dataclasses.is_dataclass(value):
        return {spelling(field.name): plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [plain(entry) for entry in value] if isinstance(value, tuple) else value


def build(section: type[Section], tree: object, problems: Problems, prefix: str = "") -> Section | None:
    """An instance of `section` from a tree, whose faults are added to `problems`.

    A wrong value is replaced by its default, so that rules across keys can still be checked. Returns None if a required
    key is missing or wrong.
    """
    keys = keys_of(section)  # type: ignore[arg-type]
    names = [key.name for key in keys]
    if not isinstance(tree, Mapping):
        problems.add(prefix.rstrip(".") or "the file", tree, f"accepted: a section with the keys {', '.join(names)}")
        return None
    for name in tree:
        if name not in names:
            _add_unknown_key(prefix, str(name), tree[name], names, problems)
    values = {key.field_name: _value(key, tree.get(key.name, MISSING), problems, prefix + key.name) for key in keys}
    values = {field_name: value for field_name, value in values.items() if value is not MISSING}
    if any(key.is_required and key.field_name not in values for key in keys):
        return None
    built = section(**values)
    if hasattr(built, "check"):
        built.check(problems, prefix)
    return built


def _value(key: Key, given: Any, problems: Problems, dotted: str) -> Any:
    """The value of a key; MISSING if it is absent or wrong."""
    if key.section is not None and not key.is_list:
        tree = {} if given is MISSING or given is None else from_json(given)
        section = build(key.section, tree, problems, f"{dotted}.")
        return MISSING if section is None else section
    if given is MISSING:
        if key.is_required:
            problems.add(dotted, MISSING, f"missing; accepted: {key.accepts}")
        return MISSING
    if key.section is not None:
        return _sections(key.section, from_json(given), problems, dotted)
    value = convert(key.annotation, key.rule, given)
    if value is MISSING:
        problems.add(dotted, MISSING if _is_secret(given, key.rule) else given, _advice(given, key, problems))
    return value


def _sections(section: type, entries: Any, problems: Problems, dotted: str) -> Any:
    if not isinstance(entries, list | tuple) or not entries:
        problems.add(dotted, entries, "accepted: a list of sections, at least one")
        return MISSING
    built = [build(section, entry, problems, f"{dotted}.{number}.") for number, entry in enumerate(entries)]
    return MISSING if None in built else tuple(built)


def convert(annotation: Any, rule: Rule | None, value: Any) -> Any:
    """The value in the type of the annotation; MISSING if it is not of that type or does not satisfy the rule."""
    # str comes last, because it accepts any text.
    for choice in sorted(alternatives(annotation), key=lambda choice: choice is str):
        for reading in readings(value):
            converted = _converted(choice, rule, reading)
            if converted is not MISSING:
                return converted
    return MISSING


def _converted(kind: Any, rule: Rule | None, value: Any) -> Any:
    """Convert one reading of a value to a type that is no union; MISSING if it does not fit."""
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin is NoneType:
        return None if value is None else MISSING
    if origin is Literal:
        return value if isinstance(value, str) and value in arguments else MISSING
    if origin is tuple:
        return _entries(arguments[0], rule, value)
    if origin is dict:
        return _weights_by_name(rule, value)
    is_fit = _is(kind, value) and not _unfit(value, rule) and (rule is None or rule.holds(value))
    return kind(value) if is_fit else MISSING


def _entries(kind: Any, rule: Rule | None, value: Any) -> Any:
    if not isinstance(value, list | tuple) or not (value or (rule and rule.may_be_empty)):
        return MISSING
    entries = tuple(convert(kind, rule, entry) for entry in value)
    return MISSING if MISSING in entries else entries


def _weights_by_name(rule: Rule | None, value: Any) -> Any:
    if not isinstance(value, Mapping) or not value:
        return MISSING
    weights = {convert(str, rule, name): convert(float, positive_weight, weight) for name, weight in value.items()}
    return MISSING if MISSING in (*weights, *weights.values()) else weights


def _is(kind: type, value: object) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return type(value) is kind


def _unfit(value: object, rule: Rule | None) -> str:
    """The reason to refuse a text for its length or characters; empty if there is none."""
    longest = rule.longest if rule else MOST_TEXT
    if isinstance(value, str) and len(value) > longest:
        return f"no text may be longer than {longest:,} characters here; shorten it"
    if isinstance(value, str) and UNUSABLE.search(value):
        return "it holds a null character or a lone surrogate; remove that"
    return ""


def _is_secret(value: object, rule: Rule | None) -> bool:
    return isinstance(value, str) and rule is not None and rule.hides and bool(rule.fault(value))


def _add_unknown_key(prefix: str, name: str, value: Any, accepted: Sequence[str], problems: Problems) -> None:
    nearest = problems.nearest(name, accepted)
    hint = f"did you mean {prefix}{nearest}? " if nearest else ""
    shown = MISSING if isinstance(value, Mapping | list) else value
    problems.add(prefix + name, shown, f"no such key; {hint}accepted: {', '.join(accepted)}")


def _advice(value: Any, key: Key, problems: Problems) -> str:
    accepted = f"accepted: {key.accepts}"
    if not isinstance(value, str):
        return accepted
    if unfit := _unfit(value, key.rule):
        return f"{accepted}; {unfit}"
    if key.rule and (fault := key.rule.fault(value)):
        return f"{accepted}; in this one: {fault}"
    nearest = problems.nearest(value, re.split(" or |: |, ", key.accepts))
    return f"{accepted}; did you mean {nearest}?" if nearest else accepted
