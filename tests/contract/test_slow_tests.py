"""Tests marked slow or docker are left out, and the last line says so."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

def test_quick(): pass
def test_quick_too(): pass

@pytest.mark.slow
def test_slow(): pass

@pytest.mark.docker
def test_image(): pass
"""
FOLDER = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("arguments", "passed", "last_line"),
    [
        ([], 2, "left out: 2 slow tests; `bash start.sh test --all` runs them, too"),
        (["-n2"], 2, "left out: 2 slow tests; `bash start.sh test --all` runs them, too"),
        (["--all"], 4, "4 passed"),
        (["-m", "slow"], 1, "1 passed"),
        (["test_some.py::test_slow"], 1, "1 passed"),
        (["test_some.py"], 2, "left out: 2 slow tests; `bash start.sh test --all` runs them, too"),
    ],
)
def test_slow_tests_are_left_out_unless_asked_for(
    tmp_path: Path, arguments: list[str], passed: int, last_line: str
) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["slow_tests"]')
    (tmp_path / "pytest.ini").write_text(f"[pytest]\nmarkers = slow\n docker\npythonpath = {FOLDER}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    assert f"{passed} passed" in run.stdout
    assert last_line in run.stdout.splitlines()[-1]
