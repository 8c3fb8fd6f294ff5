"""Places that are wrong, closed or full, met by a whole run: cause first, right exit code, nothing half-written."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from conftest import write_tile
from robosat_pink.container.atomic_write import write_atomically
from robosat_pink.errors import ContractError
from robosat_pink.models import build_model
from robosat_pink.train import main
from s3_answers import Store

DATA, CHECKPOINT, CONTRACT = 3, 4, 5

EXPERIMENT: dict[str, Any] = {
    "dataset": {"image_bucket": "channel:imagery", "mask_bucket": "channel:mask", "train_percent": 0.5},
    "classes": [{"name": "snow"}],
    "channels": [{"bands": [1, 2]}],
    "model": {
        "name": "albunet",
        "encoder": "resnet18",
        "num_filters": 2,
        "tile_size": 64,
        "batch_size": 2,
        "epochs": 2,
    },
    "runtime": {"workers": 0},
}


@pytest.fixture
def job(opt_ml: Path) -> Path:
    for x in range(4):
        write_tile(opt_ml / f"input/data/imagery/day/5/{x}/2.tif", np.full((2, 64, 64), 3000 + x, np.uint16))
        write_tile(opt_ml / f"input/data/mask/day/5/{x}/2.tif", np.tri(64, dtype=np.uint8))
    (opt_ml / "input/data/config/experiment.yml").write_text(yaml.safe_dump(EXPERIMENT))
    return opt_ml


def cause_of(exit_code: int, job: Path, *arguments: str) -> str:
    assert main(arguments) == exit_code
    assert not list(job.rglob("*.sagemaker-ignore"))
    return (job / "output/failure").read_text().splitlines()[0]


def test_masks_elsewhere_than_images_are_told_with_examples_of_both(job: Path) -> None:
    shutil.move(job / "input/data/mask/day/5", job / "input/data/mask/day/6")
    cause = cause_of(DATA, job)
    assert cause.startswith("no image has a mask of the same z/x/y")
    assert "day/5/0/2.tif" in cause
    assert "day/6/0/2.tif" in cause


def test_bucket_that_refuses_is_told_with_the_permissions_it_needs(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    store.status, store.code = 403, "AccessDenied"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "word")
    arguments = (f"dataset.endpoint_url={store.url}", "dataset.image_bucket=planet-closed")
    cause = cause_of(DATA, job, *arguments)
    assert cause.startswith(
        "s3://planet-closed: access denied (403); check that the role or key in use may s3:ListBucket"
    )
    store.server.shutdown()
    store.server.server_close()


def test_checkpoint_of_another_band_count_is_told_with_both_counts(job: Path) -> None:
    other = build_model("albunet", num_classes=1, num_channels=5, encoder="resnet18", num_filters=2)
    torch.save(other.state_dict(), job / "other.pth")
    cause = cause_of(CHECKPOINT, job, f"checkpoint.path={job}/other.pth")
    assert cause.startswith(
        f"{job}/other.pth: not weights of this network: trained for 5 band(s), channels[].bands name 2"
    )
    assert list((job / "model").iterdir()) == []


def test_key_given_twice_is_told_with_its_line(job: Path) -> None:
    path = job / "input/data/config/experiment.yml"
    path.write_text(path.read_text() + "model: {name: albunet}\n")
    cause = cause_of(2, job)
    assert cause.startswith("experiment.yml: not readable as YML: the key 'model' stands twice")
    assert "line" in cause


def test_scene_that_was_never_cut_into_tiles_is_told_by_name_and_size(job: Path) -> None:
    path = job / "input/data/imagery/day/5/2/2.tif"
    write_tile(path, np.zeros((1, 4000, 5000), np.uint8), compress="deflate")
    cause = cause_of(DATA, job)
    assert cause.startswith("channel:imagery/day/5/2/2.tif: 5000 x 4000 pixels, a tile has at most")
    assert not list((job / "model").glob("*.pth"))


@pytest.fixture
def full_model_volume(job: Path) -> Iterator[Path]:
    """A volume of 1 MiB at /opt/ml/model."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", job / "model"], check=False).returncode:
        pytest.skip("mounting a small volume needs root")
    yield job / "model"
    subprocess.run(["umount", job / "model"], check=True)


def test_full_model_volume_is_told_with_numbers_before_anything_is_trained(job: Path, full_model_volume: Path) -> None:
    cause = cause_of(CONTRACT, job)
    assert cause.startswith(
        f"{full_model_volume} has room for 1.0 MB; the last checkpoint, the next one and the best model need"
    )
    assert list(full_model_volume.iterdir()) == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no such folder"),
        (lambda folder: (shutil.rmtree(folder), folder.write_text("")), "no such folder"),
        (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "no directories lie below channel:mask"),
    ],
    ids=["missing", "a file", "empty"],
)
def test_channel_that_holds_nothing_to_read_is_told_by_name(
    job: Path, spoil: Callable[[Path], object], message: str
) -> None:
    (job / "input/config/inputdataconfig.json").write_text('{"config": {}, "imagery": {}, "mask": {}}')
    spoil(job / "input/data/mask")
    cause = cause_of(DATA, job)
    assert "channel:mask" in cause
    assert message in cause


def test_channel_without_permission_to_read_is_told_by_name(job: Path) -> None:
    """Root may read anything: its run becomes another user's."""
    folder = job / "input/data/imagery/day"
    folder.chmod(0)
    code = """
import os, sys
from robosat_pink import storage
from robosat_pink.errors import DataError
if os.getuid() == 0:
    os.setuid(65534)
try:
    storage.Location.parse(sys.argv[1]).pages("day", list)
except DataError as error:
    print(error)
"""
    for each in (job, *job.parents):
        if each.is_relative_to("/tmp") and each != Path("/tmp"):
            each.chmod(0o755)
    run = subprocess.run(
        [sys.executable, "-c", code, folder.parent], capture_output=True, text=True, check=False, timeout=60
    )
    assert run.stdout.strip() == f"{folder}: no permission to read it", run.stderr


@pytest.mark.parametrize(
    ("override", "code", "cause"),
    [
        (
            "dataset.endpoint_url=localhost:9000",
            2,
            'command line: dataset.endpoint_url = "localhost:9000": accepted: ',
        ),
        ("dataset.image_bucket=My Bucket", 2, "'My Bucket': accepted: bucket/prefix, s3://bucket/prefix, /folder"),
        (
            "dataset.image_bucket=~/tiles",
            2,
            "'~/tiles': accepted: bucket/prefix, s3://bucket/prefix, /folder",
        ),
        ("checkpoint.path=s3://My Bucket/x.pth", 2, "'s3://My Bucket/': accepted: bucket/prefix"),
    ],
)
def test_place_that_is_no_place_is_told_with_what_is_accepted(job: Path, override: str, code: int, cause: str) -> None:
    assert cause_of(code, job, override).startswith(cause)


def test_panic_below_python_leaves_a_failure_file(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """As obstore's, which is no Exception."""

    def panic(*arguments: object) -> None:
        raise Panic("InvalidUri")

    monkeypatch.setattr("robosat_pink.training.run.run", panic)
    assert cause_of(1, job) == "Panic: InvalidUri"


def test_model_folder_that_cannot_be_written_is_told_with_what_to_check(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(ContractError, match=r"config.yml: cannot be written: Read-only .*; check the folder"):
        write_atomically(job / "model/config.yml", lambda file: None)
