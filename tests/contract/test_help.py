"""`--help` of each verb: its own usage, arguments and one example that the verb accepts, by Python alone."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from robosat_pink import command, init
from robosat_pink.evaluate import EVALUATE
from robosat_pink.predict import PREDICT
from robosat_pink.train import TRAIN

ROOT = Path(__file__).parents[2]
MODULES = {
    "train": ["train"],
    "check": ["train", "--check"],
    "predict": ["predict"],
    "evaluate": ["evaluate"],
    "init": ["init"],
}
PARSERS = {
    verb.name: lambda argv, verb=verb: command.parse_arguments(verb, argv) for verb in (TRAIN, PREDICT, EVALUATE)
}
PARSERS |= {"init": init.parse_arguments, "check": lambda argv: command.parse_arguments(TRAIN, ["--check", *argv])}


def helped(verb: str, option: str = "--help") -> str:
    """What a Python without any package says, in a folder of its own."""
    module, *arguments = MODULES[verb]
    run = subprocess.run(
        [sys.executable, "-S", "-m", f"robosat_pink.{module}", *arguments, option],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


@pytest.mark.parametrize("verb", MODULES)
def test_help_of_a_verb_is_its_own_and_needs_no_package(verb: str) -> None:
    text = helped(verb)
    assert text.startswith(f"usage: start.sh {verb} [")
    assert f"in an image: docker run IMAGE {verb};" in text
    assert f"python -m robosat_pink.{' '.join(MODULES[verb])}\n" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("verb", MODULES)
def test_example_of_a_verb_is_accepted_by_it(verb: str) -> None:
    _, _, example = helped(verb, "-h").partition("example:\n  ")
    line = example.splitlines()[0]
    _, _, arguments = line.partition(f"bash start.sh {verb} ")
    assert arguments
    PARSERS[verb](shlex.split(arguments))
