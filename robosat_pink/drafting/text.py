"""Writes sections of an experiment file as YAML, with a comment for each choice. Called by `draft`."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import NamedTuple

TODO = "TODO"  # begins the comment on what a draft could not tell
WIDTH = 110  # of a comment's line
# What YAML reads as text without quotes: a location, a color, a name that is none of YAML's own words.
PLAIN = re.compile(
    r"(s3:/|\.{0,2})/[\w./-]*\w|(?!(?i:true|false|yes|no|on|off|null|y|n)$)[A-Za-z][\w-]*( [\w-]+)*", re.ASCII
)


class Entry(NamedTuple):
    """A line of YAML, why it is so, and what the user has to decide, if a draft could not tell."""

    yaml: str
    why: str = ""
    todo: str = ""


class Section(NamedTuple):
    name: str
    entries: tuple[Entry, ...]

    @property
    def todos(self) -> list[str]:
        return [f"{self._key(entry)}: {entry.todo}" for entry in self.entries if entry.todo]

    def _key(self, entry: Entry) -> str:
        is_of_list = entry.yaml.startswith("- ")
        return self.name if is_of_list else f"{self.name}.{entry.yaml.partition(':')[0]}"


def quoted(text: str) -> str:
    """A text as a YAML scalar."""
    if PLAIN.fullmatch(text):
        return text
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    return json.dumps(text)


def document(directive: str, head: str, sections: Iterable[Section]) -> str:
    """The whole file. `directive` is a comment for editors, which must stay one line; there may be none."""
    lines = [f"# {directive}"] * bool(directive) + _comment(head, "")
    for section in sections:
        lines += ["", f"{section.name}:"]
        for entry in section.entries:
            lines += _entry(entry)
    return "\n".join(lines) + "\n"


def _entry(entry: Entry) -> Iterator[str]:
    yield from _comment(entry.why, "  ")
    yield from _comment(f"{TODO}: {entry.todo}" if entry.todo else "", "  ")
    if entry.yaml:
        yield f"  {entry.yaml}"


def _comment(text: str, indent: str) -> list[str]:
    visible = "".join(character if character.isprintable() else "?" for character in text)
    prefix = f"{indent}# "
    return textwrap.wrap(
        visible, WIDTH, initial_indent=prefix, subsequent_indent=prefix, break_long_words=False, break_on_hyphens=False
    )
