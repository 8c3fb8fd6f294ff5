"""The SageMaker Python SDK, version 2: the local mode of its Estimator drives the image."""

import tarfile
from pathlib import Path

import pytest

from container.clients import python_with, run_client
from container.engine import Job, docker

pytestmark = pytest.mark.docker

FIT = """
import sys
from sagemaker.estimator import Estimator
from sagemaker.local import LocalSession
image, base, output, root, hosts = sys.argv[1:]
session = LocalSession()
session.config = {"local": {"local_code": True, "container_root": root}}
estimator = Estimator(
    image_uri=image,
    role="arn:aws:iam::123456789012:role/robosat_pink",
    instance_count=int(hosts),
    instance_type="local",
    output_path=f"file://{output}",
    sagemaker_session=session,
    hyperparameters={"model.epochs": 1, "model.loss": "lovasz", "model.name": "albunet", "model.encoder": "resnet18"},
)
estimator.fit({name: f"file://{base}/input/data/{name}" for name in ("config", "imagery", "mask")})
"""


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return python_with(tmp_path_factory.mktemp("sdk"), ("sagemaker<3",))


def names_in(archive: Path) -> set[str]:
    with tarfile.open(archive) as content:
        return {name.removeprefix("./") for name in content.getnames()}


@pytest.mark.parametrize("hosts", [1, 2])
def test_fit_of_the_sdk_s_local_mode_ends_with_everything_in_its_archives(
    run: Job, sdk: Path, tmp_path: Path, hosts: int
) -> None:
    """Report and model card are written last, and its docker-compose stops all hosts when one has ended."""
    (tmp_path / "output").mkdir()
    (tmp_path / "root").mkdir()
    arguments = [run.image, run.base, tmp_path / "output", tmp_path / "root", hosts]
    fitted = run_client(sdk, "-c", FIT, *arguments)
    left = docker("ps", "--all", "--quiet", "--filter", f"ancestor={run.image}", "--filter", "name=-algo-").stdout
    docker("rm", *left.split())  # what has ended; compose leaves it
    assert fitted.returncode == 0, fitted.stdout + fitted.stderr
    assert "phase=val epoch=1 epochs=1 val_loss=" in fitted.stdout + fitted.stderr
    assert "\r" not in fitted.stdout
    (model,) = (tmp_path / "output").rglob("model.tar.gz")
    (output,) = (tmp_path / "output").rglob("output.tar.gz")
    weights = {"checkpoint-00001-of-00001.pth", "best.pth"}
    assert {*weights, "train_ids.txt", "test_ids.txt", "config.yml", "MODEL_CARD.md"} <= names_in(model)
    assert "data/report.html" in names_in(output)
