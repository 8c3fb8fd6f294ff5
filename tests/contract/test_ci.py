"""The jobs of docs/ci.md, run as they stand there, with the package in place of the image, and small networks."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from robosat_pink.sample import write_tiles

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/ci.md").read_text()
GITHUB, GITLAB = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))

# An image's start.sh.
START_SH = f"""#!/bin/bash
case $1 in check) option=--check ;; train) option= ;; *) exit 64 ;; esac
exec {sys.executable} -m robosat_pink.train $option "${{@:2}}" \
    model.name=unet model.num_filters=2 model.pixel_steps=0 runtime.workers=0
"""
# `docker build` checks the names of its arguments; `docker run` maps the volumes, and starts the verb or python3.
DOCKER = f"""#!{sys.executable}
import os, re, sys
kind, *words = sys.argv[1:]
if kind == "build":
    names = re.findall(r"--build-arg (\\w+)=", " ".join(words))
    dockerfile = open("Dockerfile").read()
    sys.exit(not names or words[-1] != "." or any(f"ARG {{name}}=" not in dockerfile for name in names))
options, arguments = words[: words.index("robosat_pink")], words[words.index("robosat_pink") + 1 :]
volumes = dict(options[n + 1].split(":")[::-1] for n, option in enumerate(options) if option == "-v")
if "--entrypoint" in options:
    arguments = [re.sub("^/here(?=/)", volumes["/here"], argument) for argument in arguments]
    os.execvp(options[options.index("--entrypoint") + 1], ["python3", *arguments])
os.environ["SAGEMAKER_BASE_DIR"] = volumes["/opt/ml"]
os.execvp("start.sh", ["start.sh", *arguments])
"""


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in which commands find `docker`, `start.sh` and the package."""
    for name, script in (("docker", DOCKER), ("start.sh", START_SH)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.delenv("SAGEMAKER_BASE_DIR", raising=False)
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("Dockerfile", "experiments"):
        (checkout / name).symlink_to(ROOT / name)
    return checkout


def run(lines: list[str], checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """As a runner does: the lines one after the other, up to the first that fails."""
    script = "set -e\n" + "\n".join(lines)
    script = script.replace("/opt/program/start.sh", "start.sh").replace("/opt/program/", f"{ROOT}/")
    return subprocess.run(
        ["bash", "-c", script], cwd=checkout, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def numbers(checkout: Path) -> Any:
    return json.loads((checkout / "job/model/metrics.json").read_text())


def test_jobs_are_of_a_dozen_lines_or_so_and_keep_what_a_run_leaves() -> None:
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        assert len(block.splitlines()) <= 13
    [job] = GITHUB["jobs"].values()
    assert job["steps"][-1]["with"]["path"] == GITLAB["smoke"]["artifacts"]["paths"][0] == "job/output"
    assert "$(id -u)" in str(job["steps"])  # or the runner could not remove the files


def test_job_for_github_builds_the_image_and_trains_the_smoke_experiment(runner: Path) -> None:
    [job] = GITHUB["jobs"].values()
    lines = [step["run"] for step in job["steps"] if "run" in step]
    assert [line.split()[:2] for line in lines[:-1]] == [["docker", "build"], ["docker", "run"], ["docker", "run"]]
    ended = run(lines, runner)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert numbers(runner)["epoch"] == 2
    assert (runner / "job/output/data/report.html").exists()


@pytest.mark.slow
def test_job_for_gitlab_trains_the_smoke_experiment_and_fails_with_it(runner: Path) -> None:
    job = GITLAB["smoke"]
    base = job["variables"]["SAGEMAKER_BASE_DIR"].replace("$CI_PROJECT_DIR", str(runner))
    ended = run(job["script"], runner, SAGEMAKER_BASE_DIR=base)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert numbers(runner)["epoch"] == 2

    (runner / "job/input/data/config/smoke.yml").write_text("model: {nam: unet}")
    failed = run(job["script"][1:], runner, SAGEMAKER_BASE_DIR=base)
    assert failed.returncode == 2
    assert "did you mean model.name?" in (runner / "job/output/failure").read_text()


def own_lines() -> list[str]:
    return re.findall(r"^ {4}(.*)$", PAGE.split("## Your own experiment")[1], re.MULTILINE)


@pytest.mark.slow
def test_lines_for_an_own_experiment_check_it_train_an_epoch_and_look_at_its_numbers(runner: Path) -> None:
    *lines, look = own_lines()
    assert [line.split()[-1] for line in lines if line.startswith("docker ")] == ["check", "runtime.max_seconds=1200"]
    write_tiles(runner / "tiles", tiles=3, size=64)
    experiment = yaml.safe_load((ROOT / "experiments/smoke.yml").read_text())
    experiment["dataset"] |= {"image_bucket": f"{runner}/tiles/imagery", "mask_bucket": f"{runner}/tiles/mask"}
    (runner / "mine.yml").write_text(yaml.safe_dump(experiment))
    ended = run(lines, runner)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "checked; nothing was trained" in ended.stdout
    assert numbers(runner)["epoch"] == 1

    for iou, code in ((0.31, 0), (0.3, 1), (None, 1)):
        content = numbers(runner)
        content["val"]["iou"] = iou
        (runner / "job/model/metrics.json").write_text(json.dumps(content))
        assert run([look], runner).returncode == code
