"""The rules for values of an experiment file, beyond their types. Used by `sections`, checked by `parsing`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from PIL import ImageColor

MOST_TEXT = 4096  # characters of a text value: the system's limit for a path
MOST_BANDS = 65_535  # in all channels together; no TIFF has more
HOLDS_USER = "it holds a user or a password, which belong into environment variables or an aws_profile"
MOST_EXPRESSION = 100_000  # characters; an expression may list thousands of directories


@dataclass(frozen=True)
class Rule:
    """A rule for a value, beyond its type; for a list, a rule for each entry.

    `holds` checks the rule, and `accepts` states it in words. The other fields state it as data, for `schema` and
    `sagemaker`.
    """

    accepts: str
    holds: Callable[[Any], bool]
    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False  # whether the bound itself is refused
    high_open: bool = False
    names: tuple[str, ...] = ()
    may_be_empty: bool = False  # whether a list may be empty
    texts: str = ""  # the texts that are accepted, if `accepts` describes numbers
    shortest: int = 0  # characters of a text
    longest: int = MOST_TEXT
    pattern: str = ""  # a regular expression that must match somewhere in a text
    fault: Callable[[str], str] = lambda text: ""  # what is wrong with a text, beyond `accepts`
    hides: bool = False  # whether errors leave out a text that has a fault, because it contains a secret

    @property
    def lowest(self) -> float:
        """The lowest number that is accepted."""
        return math.nextafter(self.low, math.inf) if self.low_open else self.low

    @property
    def highest(self) -> float:
        return math.nextafter(self.high, -math.inf) if self.high_open else self.high


def between(low: float, high: float, low_open: bool = False, high_open: bool = False) -> Rule:
    """A number in a range, which includes its bounds unless they are open."""
    return Rule(
        f"{'above' if low_open else 'from'} {low:,} {'and below' if high_open else 'to'} {high:,}",
        lambda value: (low < value if low_open else low <= value) and (value < high if high_open else value <= high),
        low=low,
        high=high,
        low_open=low_open,
        high_open=high_open,
    )


def one_of(names: Iterable[str]) -> Rule:
    names = tuple(names)
    return Rule(" or ".join(names), lambda value: value in names, names=names)


def some_of(names: Iterable[str]) -> Rule:
    """Any of the names, in a list that may be empty."""
    return replace(one_of(names), may_be_empty=True)


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
    """HOLDS_USER for a bucket with a user or password before an @. Names of folders and prefixes may contain an @.

    A slash does not end the search for the @: a password may contain one.
    """
    is_folder = re.match(r"/|\.{1,2}(/|$)|(file|channel):", text)
    return HOLDS_USER if not is_folder and re.match(r"(s3://)?([^/]*|[^/]*:.*)@", text, re.DOTALL) else ""


def _fault_of_file(text: str) -> str:
    return _fault_of_bucket(text) if re.search("[/:]", text) else ""  # without these, a file in the working directory


def _location(fault: Callable[[str], str], shortest: int = 1) -> Rule:
    """A rule for a text that names a bucket, folder or file. Accepts true and false, too, which some keys allow."""
    return Rule(
        "text that is not empty" if shortest else "text",
        lambda value: isinstance(value, bool) or (len(value) >= shortest and not fault(value)),
        shortest=shortest,
        fault=fault,
        hides=True,
    )


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        usual = re.fullmatch(r"[\w.-]+|[\da-f:.]+", parts.hostname or "", re.ASCII)
        return bool(usual) and parts.port != 0 and bool(re.fullmatch(r"https?://[^\s@?#]+", text))
    except ValueError:  # the port is not a number or too large, or a bracket is not closed
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
    pattern="^https?://",
    fault=_fault_of_address,
)
not_empty = Rule("text that is not empty", lambda value: value != "", shortest=1)
bucket_location = _location(_fault_of_bucket)
weights_location = _location(_fault_of_file)
checkpoint_location = _location(_fault_of_file, shortest=0)
directory_expression = Rule(
    "a regular expression for directory names",
    lambda value: not _fault_of_expression(value),
    longest=MOST_EXPRESSION,
    fault=_fault_of_expression,
)
band = replace(
    between(1, MOST_BANDS),
    holds=lambda value: value.strip() != "" if isinstance(value, str) else 1 <= value <= MOST_BANDS,
    texts="a band's description",
    pattern=r"\S",
)
mask_values = replace(between(-(2**31), 2**32 - 1), may_be_empty=True)
color_name = Rule("a color name or #rrggbb", _is_color)
