"""The JSON Schema of experiment files, by which editors complete and check them. Called by `reference`.

It contains what sections and registries declare. Only `load_config` checks rules across keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from robosat_pink import models
from robosat_pink.config.constraints import Rule, positive_weight
from robosat_pink.config.keys import Key, alternatives, keys_of
from robosat_pink.config.model import ModelConfig
from robosat_pink.config.sections import Config

Schema = dict[str, Any]


def json_schema(descriptions: Mapping[str, str]) -> Schema:
    """The schema, in draft 2020-12. `descriptions` are by dotted name, as `leaf_keys` spells it."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Experiment file of robosat_pink",
        **_section(Config, "", descriptions),
    }


def _section(section: type, prefix: str, descriptions: Mapping[str, str]) -> Schema:
    keys = keys_of(section)
    return {
        "description": (section.__doc__ or "").partition("\n")[0],
        "type": "object",
        "properties": {key.name: _property(key, prefix + key.name, descriptions) for key in keys},
        "required": [key.name for key in keys if key.is_required],
        "additionalProperties": False,
        **({"allOf": _networks()} if section is ModelConfig else {}),
    }


def _property(key: Key, dotted: str, descriptions: Mapping[str, str]) -> Schema:
    if key.section is not None and key.is_list:
        return {"type": "array", "minItems": 1, "items": _section(key.section, f"{dotted}[].", descriptions)}
    if key.section is not None:
        section = _section(key.section, f"{dotted}.", descriptions)
        return section if key.is_required else section | {"type": ["object", "null"]}
    default = {} if key.is_required else {"default": key.default}
    return {"description": descriptions[dotted], **_value(key.annotation, key.rule), **default}


def _value(annotation: Any, rule: Rule | None) -> Schema:
    choices = [_choice(choice, rule) for choice in alternatives(annotation)]
    return choices[0] if len(choices) == 1 else {"anyOf": choices}


def _choice(kind: Any, rule: Rule | None) -> Schema:
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin is NoneType:
        return {"type": "null"}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is bool:
        return {"type": "boolean"}
    if origin is tuple:
        shortest = 0 if rule and rule.may_be_empty else 1
        return {"type": "array", "minItems": shortest, "items": _value(arguments[0], rule)}
    if origin is dict:
        names, weight = _choice(str, rule), _choice(float, positive_weight)
        return {"type": "object", "minProperties": 1, "propertyNames": names, "additionalProperties": weight}
    if origin is str:
        return {"type": "string", **_limits_of_text(rule or Rule("", bool))}
    return {"type": "integer" if origin is int else "number", **_bounds(rule or Rule("", bool))}


def _limits_of_text(rule: Rule) -> Schema:
    if rule.names:
        return {"enum": list(rule.names)}
    limits = {"minLength": rule.shortest, "maxLength": rule.longest, "pattern": rule.pattern}
    return {name: limit for name, limit in limits.items() if limit}


def _bounds(rule: Rule) -> Schema:
    low = "exclusiveMinimum" if rule.low_open else "minimum"
    high = "exclusiveMaximum" if rule.high_open else "maximum"
    return {name: bound for name, bound in ((low, rule.low), (high, rule.high)) if math.isfinite(bound)}


def _networks() -> list[Schema]:
    """The rules of each network for the other keys of `model`."""
    rules = []
    for name, entry in models.MODELS.items():
        allowed: Schema = {
            "encoder": {"enum": [*entry.encoders, None]},
            "tile_size": {"multipleOf": entry.size_multiple},
        }
        if "is_deconv" not in entry.options:
            allowed["is_deconv"] = {"const": False}
        if entry.pretrained_part is None:
            allowed |= {"pretrained": {"const": False}, "pretrained_bands": {"const": None}}
        is_named = {"properties": {"name": {"const": name}}, "required": ["name"]}
        rules.append({"if": is_named, "then": {"properties": allowed}})
    return rules
