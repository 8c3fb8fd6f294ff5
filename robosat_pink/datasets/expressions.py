"""Regular expressions of the experiment file against names of directories. Called by `sides`.

An expression such as (a+)+$ can take longer than anyone waits, and nothing in its process ends it: while Python matches
in one thread, no other one runs. So it is matched in a process that is ended when its time is over.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from robosat_pink.errors import ConfigError

LIMIT_S = 5.0  # for all names of both sides; a hundred thousand take less than one
ANYTHING = ".*"  # the default, which needs no process
# What the process runs: the names that match are told one by one, so that the one which takes too long is known. If
# this process is killed, the alarm ends the other one.
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
    """Names to match from their first letter; and, for errors, the key of the expression and where the names are."""

    key: str
    expression: str
    names: Sequence[str]
    where: str


def matching(sides: Sequence[Names]) -> list[dict[str, Groups]]:
    """Of each side, the names that match, in order. ConfigError for an expression that takes longer than LIMIT_S."""
    if all(side.expression == ANYTHING for side in sides):
        return [{name: {} for name in side.names} for side in sides]
    request = json.dumps([(side.expression, side.names) for side in sides]).encode()
    command = [sys.executable, "-I", "-S", "-c", MATCHING]
    try:
        run = subprocess.run(  # noqa: S603 - of its own, whom a terminal's signals do not reach
            command, input=request, stdout=subprocess.PIPE, timeout=LIMIT_S, check=True, start_new_session=True
        )
    except subprocess.TimeoutExpired as late:
        every = [(side, name) for side in sides for name in side.names]
        side, name = every[min((late.stdout or b"").count(b"\n"), len(every) - 1)]
        raise ConfigError(
            f"{side.key} = {side.expression!r}: takes longer than {LIMIT_S:g} s to match with {name}, a directory of "
            f"{side.where}; repeat nothing that repeats itself, as in (a+)+, and use fewer of .* and .+"
        ) from late
    answers = iter(map(json.loads, run.stdout.splitlines()))
    answered = [[(name, next(answers)) for name in side.names] for side in sides]
    return [{name: groups for name, groups in pairs if groups is not None} for pairs in answered]
