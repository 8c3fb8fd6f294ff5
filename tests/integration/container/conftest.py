"""The image, built once, and /opt/ml trees to run it on. Needs a Docker engine."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from container.engine import IMAGE, NETWORK, ROOT, SMOKE, Job, builder, docker
from robosat_pink.sample import write_folder


@pytest.fixture(scope="session")
def image() -> str:
    """The image of this source tree, with an engine to run it."""
    client = shutil.which("docker")
    lack = "there is no docker on PATH" if client is None else ""
    if client and docker("version").returncode:
        lack = f"{client} has no engine that answers: {docker('version').stderr.strip()}"
    if lack and os.environ.get("ROBOSAT_PINK_REQUIRE_DOCKER"):
        pytest.fail(f"a Docker engine is required here, but {lack}")
    if lack:
        pytest.skip(lack)
    started = time.monotonic()
    built = docker("build", *NETWORK, "--tag", IMAGE, "--build-arg", "REVISION=test", ROOT, **builder())
    assert built.returncode == 0, built.stderr[-4000:]
    print(f"built in {time.monotonic() - started:.0f} s")
    # Its forerunner, which has no name any more.
    docker("image", "prune", "--force", "--filter", "label=org.opencontainers.image.title=robosat_pink")
    return IMAGE


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """An /opt/ml as the platform lays it out, with the smoke experiment and its tiles in channels."""
    write_folder(tmp_path / "job", SMOKE, tiles=2, size=64)
    return tmp_path / "job"


@pytest.fixture
def run(image: str, job: Path) -> Iterator[Job]:
    runner = Job(image, job)
    yield runner
    names = docker("ps", "--all", "--quiet", "--filter", f"name=robosat-pink-test-{os.getpid()}-{id(runner)}").stdout
    if names.split():
        docker("rm", "--force", *names.split())
