"""Matches the experiment file's regular expressions with directory names. Called by `sides`.

An expression such as (a+)+$ can take years, and Python holds the GIL meanwhile, so that no other thread can stop it.
Therefore a child process does the matching, and is killed after a timeout.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from robosat_pink.errors import ConfigError

LIMIT_S = 5.0  # for all names of images and masks; a hundred thousand take less than 1 s
ANYTHING = ".*"  # the default, which needs no process
# The code of the child process. It prints one line per name, so that the number of lines tells where the time ran out.
# The alarm ends the child if this process is killed.
MATCHING = f"""
import json, re, signal, sys
signal.alarm({int(LIMIT_S) + 1})
for expression, names in json.load(sys.stdin):
    expression = re.compile(expression)
    for name in names:
        match = expression.match(name)
        print(json.dumps(match and match.groupdict()), flush=True)
"""

Groups = dict[str, str | None]  # what the named groups of an expression matched


class Names(NamedTuple):
    """An expression, and the names to match with it from their first letter."""

    key: str  # the expression's key in the experiment file, for errors
    expression: str
    names: Sequence[str]
    where: str  # the bucket or folder with these names, for errors


def matching(sides: Sequence[Names]) -> list[dict[str, Groups]]:
    """For each side, the names that match, in order. Raises ConfigError if matching takes longer than LIMIT_S."""
    if all(side.expression == ANYTHING for side in sides):
        return [{name: {} for name in side.names} for side in sides]
    request = json.dumps([(side.expression, side.names) for side in sides]).encode()
    command = [sys.executable, "-I", "-S", "-c", MATCHING]
    try:
        run = subprocess.run(  # noqa: S603 - own session: a terminal's Ctrl-C does not reach it
            command, input=request, stdout=subprocess.PIPE, timeout=LIMIT_S, check=True, start_new_session=True
        )
    except subprocess.TimeoutExpired as timeout:
        requested = [(side, name) for side in sides for name in side.names]
        side, name = requested[min((timeout.stdout or b"").count(b"\n"), len(requested) - 1)]
        raise ConfigError(
            f"{side.key} = {side.expression!r}: was still matching {name}, a directory of {side.where}, after "
            f"{LIMIT_S:g} s; repeat nothing that repeats itself, as in (a+)+, and use fewer of .* and .+"
        ) from timeout
    answers = iter(map(json.loads, run.stdout.splitlines()))
    answered = [[(name, next(answers)) for name in side.names] for side in sides]
    return [{name: groups for name, groups in pairs if groups is not None} for pairs in answered]
