"""Following CONTRIBUTING to the letter, a loss and a network take a new file and a line each, and train."""

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


def section(title: str) -> tuple[str, str]:
    """The file and the line that a section tells to write."""
    text = PAGE.split(f"## To add a {title}\n")[1].split("\n## ")[0]
    file, line = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return file, line


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a copy of the package, to be put before the installed one."""
    shutil.copytree(ROOT / "robosat_pink", tmp_path / "robosat_pink", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.parametrize(
    ("title", "path", "table"), [("loss", "losses/focal.py", "LOSSES"), ("network", "models/tiny.py", "MODELS")]
)
def test_loss_and_network_are_one_file_and_one_line_each(copy: Path, title: str, path: str, table: str) -> None:
    file, line = section(title)
    assert line.count("\n") == 1
    (copy / "robosat_pink" / path).write_text(file)
    registry = copy / "robosat_pink" / path.split("/")[0] / "__init__.py"
    registry.write_text(registry.read_text().replace(f"{table} = {{\n", f"{table} = {{\n{line}"))
    changed = {
        each.relative_to(ROOT).as_posix()
        for each in (ROOT / "robosat_pink").rglob("*.py")
        if each.read_text() != (copy / each.relative_to(ROOT)).read_text()
    }
    assert changed == {registry.relative_to(copy).as_posix()}

    write_folder(copy / "job", ROOT / "experiments/smoke.yml", tiles=3, size=64)
    change = "model.loss=focal" if title == "loss" else "model.name=tiny"
    (copy / "job/checkpoints").rmdir()
    ended = subprocess.run(
        [sys.executable, "-m", "robosat_pink.train", change, "model.epochs=1"],
        env=os.environ | {"PYTHONPATH": str(copy), "SAGEMAKER_BASE_DIR": str(copy / "job")},
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads((copy / "job/model/metrics.json").read_text())["val"]["loss"] >= 0
    used = yaml.safe_load((copy / "job/model/config.yml").read_text())["model"]
    assert "focal" in (used["loss"],) or used["name"] == "tiny"


def test_code_of_the_page_is_as_ours_is_written() -> None:
    for title in ("loss", "network"):
        file, _ = section(title)
        for command in (["check"], ["format", "--check"]):
            ruff = [Path(sys.executable).parent / "ruff", *command, "--stdin-filename", "robosat_pink/new.py", "-"]
            checked = subprocess.run(ruff, input=file, cwd=ROOT, capture_output=True, text=True, check=False)
            assert checked.returncode == 0, checked.stdout + checked.stderr
