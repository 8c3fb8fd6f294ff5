"""The experiment's expressions against names of directories: as Python matches, and for no longer than some seconds."""

import os
import re
import threading
import time

import pytest

from robosat_pink.datasets import expressions
from robosat_pink.datasets.expressions import Names, matching
from robosat_pink.errors import ConfigError

SCENES = ["2018_a", "2019_b_é", "old_2018_a", "", "2018_c\udcff"]


@pytest.mark.parametrize("expression", [".*", "", "2018", r"(?P<year>\d{4})_(?P<part>.)?(?P<rest>x)?", "(?i)OLD", "x"])
def test_names_match_as_by_re_match(expression: str) -> None:
    (found,) = matching([Names("key", expression, SCENES, "there")])
    matches = {name: re.match(expression, name) for name in SCENES}
    assert found == {name: match.groupdict() for name, match in matches.items() if match}
    assert list(found) == [name for name in SCENES if name in found]


def test_both_sides_are_matched_at_once_each_by_its_own_expression() -> None:
    images = Names("images", "(?P<day>[ab])", ["a", "b", "c"], "here")
    masks = Names("masks", ".*(?P<day>.)$", ["mask_b", "mask_a"], "there")
    assert matching([images, masks]) == [
        {"a": {"day": "a"}, "b": {"day": "b"}},
        {"mask_b": {"day": "b"}, "mask_a": {"day": "a"}},
    ]


def test_what_matches_anything_takes_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions.subprocess, "run", None)
    assert matching([Names("images", ".*", ["a"], "here"), Names("masks", ".*", ["b"], "there")]) == [
        {"a": {}},
        {"b": {}},
    ]


@pytest.mark.parametrize("in_main_thread", [True, False])
def test_expression_that_takes_too_long_is_refused_with_the_directory(
    monkeypatch: pytest.MonkeyPatch, in_main_thread: bool
) -> None:
    monkeypatch.setattr(expressions, "LIMIT_S", 1.0)
    slow = "a" * 40 + "b"
    sides = [Names("images", "x", ["x", "y"], "here"), Names("masks", "(a+)+$", ["aa", slow, "aaa"], "s3://there")]
    refused: list[str] = []

    def attempt() -> None:
        with pytest.raises(ConfigError) as caught:
            matching(sides)
        refused.append(str(caught.value))

    started = time.monotonic()
    if in_main_thread:
        attempt()
    else:
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join(60)
    assert time.monotonic() - started < 30
    assert refused[0].startswith(f"masks = '(a+)+$': was still matching {slow}, a directory of s3://there, after 1 s;")


def test_process_that_matches_ends_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "LIMIT_S", 1.0)
    with pytest.raises(ConfigError):
        matching([Names("images", "(a+)+$", ["a" * 40 + "b"], "here")])
    assert not [each for each in children() if "-I" in each]


def children() -> list[str]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        pids = file.read().split()
    commands = []
    for pid in pids:
        with open(f"/proc/{pid}/cmdline") as file:
            commands.append(file.read().split("\0"))
    return [each for command in commands for each in command]
