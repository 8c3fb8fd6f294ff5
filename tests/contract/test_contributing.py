"""Following CONTRIBUTING to the letter, a loss and a network take a file, two lines and a command, and train."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from robosat_pink.sample import write_folder

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


HELD_BY = ("tests/contract/test_experiments.py", "tests/contract/test_sagemaker.py", "tests/unit/test_imports.py")


def text_of(title: str) -> str:
    return PAGE.split(f"## To add a {title}\n")[1].split("\n## ")[0]


def section(title: str) -> tuple[str, str]:
    """The file and the line that a section tells to write."""
    file, line = re.findall(r"```python\n(.*?)```", text_of(title), re.DOTALL)
    return file, line


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a copy of the repository, whose package is to be put before the installed one."""
    for name in ("robosat_pink", "experiments", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "data", "*.png"))
    for name in ("CHANGELOG.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def changed_files(copy: Path) -> set[str]:
    files = [path for path in copy.rglob("*") if path.suffix in (".py", ".md", ".json", ".yml", ".toml")]
    names = {path.relative_to(copy).as_posix(): path.read_text() for path in files}
    return {name for name, text in names.items() if not (ROOT / name).exists() or (ROOT / name).read_text() != text}


def run_in(copy: Path, *arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", *arguments],
        env=os.environ | {"PYTHONPATH": str(copy), "SAGEMAKER_BASE_DIR": str(copy / "job")},
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("title", "path", "table", "tests"),
    [
        ("loss", "losses/tversky.py", "LOSSES", "tests/unit/losses"),
        ("network", "models/tiny.py", "MODELS", "tests/unit/models/test_models.py"),
    ],
)
def test_loss_and_network_are_one_file_two_lines_and_a_command(
    copy: Path, title: str, path: str, table: str, tests: str
) -> None:
    file, line = section(title)
    assert line.count("\n") == 1
    name, package = Path(path).stem, f"robosat_pink/{path.split('/')[0]}/__init__.py"
    (copy / "robosat_pink" / path).write_text(file)
    before, after = (copy / package).read_text().split(f"{table} = {{\n")
    (copy / package).write_text(f"{before}{table} = {{\n" + after.replace("\n}\n", f"\n{line}}}\n", 1))
    with (copy / "CHANGELOG.md").open("a") as changelog:
        changelog.write(f"- A {title} more: `{name}`.\n")
    [command] = set(re.findall(r"^    \.venv/bin/python -m (robosat_pink\..*)$", text_of(title), re.MULTILINE))
    run_in(copy, *command.split())
    assert changed_files(copy) == {
        *(package, f"robosat_pink/{path}", "CHANGELOG.md"),
        *("experiments/README.md", "experiments/experiment.schema.json", "experiments/sagemaker/algorithm.json"),
    }

    key = "model.loss" if title == "loss" else "model.name"
    selected = f"{name} or frozen or committed or documents or one_way or ({key} and not smoke)"
    passed = run_in(copy, "pytest", "-vp", "no:cacheprovider", "-k", selected, tests, *HELD_BY)
    assert len(re.findall(rf"^{tests}\S*\[.*{name}.*\] PASSED", passed, re.MULTILINE)) >= 3, passed

    write_folder(copy / "job", ROOT / "experiments/smoke.yml", tiles=3, size=64)
    change = "model.loss=tversky" if title == "loss" else "model.name=tiny"
    (copy / "job/checkpoints").rmdir()
    run_in(copy, "robosat_pink.train", change, "model.epochs=1")
    assert json.loads((copy / "job/model/metrics.json").read_text())["val"]["loss"] >= 0
    used = yaml.safe_load((copy / "job/model/config.yml").read_text())["model"]
    assert "tversky" in (used["loss"],) or used["name"] == "tiny"


def test_code_of_the_page_is_as_ours_is_written() -> None:
    for title in ("loss", "network"):
        file, _ = section(title)
        for command in (["check"], ["format", "--check"]):
            ruff = [Path(sys.executable).parent / "ruff", *command, "--stdin-filename", "robosat_pink/new.py", "-"]
            checked = subprocess.run(ruff, input=file, cwd=ROOT, capture_output=True, text=True, check=False)
            assert checked.returncode == 0, checked.stdout + checked.stderr
