"""What the values of an experiment file must satisfy beyond their types. Used by `config`, checked by `schema`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from PIL import ImageColor

MOST_TEXT = 4096  # characters of a text value: what the system allows a path
HOLDS_USER = "it holds a user or a password, which belong into environment variables or an aws_profile"
MOST_EXPRESSION = 100_000  # characters; it may list thousands of directories


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
    may_be_empty: bool = False  # of a list
    texts: str = ""  # what is accepted of texts, where it is not what is accepted of numbers
    longest: int = MOST_TEXT  # characters of a text
    fault: Callable[[str], str] = lambda text: ""  # what is wrong with a text, where more than `accepts` can be said
    hides: bool = False  # whether a text with such a fault is not shown: it holds a secret


def between(low: float, high: float, low_open: bool = False, high_open: bool = False) -> Rule:
    """Bounds belong to the range unless they are open."""
    words = f"{'above' if low_open else 'from'} {low:,} {'and below' if high_open else 'to'} {high:,}"
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
    except (re.error, OverflowError) as error:
        return str(error)
    except RecursionError:
        return "it is nested too deeply"
    return ""


def _fault_of_address(text: str) -> str:
    return HOLDS_USER if re.match(r"https?://[^\s?]*@", text) else ""


def _fault_of_bucket(text: str) -> str:
    """Folders and prefixes may have an @ in their names; but a password may hold a slash."""
    is_folder = re.match(r"/|\.{1,2}(/|$)|(file|channel):", text)
    return HOLDS_USER if not is_folder and re.match(r"(s3://)?([^/]*|[^/]*:.*)@", text, re.DOTALL) else ""


def _fault_of_file(text: str) -> str:
    return _fault_of_bucket(text) if re.search("[/:]", text) else ""  # else it lies in the working directory


def _place(fault: Callable[[str], str], least: int = 1) -> Rule:
    """Of a text of so many characters; true and false may be other ways to say it."""
    return Rule(
        "text that is not empty" if least else "text",
        lambda value: isinstance(value, bool) or (len(value) >= least and not fault(value)),
        fault=fault,
        hides=True,
    )


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        usual = re.fullmatch(r"[\w.-]+|[\da-f:.]+", parts.hostname or "", re.ASCII)
        return bool(usual) and parts.port != 0 and bool(re.fullmatch(r"https?://[^\s@?#]+", text))
    except ValueError:  # a port that is no number or too large, or a bracket that is not closed
        return False


def _is_color(value: str) -> bool:
    try:
        ImageColor.getrgb(value)
    except ValueError:
        return False
    return True


positive_weight = between(0, 10**6, low_open=True)
web_address = Rule(
    "an address such as https://store.example:9000",
    _is_address,
    fault=_fault_of_address,
)
not_empty = Rule("text that is not empty", lambda value: value != "")
bucket = _place(_fault_of_bucket)
weights = _place(_fault_of_file)
checkpoint = _place(_fault_of_file, least=0)
directory_expression = Rule(
    "a regular expression for directory names",
    lambda value: not _fault_of_expression(value),
    longest=MOST_EXPRESSION,
    fault=_fault_of_expression,
)
band = replace(
    between(1, 65_535),
    holds=lambda value: value.strip() != "" if isinstance(value, str) else 1 <= value <= 65_535,
    texts="a band's description",
)
mask_values = replace(between(-(2**31), 2**32 - 1), may_be_empty=True)
color_name = Rule("a color name or #rrggbb", _is_color)
