"""What a person at a terminal reads of a run, and what a log has beside it."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import SMALL_DATASET, SMALL_MODEL
from robosat_pink.sample import write_tiles

EXPERIMENT: dict[str, Any] = {
    "dataset": SMALL_DATASET,
    "classes": [{"name": "snow"}],
    "channels": [{"bands": [1, 2, 3, 4], "mean": "auto", "std": "auto", "scale": 10000}],
    "model": SMALL_MODEL | {"batch_size": 3, "epochs": 1},
    "runtime": {"workers": 0, "device": "cpu"},
}
# Lines that begin like these are for a log alone.
IN_LOG = ("experiment: {", "channels: ", "listed ", "loader: ")


@pytest.fixture
def job(opt_ml: Path) -> Path:
    write_tiles(opt_ml / "input/data", tiles=4, size=64)
    (opt_ml / "input/data/config/mine.yml").write_text(yaml.safe_dump(EXPERIMENT))
    (opt_ml / "checkpoints").mkdir()
    return opt_ml


def on_terminal(verb: str, *arguments: str) -> list[str]:
    """The lines that a verb shows on a terminal, without bars."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", f"robosat_pink.{verb}", *arguments]
    shown = b""
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL) as process:
        os.close(theirs)
        try:
            while read := os.read(ours, 65536):
                shown += read
        except OSError:  # how Linux says that the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0, shown.decode()
    lines = [line.rpartition("\r")[2] for line in shown.decode().replace("\r\n", "\n").splitlines()]
    return [line for line in lines if line.strip()]


def test_training_begins_with_ten_lines_and_names_what_it_leaves(
    job: Path, run_train: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    lines = on_terminal("train", "model.lr=0.001")
    start = lines[: next(number for number, line in enumerate(lines) if line.startswith("phase="))]
    assert len(start) <= 10, start
    assert not [line for line in lines if line.startswith(IN_LOG)]
    origin = f"experiment: {job}/input/data/config/mine.yml, overridden: model.lr; as it runs, with all defaults: "
    assert start[0] == f"{origin}{job}/model/config.yml"
    assert (job / "model/config.yml").exists()
    for beginning in ("robosat_pink ", "machine: ", "pairs: ", "channels.0, ", "training on cpu"):
        assert sum(line.startswith(beginning) for line in start) == 1, beginning
    assert (
        f"leaves the model in {job}/model, the report in {job}/output/data, resume points in {job}/checkpoints" in start
    )
    assert any(
        re.fullmatch(r"\w+, [\d.]+ million parameters; 1 epoch of \d+ steps, 3 tiles a step", line) for line in start
    )
    again = on_terminal("train", "model.lr=0.001")
    assert any(line.startswith(f"continuing from {job}/checkpoints/") for line in again)
    in_log = run_train("model.lr=0.001").stdout.splitlines()
    for beginning in IN_LOG:
        assert any(line.startswith(beginning) for line in in_log), beginning
    assert not [line for line in in_log if line.startswith(("leaves ", f"experiment: {job}"))]


def test_check_names_the_experiment_instead_of_printing_it(job: Path) -> None:
    path = job / "input/data/config/mine.yml"
    lines = on_terminal("train", "--check", str(path))
    assert lines[0] == f"experiment: {path}"
    assert not [line for line in lines if line.startswith(IN_LOG)]
    assert lines[-1] == "checked; nothing was trained"
