"""The image, driven from outside as the platform, a shell and CI drive it."""

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from container.engine import Job, docker, mounted_profile

pytestmark = pytest.mark.docker

MODEL = {"checkpoint-00002-of-00002.pth", "best.pth", "config.yml", "metrics.json", "history.csv"} | {
    "MODEL_CARD.md",
    "train_ids.txt",
    "test_ids.txt",
}


SMALL = {"name": "albunet", "encoder": "resnet18", "num_filters": 2}


@pytest.fixture
def small(run: Job) -> Job:
    """With a network that soon trains, where it does not matter which."""
    run.experiment(model=SMALL)
    return run


# What a user does; the commands of docs/docker.md are in test_readme.py.


def test_smoke_experiment_trains_without_a_network_in_the_shared_memory_of_a_plain_container(run: Job) -> None:
    code, log = run.run("train", options=("--read-only", "--tmpfs", "/tmp"))
    assert code == 0, log
    assert run.model == MODEL
    assert not (run.base / "output/failure").exists()
    assert "\r" not in log
    assert "\x1b" not in log
    assert re.search(r"^robosat_pink \S+, Python 3\.\d+\.\d+, torch 2\.\d+", log, re.MULTILINE)
    assert re.search(r"^machine: \d+ CPU cores?, .* 67\.1 MB shared memory", log, re.MULTILINE)
    assert "host localhost of localhost" in log
    best = torch.load(run.base / "model/best.pth", weights_only=True)
    assert best["epoch"] in (1, 2)


def test_user_without_a_name_trains_into_files_of_their_own(small: Job) -> None:
    for path in (small.base, *small.base.rglob("*")):
        os.chown(path, 1234, 1234)
    code, log = small.run("train", options=("--user", "1234"))
    assert code == 0, log
    assert small.model == MODEL
    assert {path.stat().st_uid for path in small.base.rglob("*")} == {1234}
    assert "Permission denied" not in log


@pytest.mark.parametrize("arguments", [(), ("train", "train"), ("train", "model.epochs=2")], ids=str)
def test_every_way_the_platform_starts_a_container_trains(small: Job, arguments: tuple[str, ...]) -> None:
    code, log = small.run(*arguments)
    assert code == 0, log
    assert small.model == MODEL


@pytest.mark.parametrize(
    ("verb", "code", "words"),
    [("help", 0, "usage"), ("serve", 64, "does not serve"), ("x", 64, "there are: init, train")],
)
def test_other_verbs(run: Job, verb: str, code: int, words: str) -> None:
    ended, log = run.run(verb)
    assert ended == code
    assert words in log


def test_shell_python_and_pip_are_on_the_path(image: str) -> None:
    command = "python3 -c 'import robosat_pink, boto3' && pip --version && test ! -e ~/.aws && test ! -e /opt/ml"
    ran = docker("run", "--rm", "--network", "none", "--entrypoint", "bash", image, "-c", command)
    assert ran.returncode == 0, ran.stderr


# What the platform says in input/config.


@pytest.mark.parametrize(
    "hyperparameters",
    [
        {"model.epochs": "1", "sagemaker_region": '"us-east-1"', "_tuning_objective_metric": "val:iou"},
        {"model.epochs": '"1"', "model.loss": '"lovasz"', "sagemaker_program": '"train.py"'},
    ],
    ids=["plain", "JSON-encoded"],
)
def test_hyperparameters_override_in_both_encodings(small: Job, hyperparameters: dict[str, str]) -> None:
    small.config("hyperparameters", hyperparameters)
    code, log = small.run("train")
    assert code == 0, log
    assert "checkpoint-00001-of-00001.pth" in small.model


