"""The docker commands of docs/docker.md, README's among them, do what the page says, run as they stand there.

Three words differ: builds, and runs that name no network, get the host's, the only one that some engines have;
`--gpus all` goes, for engines without GPUs; and the demo trains for two epochs, because the gate trains a whole one.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from container.engine import ROOT, builder, docker

pytestmark = pytest.mark.docker


def commands(page: str, heading: str) -> list[str]:
    """The lines of the first indented block below a heading."""
    below = (ROOT / page).read_text().split(f"\n{heading}\n", 1)[1]
    block = re.search(r"(?:^(?: {4}.*)?\n)*^ {4}.*\n", below, flags=re.MULTILINE)
    assert block, heading
    return [line.strip() for line in block[0].replace("\\\n", "").splitlines() if line.strip()]


def as_run_here(command: str) -> str:
    command = re.sub(r" demo(?= |$)", " demo model.epochs=2", command)
    if "--network" in command:
        return command
    return re.sub(r"^docker (build|run) ", r"docker \1 --network host ", command).replace(" --gpus all", "")


@pytest.fixture
def clone(image: str, tmp_path: Path) -> Path:
    """The source tree as cloned, with no environment in it, and a user with ~/.aws."""
    ignored = shutil.ignore_patterns(
        ".git", ".venv", ".*_cache", "__pycache__", "demo", "demo-*", "build", "*.egg-info"
    )
    shutil.copytree(ROOT, tmp_path / "clone", ignore=ignored)
    (tmp_path / "home/.aws").mkdir(parents=True)
    return tmp_path / "clone"


def test_docker_commands_of_the_page_do_what_it_says(clone: Path) -> None:
    told = commands("docs/docker.md", "## Commands")
    assert [" ".join(re.findall(r"docker (?:build|run)|demo|train", line)) for line in told] == [
        "docker build",
        "docker run demo",
        "docker run",
        "docker run train",
        "docker run train",
    ]
    was_there = docker("image", "inspect", "robosat_pink").returncode == 0
    environment = os.environ | {"HOME": str(clone.parent / "home")} | builder()
    outputs = []
    try:
        for command in told:
            ran = subprocess.run(
                ["bash", "-c", as_run_here(command)],
                capture_output=True, text=True, check=False, cwd=clone, env=environment, timeout=900,
            )  # fmt: skip
            assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
            outputs.append(ran.stdout)
    finally:
        if not was_there:
            docker("rmi", "robosat_pink")
    _, demo, _, smoke, again = outputs
    assert "phase=val epoch=2 epochs=2 val_loss=" in demo
    assert "phase=val epoch=2 epochs=2 val_loss=" in smoke
    assert "continuing from /opt/ml/checkpoints/resume-00002-" in again
    assert (clone / "job/model/best.pth").exists()
