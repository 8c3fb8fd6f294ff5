"""What the values of an experiment file must satisfy beyond their types. Used by `config`, checked by `schema`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from PIL import ImageColor


@dataclass(frozen=True)
class Rule:
    """What a value must satisfy beyond its type; for a list, what each entry must satisfy.

    For programs that ask instead of trying: the lowest and highest number that are accepted, and the accepted names.
    """

    accepts: str
    holds: Callable[[Any], bool]
    low: float = -math.inf
    high: float = math.inf
    names: tuple[str, ...] = ()
    fault: Callable[[str], str] = lambda text: ""  # what is wrong with a text, where more than `accepts` can be said


def at_least(low: float) -> Rule:
    return Rule(f"{low} or more", lambda value: value >= low, low=low)


def between(low: float, high: float, low_open: bool = False, high_open: bool = False) -> Rule:
    """Bounds belong to the range unless they are open."""
    words = f"{'above' if low_open else 'from'} {low} {'and below' if high_open else 'to'} {high}"
    return Rule(
        words,
        lambda value: (low < value if low_open else low <= value) and (value < high if high_open else value <= high),
        low=math.nextafter(low, math.inf) if low_open else low,
        high=math.nextafter(high, -math.inf) if high_open else high,
    )


def one_of(names: Iterable[str]) -> Rule:
    names = tuple(names)
    return Rule(" or ".join(names), lambda value: value in names, names=names)


def _fault_of_expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        return str(error)
    return ""


def _is_color(value: str) -> bool:
    try:
        ImageColor.getrgb(value)
    except ValueError:
        return False
    return True


above_zero = Rule("a number above 0", lambda value: value > 0, low=math.nextafter(0, 1))
web_address = Rule(
    "an address such as https://store.example:9000", lambda value: bool(re.fullmatch(r"https?://[^\s/]+(/\S*)?", value))
)
not_empty = Rule("text that is not empty", lambda value: value != "")
directory_expression = Rule(
    "a regular expression for directory names",
    lambda value: not _fault_of_expression(value),
    fault=_fault_of_expression,
)
color_name = Rule("a color name or #rrggbb", _is_color)
