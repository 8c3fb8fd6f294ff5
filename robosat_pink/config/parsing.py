"""From a tree of dicts and lists to frozen dataclasses, with every problem collected. Knows nothing of experiments.

`config` declares its sections with `key` and `rules` and calls `build`. Values that came as text (from
hyperparameters or the command line) are read by the type the field declares, never guessed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import sys
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from robosat_pink.config.constraints import MOST_TEXT, Rule, positive_weight
from robosat_pink.config.problems import Problems

Section = TypeVar("Section")

MOST_DIGITS = 9  # of a position in a list
UNUSABLE = re.compile("[\0\ud800-\udfff]")  # in a text: no path may hold the first, no encoding has the others


def key(default: Any = dataclasses.MISSING, rule: Rule | None = None) -> Any:
    """A key of a section; without a default it must be given."""
    return dataclasses.field(default=default, metadata={"rule": rule})


class Text(str):
    """A value given as text, by a source other than the file."""


class Mismatch(Exception):
    """A value that is not of the type or breaks the rule; the argument says what is accepted."""


def plain(value: Any) -> Any:
    """The tree that `build` would make this section of, keys spelt as in the file."""
    if dataclasses.is_dataclass(value):
        return {spelling(field.name): plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [plain(entry) for entry in value] if isinstance(value, tuple) else value


def build(section: type[Section], tree: object, problems: Problems, prefix: str = "") -> Section | None:
    """An instance of `section` from a tree, its reasons for refusal in `problems`.

    A wrong value is replaced by its default, so that what keys must satisfy together can still be checked; None if a
    key without default is missing or wrong.
    """
    fields = {spelling(field.name): field for field in dataclasses.fields(section)}  # type: ignore[arg-type]
    if not isinstance(tree, Mapping):
        problems.add(prefix.rstrip(".") or "the file", tree, f"accepted: a section with the keys {', '.join(fields)}")
        return None
    for name in tree:
        if name not in fields:
            _add_unknown_key(prefix, str(name), tree[name], list(fields), problems)
    values: dict[str, Any] = {}
    types = types_of(section)  # type: ignore[arg-type]
    for name, field in fields.items():
        annotation = types[field.name]
        inner, is_list = nested_section(annotation)
        given = tree.get(name, dataclasses.MISSING)
        given = _from_json(given) if inner is not None else given
        dotted = prefix + name
        if inner is not None and not is_list and (given is None or given is dataclasses.MISSING):
            given = {}
        if given is dataclasses.MISSING:
            if field.default is dataclasses.MISSING:
                problems.add(dotted, given, f"missing; accepted: {describe(annotation, field.metadata.get('rule'))}")
        elif inner is None:
            try:
                values[field.name] = _convert(annotation, field.metadata.get("rule"), given)
            except Mismatch as mismatch:
                rule = field.metadata.get("rule")
                is_hidden = isinstance(given, str) and rule and rule.hides and rule.fault(given)
                shown = dataclasses.MISSING if is_hidden else given
                problems.add(dotted, shown, f"accepted: {mismatch}{_hint(given, annotation, rule, problems)}")
                if field.default is not dataclasses.MISSING:
                    values[field.name] = field.default
        elif is_list:
            entries = given
            if not isinstance(entries, list | tuple) or not entries:
                problems.add(dotted, given, "accepted: a list of sections, at least one")
                continue
            sections = [build(inner, entry, problems, f"{dotted}.{number}.") for number, entry in enumerate(entries)]
            if None not in sections:
                values[field.name] = tuple(sections)
        else:
            built = build(inner, given, problems, f"{dotted}.")
            if built is not None:
                values[field.name] = built
    required = {field.name for field in fields.values() if field.default is dataclasses.MISSING}
    if not required <= set(values):
        return None
    built_section = section(**values)
    if hasattr(built_section, "check"):
        built_section.check(problems, prefix)
    return built_section


def override(tree: dict[str, Any], values: Mapping[str, str], source: str, problems: Problems) -> None:
    """Put text values into a tree by dotted key; numbers in a key are positions in a list."""
    for dotted, text in values.items():
        problems.sources.pop(dotted, None)
        problems.sources[dotted] = source
        *parents, last = dotted.split(".")
        place: Any = tree
        for name in parents:
            if isinstance(place, list):
                place = _opened(place, int(name)) if _is_position(name, place) else None
            elif isinstance(place, dict):
                if place.get(name) is None:
                    place[name] = {}
                place = _opened(place, name)
        if isinstance(place, list) and _is_position(last, place):
            place[int(last)] = Text(text)
        elif isinstance(place, dict):
            place[last] = Text(text)
        else:
            problems.add(dotted, Text(text), "there is nothing at this key to set")


def _opened(place: Any, key: Any) -> Any:
    """What stands at a key, to be changed there also where it was given as text."""
    place[key] = _from_json(place[key])
    return place[key]


def _is_position(name: str, entries: list[Any]) -> bool:
    return name.isdecimal() and len(name) <= MOST_DIGITS and int(name) < len(entries)


def spelling(field_name: str) -> str:
    """How a field is spelt in the file: Python's reserved words carry an underscore here."""
    return field_name.rstrip("_")