RESOURCES: dict[str, Any] = {
    "2020": {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"},
    "2022": {
        "current_host": "algo-1",
        "current_instance_type": "ml.g4dn.12xlarge",
        "current_group_name": "homogeneousCluster",
        "hosts": ["algo-1"],
        "instance_groups": [
            {"instance_group_name": "homogeneousCluster", "instance_type": "ml.g4dn.12xlarge", "hosts": ["algo-1"]}
        ],
        "network_interface_name": "eth0",
    },
    "2025": {
        "current_host": "algo-1",
        "current_instance_type": None,
        "current_group_name": "homogeneousCluster",
        "hosts": ["algo-1"],
        "instance_groups": None,
        "network_interface_name": None,
        "topology": None,
    },
    "local": {"current_host": "algo-1-x3f9q", "hosts": ["algo-1-x3f9q"], "network_interface_name": "ethwe"},
}


@pytest.mark.parametrize("form", RESOURCES)
def test_resourceconfig_of_every_year_is_understood(small: Job, form: str) -> None:
    small.config("resourceconfig", RESOURCES[form])
    code, log = small.run("train", "model.epochs=1")
    assert code == 0, log
    assert f"host {RESOURCES[form]['current_host']} of " in log


def test_read_only_channels_with_manifests_beside_them_are_enough(small: Job) -> None:
    (small.base / "input/data/imagery-manifest").write_text("[]")
    fast = {"TrainingInputMode": "FastFile", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"}
    small.config("inputdataconfig", {"config": {"TrainingInputMode": "File"}, "imagery": fast, "mask": fast})
    code, log = small.run("train", "model.epochs=1", options=("--volume", f"{small.base}/input:/opt/ml/input:ro"))
    assert code == 0, log
    assert "imagery-manifest" not in log


def test_pipe_mode_is_refused_in_words(run: Job) -> None:
    run.config("inputdataconfig", {"config": {"TrainingInputMode": "File"}, "imagery": {"TrainingInputMode": "Pipe"}})
    code, _ = run.run("train")
    assert code == 5
    assert run.cause == "channel 'imagery' is in Pipe mode, which has no files; use File or FastFile mode"


def test_cpu_limit_of_the_container_is_respected(small: Job) -> None:
    code, log = small.run("train", "model.epochs=1", options=("--cpus", "1"))
    assert code == 0, log
    assert "machine: 1 CPU core," in log


# Ends: stopped, killed, broken.


def wait_for(name: str, words: str, seconds: float = 120) -> None:
    for _ in range(int(seconds / 0.2)):
        logs = docker("logs", name)
        if words in logs.stdout + logs.stderr:
            return
        time.sleep(0.2)
    pytest.fail(f"{words!r} did not come up: {logs.stdout}{logs.stderr}")


def test_docker_stop_in_the_middle_of_an_epoch_ends_with_0_and_the_next_run_goes_on(small: Job) -> None:
    (small.base / "checkpoints").mkdir(exist_ok=True)
    name = small.start("train", "model.epochs=500", "runtime.workers=0")
    wait_for(name, "phase=val epoch=2 ")
    docker("stop", "--time", "120", name)  # as much as SageMaker gives before it kills, and the exit code would tell
    code, log = small.wait(name)
    assert code == 0, log
    assert "stopped by a signal after" in log
    assert any(path.name.startswith("resume-") for path in (small.base / "checkpoints").iterdir())
    done = int(re.search(r"stopped by a signal after (\d+) epochs", log)[1])  # type: ignore[index]
    assert done >= 2
    assert torch.load(small.base / f"model/checkpoint-{done:05d}-of-00500.pth", weights_only=True)["epoch"] == done
    torch.load(small.base / "model/best.pth", weights_only=True)

    code, log = small.run("train", f"model.epochs={done + 1}")
    assert code == 0, log
    assert f"continuing from /opt/ml/checkpoints/resume-{done:05d}-" in log
    assert f"phase=val epoch={done + 1} epochs={done + 1} " in log
    assert f"phase=val epoch={done} " not in log


def test_stop_before_the_first_step_exits_0(run: Job) -> None:
    name = run.start("train")
    time.sleep(1.5)
    docker("stop", "--time", "60", name)
    code, log = run.wait(name)
    assert code == 0, log
    assert not any(each.endswith(".pth") for each in run.model)


def test_demo_stops_when_asked(run: Job) -> None:
    name = run.start("demo")
    wait_for(name, "training on cpu")
    docker("stop", "--time", "60", name)
    code, log = run.wait(name)
    assert code == 0, log
    assert "stopped by a signal" in log


def test_run_out_of_memory_says_so_in_the_failure_file(run: Job) -> None:
    run.experiment(model={"tile_size": 1024, "batch_size": 8})
    code, log = run.run("train", "runtime.workers=0", options=("--memory", "700m", "--memory-swap", "700m"))
    assert code != 0, log
    assert re.search("SIGKILL, most likely out of memory|not enough memory|can't allocate memory", run.cause)
    assert not any(each.endswith(".pth") for each in run.model)


def test_broken_installation_leaves_a_failure_file(run: Job, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/rasterio.py").write_text("raise ImportError('libexpat.so.1: cannot open shared object file')")
    options = ("--volume", f"{tmp_path}/broken:/broken:ro", "--env", "PYTHONPATH=/broken")
    code, log = run.run("train", options=options)
    assert code == 1, log
    assert run.cause.startswith("ImportError: libexpat.so.1: cannot open shared object file")


# Named profiles.


def test_named_profile_is_read_from_a_mounted_folder(run: Job, tmp_path: Path) -> None:
    (tmp_path / "aws").mkdir()
    (tmp_path / "aws/credentials").write_text("[esip]\naws_access_key_id = KEY\naws_secret_access_key = word\n")
    run.experiment(dataset={"aws_profile": "esip"}, model=SMALL)
    code, log = run.run("train", "model.epochs=1", options=mounted_profile(tmp_path / "aws"))
    assert code == 0, log
    assert "aws_profile" not in "".join(line for line in log.splitlines() if line.startswith("warning"))
    code, log = run.run("train", "model.epochs=1")
    assert "there is no aws_profile 'esip' on this machine" in log
