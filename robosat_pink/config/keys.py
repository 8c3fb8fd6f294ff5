"""The keys of an experiment file one by one, by dotted name: hyperparameters, to `sagemaker`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from robosat_pink.config.constraints import Rule
from robosat_pink.config.parsing import describe, nested_section, spelling, types_of
from robosat_pink.config.sections import Config


@dataclass(frozen=True)
class Setting:
    """A key that stands once in a file, in no list: by its dotted name a hyperparameter can set it."""

    name: str
    types: tuple[Any, ...]  # any of them; None is not listed
    rule: Rule | None
    accepts: str  # in words
    default: Any  # dataclasses.MISSING where the file must give it


def settings(section: type = Config, prefix: str = "") -> Iterator[Setting]:
    for field in dataclasses.fields(section):
        annotation, rule = types_of(section)[field.name], field.metadata.get("rule")
        inner, is_list = nested_section(annotation)
        name = prefix + spelling(field.name)
        if inner is None:
            alternatives = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
            types = tuple(each for each in alternatives if each is not NoneType)
            yield Setting(name, types, rule, describe(annotation, rule), field.default)
        elif not is_list:
            yield from settings(inner, f"{name}.")