@functools.cache
def types_of(section: type) -> dict[str, Any]:
    return get_type_hints(section)


def nested_section(annotation: Any) -> tuple[type | None, bool]:
    """(section, is it a list of them) if the annotation is a dataclass or a tuple of one, else (None, False)."""
    if dataclasses.is_dataclass(annotation):
        return annotation, False  # type: ignore[return-value]
    if get_origin(annotation) is tuple and dataclasses.is_dataclass(get_args(annotation)[0]):
        return get_args(annotation)[0], True
    return None, False


def sections_of(whole: type) -> dict[str, tuple[str, ...]]:
    """The keys of each section of a file that has nothing else, spelt as there."""
    sections = {}
    for field in dataclasses.fields(whole):
        inner, _ = nested_section(types_of(whole)[field.name])
        assert inner is not None
        sections[spelling(field.name)] = tuple(spelling(each.name) for each in dataclasses.fields(inner))
    return sections


def describe(annotation: Any, rule: Rule | None) -> str:
    """What a key accepts, in words."""
    arguments = get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(describe(choice, rule) for choice in arguments if choice is not NoneType)
    if get_origin(annotation) is Literal:
        return " or ".join(str(choice) for choice in arguments)
    if get_origin(annotation) is dict:
        return "a weighted sum of them, such as {name: 0.5, name: 1}"
    if get_origin(annotation) is tuple:
        inner = nested_section(arguments[0])[0]
        return "a list of sections" if inner else f"a list of: {describe(arguments[0], rule)}"
    name = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(annotation, "a section")
    if rule is None or annotation is bool:
        return name
    return rule.texts or rule.accepts if annotation is str else f"{name}, {rule.accepts}"


def _convert(annotation: Any, rule: Rule | None, value: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        for choice in sorted(get_args(annotation), key=lambda choice: choice is str):  # any text is a str: asked last
            try:
                return _convert(choice, rule, value)
            except Mismatch:
                continue
    elif isinstance(value, Text):
        for reading in _readings(value):
            try:
                return _convert(annotation, rule, reading)
            except Mismatch:
                continue
    elif annotation is NoneType:
        if value is None:
            return None
    elif get_origin(annotation) is Literal:
        if isinstance(value, str) and value in get_args(annotation):
            return value
    elif get_origin(annotation) is tuple:
        if isinstance(value, list | tuple) and (value or (rule and rule.may_be_empty)):
            return tuple(_convert(get_args(annotation)[0], rule, entry) for entry in value)
    elif get_origin(annotation) is dict:
        if isinstance(value, Mapping) and value:
            return {_convert(str, rule, name): _convert(float, positive_weight, each) for name, each in value.items()}
    elif _is(annotation, value) and not _unfit(value, rule) and (rule is None or rule.holds(value)):
        return annotation(value)
    raise Mismatch(describe(annotation, rule))


def _is(annotation: type, value: object) -> bool:
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return type(value) is annotation


def _unfit(value: object, rule: Rule | None) -> str:
    """What no text may be, whatever its key."""
    longest = rule.longest if rule else MOST_TEXT
    if isinstance(value, str) and len(value) > longest:
        return f"no text may be longer than {longest:,} characters here; shorten it"
    if isinstance(value, str) and UNUSABLE.search(value):
        return "it holds a null character or a lone surrogate; remove that"
    return ""


def _readings(text: Text) -> list[Any]:
    """What a text value may mean, most literal first. SageMaker's estimators encode values as JSON, numbers that were
    text already as text; others do not.
    """
    plain = str(text)
    readings: list[Any] = [plain]
    try:
        decoded = json.loads(plain)
    except (ValueError, RecursionError):
        pass
    else:
        if isinstance(decoded, str):
            return [decoded, *(_readings(Text(decoded)) if decoded != plain else [])]
        readings.append(decoded)
        if isinstance(decoded, float) and decoded.is_integer():
            readings.append(int(decoded))
    lowered = plain.strip().lower()
    if lowered in ("true", "false", "none"):
        readings.append({"true": True, "false": False, "none": None}[lowered])
    with contextlib.suppress(ValueError):
        readings.append(float(plain))
    return readings


def _from_json(value: Any) -> Any:
    """A section, or a list of them, that was given as text."""
    if isinstance(value, Text):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _add_unknown_key(prefix: str, name: str, value: Any, accepted: list[str], problems: Problems) -> None:
    nearest = problems.nearest(name, accepted)
    hint = f"did you mean {prefix}{nearest}? " if nearest else ""
    shown = dataclasses.MISSING if isinstance(value, Mapping | list) else value
    problems.add(prefix + name, shown, f"no such key; {hint}accepted: {', '.join(accepted)}")


def _hint(value: Any, annotation: Any, rule: Rule | None, problems: Problems) -> str:
    if not isinstance(value, str):
        return ""
    if unfit := _unfit(value, rule):
        return f"; {unfit}"
    if rule and (fault := rule.fault(value)):
        return f"; in this one: {fault}"
    nearest = problems.nearest(value, re.split(" or |: |, ", describe(annotation, rule)))
    return f"; did you mean {nearest}?" if nearest else ""
