"""The keys that sections declare: spelling, type, rule, default, and what is accepted in words.

Read by `parsing` and `schema`, and by those who list keys: `sagemaker` and `reference`.
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
    """A key of a section; without a default it must be given."""
    return dataclasses.field(default=default, metadata={"rule": rule})


@dataclass(frozen=True)
class Key:
    """A field of a section, or a whole section inside it."""

    name: str  # as the file spells it
    field_name: str
    annotation: Any
    rule: Rule | None
    default: Any  # MISSING where the key must be given
    section: type | None  # of a key that holds a section or a list of them
    is_list: bool  # whether it holds a list of sections

    @property
    def is_required(self) -> bool:
        return self.default is MISSING

    @property
    def accepts(self) -> str:
        return describe(self.annotation, self.rule)

    @property
    def types(self) -> tuple[Any, ...]:
        """Any of them; None is not listed."""
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
    """The keys of each section inside a section that holds nothing else."""
    return {
        each.name: tuple(inner.name for inner in keys_of(each.section)) for each in keys_of(section) if each.section
    }


def spelling(field_name: str) -> str:
    """How the file spells a field: Python's reserved words carry an underscore here."""
    return field_name.rstrip("_")


def alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def describe(annotation: Any, rule: Rule | None) -> str:
    """What a value of the type must be to satisfy the rule, in words."""
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
