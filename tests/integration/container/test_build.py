"""What the image is made of, and what build arguments make of it."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import torchvision

from container.engine import IMAGE, NETWORK, ROOT, Job, builder, docker

pytestmark = pytest.mark.docker

DOCKERFILE = (ROOT / "Dockerfile").read_text()
TORCH_HOME = "/opt/program/torch"


def test_image_carries_what_it_needs_and_nothing_else(image: str) -> None:
    (about,) = json.loads(docker("inspect", image).stdout)
    config = about["Config"]
    assert config["Entrypoint"] == ["/opt/program/start.sh"]
    assert config["Cmd"] == ["train"]
    assert config["User"] in ("", "root", "0")
    environment = dict(each.split("=", 1) for each in config["Env"])
    assert environment["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert environment["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert not [name for name in environment if re.search("SECRET|TOKEN|PASSWORD|AWS", name)]
    assert config["Labels"]["org.opencontainers.image.version"] == "0.1.0"
    assert config["Labels"]["org.opencontainers.image.revision"] == "test"
    listing = "cd /opt/program && ls && ! command -v gcc && ! test -e ~/.cache"
    ran = docker("run", "--rm", "--network", "none", "--entrypoint", "bash", image, "-c", listing)
    assert ran.returncode == 0
    assert set(ran.stdout.split()) == {
        "LICENSE",
        "README.md",
        "experiments",
        "pyproject.toml",
        "pytorch_p36.yml",
        "requirements.txt",
        "start.sh",
        "venv",
    }


def test_pins_are_in_a_layer_before_the_code(image: str) -> None:
    assert DOCKERFILE.index("requirements.txt") < DOCKERFILE.index("COPY robosat_pink")
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image).stdout
    assert "pip install --no-cache-dir --requirement requirements.txt" in history


def test_classic_builder_takes_the_dockerfile_too(image: str, tmp_path: Path) -> None:
    """With one small pin: the pins of the image, built a second time, would take another 15 GB of the disk.

    And with the packages that `runtime.compile` needs.
    """
    ignored = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "demo", "build", "*.egg-info", "tests")
    context = shutil.copytree(ROOT, tmp_path / "context", ignore=ignored)
    listed = (context / "pytorch_p36.yml").read_text().split("- pip:\n")[0]
    (context / "pytorch_p36.yml").write_text(f"{listed}- pip:\n  - pyyaml==6.0.3\n")
    packages = ("--build-arg", "EXTRA_PACKAGES=g++ libpython3-dev")
    built = docker("build", *NETWORK, *packages, "--tag", f"{IMAGE}-classic", context, DOCKER_BUILDKIT="0")
    assert built.returncode == 0, built.stderr[-2000:]
    run = ("run", "--rm", "--network", "none")
    helped = docker(*run, f"{IMAGE}-classic", "help")
    find = (
        'import shutil, sysconfig; print(shutil.which("g++"), open(sysconfig.get_path("include") + "/Python.h").name)'
    )
    found = docker(*run, "--entrypoint", "python3", f"{IMAGE}-classic", "-c", find)
    docker("rmi", f"{IMAGE}-classic")
    assert helped.stdout.startswith("usage: start.sh VERB")
    assert found.stdout.startswith("/usr/bin/g++ "), found.stderr


def test_image_with_the_extra_logs_to_tensorboard(run: Job) -> None:
    """All layers but the last are those of the image without it."""
    extra = ("--build-arg", "REVISION=test", "--build-arg", "EXTRAS=tensorboard")
    built = docker("build", *NETWORK, *extra, "--tag", f"{IMAGE}-extra", ROOT, **builder())
    assert built.returncode == 0, built.stderr[-2000:]
    run.experiment(model={"name": "unet", "num_filters": 2, "epochs": 1}, runtime={"loggers": ["tensorboard"]})
    code, log = run.run("train")
    assert code == 5, log
    assert run.cause.endswith("or build the image with --build-arg EXTRAS=tensorboard")
    run.image = f"{IMAGE}-extra"
    try:
        code, log = run.run("train")
        tensorboard = docker("run", "--rm", "--network", "none", "--entrypoint", "tensorboard", run.image, "--version")
    finally:
        docker("rmi", run.image)
    assert code == 0, log
    assert tensorboard.returncode == 0, tensorboard.stderr
    assert "warning: runtime.loggers" not in log
    assert [path.name for path in (run.base / "output/tensorboard").glob("events.out.tfevents.*")]


# Encoder weights in the image. The build fetches them from a host that tests must not need: here a file of
# torchvision's name and shape lies where it would have put them.


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds nothing but weights of ResNet-18, under the name of torchvision's file."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(torchvision.models.resnet18().state_dict(), folder / "resnet18-f37072fd.pth")
    return folder


@pytest.mark.parametrize(
    ("encoders", "succeeds"),
    [("", True), ("resnet18", True), ("resnet18 resnet34", False), ("resnet34 resnet18", False)],
)
def test_build_fails_unless_the_weights_of_every_encoder_can_be_had(
    image: str, weights: Path, encoders: str, succeeds: bool
) -> None:
    (step,) = re.findall(r"^RUN (.*\$PRETRAINED(?:.*\\\n)*.*)$", DOCKERFILE, flags=re.MULTILINE)
    options = ("--volume", f"{weights}:{TORCH_HOME}/hub/checkpoints", "--env", f"PRETRAINED={encoders}")
    ran = docker("run", "--rm", "--network", "none", *options, "--entrypoint", "sh", image, "-c", step)
    assert (ran.returncode == 0) == succeeds, ran.stderr
    if not succeeds:
        assert 'Downloading: "https://download.pytorch.org/models/resnet34-' in ran.stdout + ran.stderr
        assert "name resolution" in ran.stderr


def test_image_with_encoder_weights_in_it_trains_from_them_without_a_network(run: Job, weights: Path) -> None:
    (weights / "Dockerfile").write_text(f"FROM {run.image}\nCOPY *.pth {TORCH_HOME}/hub/checkpoints/\n")
    built = docker("build", *NETWORK, "--tag", f"{IMAGE}-weights", weights, **builder())
    assert built.returncode == 0, built.stderr
    run.experiment(model={"name": "albunet", "encoder": "resnet18", "pretrained": True, "epochs": 1})
    code, log = run.run("train")
    assert code == 4, log
    assert run.cause.startswith("model.pretrained: the ImageNet weights of resnet18 cannot be had: URLError: ")
    run.image = f"{IMAGE}-weights"
    try:
        code, log = run.run("train")
    finally:
        docker("rmi", run.image)
    assert code == 0, log
    assert f"ImageNet weights: {TORCH_HOME}/hub/checkpoints/resnet18-f37072fd.pth" in log
