"""The keys that sections declare: spelling, type, rule, default, and what is accepted in words.

Called by `sections`, `parsing` and `schema`, and to list keys by `sagemaker` and `reference`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from robosat_pink.config.constraints import Rule


def key(default: Any = MISSING, rule: Rule | None = None) -> Any:
    """A key of a section; a key without a default is required."""
    return dataclasses.field(default=default, metadata={"rule": rule})


@dataclass(frozen=True)
class Key:
    """A field of a section, or a whole section inside it."""

    name: str  # as the file spells it
    field_name: str
    annotation: Any
    rule: Rule | None
    default: Any  # MISSING if the key is required
    section: type | None  # the class of the section, or of the sections in a list
    is_list: bool  # whether the key holds a list of sections

    @property
    def is_required(self) -> bool:
        return self.default is MISSING

    @property
    def accepts(self) -> str:
        return describe(self.annotation, self.rule)

    @property
    def types(self) -> tuple[Any, ...]:
        """The types that are accepted, without None."""
        return tuple(choice for choice in alternatives(self.annotation) if choice is not NoneType)


@functools.cache
def keys_of(section: type) -> tuple[Key, ...]:
    annotations = get_type_hints(section)
    keys = []
    for field in dataclasses.fields(section):
        annotation = annotations[field.name]
        is_list = get_origin(annotation) is tuple and dataclasses.is_dataclass(get_args(annotation)[0])
        inner: Any = get_args(annotation)[0] if is_list else annotation
        keys.append(
            Key(
                spelling(field.name),
                field.name,
                annotation,
                field.metadata.get("rule"),
                field.default,
                section=inner if dataclasses.is_dataclass(inner) else None,  # type: ignore[arg-type]
                is_list=is_list,
            )
        )
    return tuple(keys)


def leaf_keys(section: type, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Every key that holds no section, with its dotted name: `model.lr`, and `classes[].name` in a list."""
    for each in keys_of(section):
        name = prefix + each.name
        if each.section is None:
            yield name, each
        else:
            yield from leaf_keys(each.section, f"{name}{'[]' if each.is_list else ''}.")


def sections_of(section: type) -> dict[str, tuple[str, ...]]:
    """The names of the sections inside a section, each with the names of its keys."""
    return {
        each.name: tuple(inner.name for inner in keys_of(each.section)) for each in keys_of(section) if each.section
    }


def spelling(field_name: str) -> str:
    """The name of a field in the file. A field whose name Python reserves has an underscore at its end."""
    return field_name.rstrip("_")


def alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def describe(annotation: Any, rule: Rule | None) -> str:
    """The values of a type that satisfy a rule, in words."""
    choices = [choice for choice in alternatives(annotation) if choice is not NoneType]
    if len(choices) > 1:
        return " or ".join(describe(choice, rule) for choice in choices)
    kind, arguments = get_origin(choices[0]) or choices[0], get_args(choices[0])
    if kind is Literal:
        return " or ".join(arguments)
    if kind is dict:
        return "a weighted sum of them, such as {name: 0.5, name: 1}"
    if kind is tuple and dataclasses.is_dataclass(arguments[0]):
        return "a list of sections"
    if kind is tuple:
        return f"a list of: {describe(arguments[0], rule)}"
    name = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(kind, "a section")
    if rule is None or kind is bool:
        return name
    return rule.texts or rule.accepts if kind is str else f"{name}, {rule.accepts}"
