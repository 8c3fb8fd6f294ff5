"""Wrong input, given to the container: the words, the exit code and the failure file that there are outside it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from conftest import S3Server, write_tile
from container.engine import Job, mounted_profile
from robosat_pink.models import build_model
from s3_answers import Store

pytestmark = pytest.mark.docker

CONFIG, DATA, CHECKPOINT, CONTRACT = 2, 3, 4, 5  # exit codes

Options = tuple[object, ...]


def cause_of(run: Job, code: int, *arguments: str, options: Options = (), network: str = "none") -> str:
    """The first line of the failure file, once what holds for every mistake of a user is checked."""
    ended, log = run.run("train", *arguments, options=options, network=network)
    assert ended == code, log
    failure = (run.base / "output/failure").read_bytes().decode("ascii")
    assert len(failure) <= 1024
    assert [line for line in log.splitlines() if line.startswith("error: ")] == [f"error: {run.cause}"]
    assert "Traceback" not in log
    assert not any(each.endswith((".pth", ".sagemaker-ignore")) for each in run.model)
    return run.cause


# What the experiment file says.


@pytest.mark.parametrize(
    ("wrong", "code", "cause"),
    [
        ({"model": {"epoch": 3}}, CONFIG, "smoke.yml: model.epoch = 3: no such key; did you mean model.epochs?"),
        ({"model": {"epochs": "many"}}, CONFIG, 'smoke.yml: model.epochs = "many": accepted: a whole number'),
        (
            {"model": {"tile_size": 70}},
            CONFIG,
            "smoke.yml: model.tile_size = 70: ternausnetv2 needs a multiple of 32; try 96",
        ),
        (
            {"dataset": {"mask_directory_regex": "x"}},
            DATA,
            "dataset.mask_directory_regex = 'x' matches no directory of channel:mask",
        ),
        ({"dataset": {"image_bucket": "channel:images"}}, CONFIG, "channel:images: there is no channel 'images'"),
        ({"dataset": {"image_bucket": "/opt/ml/tiles"}}, DATA, "dataset.image_bucket: /opt/ml/tiles: no such folder"),
        (
            {"dataset": {"image_bucket": "My Bucket"}},
            CONFIG,
            "'My Bucket': accepted: bucket/prefix, s3://bucket/prefix, /folder",
        ),
    ],
    ids=["misspelt key", "wrong type", "tile size", "expression", "channel", "folder", "bucket's name"],
)
def test_mistake_in_the_experiment_file_is_told(run: Job, wrong: dict[str, Any], code: int, cause: str) -> None:
    run.experiment(**wrong)
    assert cause_of(run, code).startswith(cause)


@pytest.mark.parametrize("share", [1.0, 1.5, 0, -0.1, float("nan")])
def test_train_percent_must_lie_strictly_between_0_and_1(run: Job, share: float) -> None:
    run.experiment(dataset={"train_percent": share})
    cause = cause_of(run, CONFIG)
    assert cause.startswith("smoke.yml: dataset.train_percent = ")
    assert "accepted: a number, above 0 and below 1" in cause


def add_an_experiment(run: Job) -> None:
    (run.base / "input/data/config/second.toml").write_text("")


def remove_the_experiment(run: Job) -> None:
    (run.base / "input/data/config/smoke.yml").unlink()


def repeat_a_key(run: Job) -> None:
    path = run.base / "input/data/config/smoke.yml"
    path.write_text(path.read_text() + "model: {name: albunet}\n")


# What the tiles are, and what the channels hold.


def first_tile(run: Job, channel: str) -> Path:
    return min((run.base / "input/data" / channel).rglob("*.tif"))


def cut_a_tile(run: Job) -> None:
    path = first_tile(run, "imagery")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def put_a_scene_among_the_tiles(run: Job) -> None:
    write_tile(first_tile(run, "imagery"), np.zeros((1, 4000, 5000), np.uint8), compress="deflate")


def put_a_pointer_among_the_tiles(run: Job) -> None:
    first_tile(run, "imagery").write_text(
        '<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        "<SourceFilename>/opt/ml/input/data/config/smoke.yml</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )


def write_a_7(run: Job) -> None:
    with rasterio.open(first_tile(run, "mask"), "r+") as file:
        file.write(np.full((1, 64, 64), 7, np.uint8))


def move_the_masks(run: Job) -> None:
    folder = run.base / "input/data/mask/20180528_sierra"
    (folder / "15").rename(folder / "14")


def empty_the_masks(run: Job) -> None:
    folder = run.base / "input/data/mask"
    folder.rename(run.base / "elsewhere")
    folder.mkdir()


def take_the_masks_away(run: Job) -> None:
    (run.base / "input/data/mask").rename(run.base / "elsewhere")


@pytest.mark.parametrize(
    ("spoil", "code", "cause"),
    [
        (remove_the_experiment, CONTRACT, "config must hold exactly one experiment file (.yml, .yaml, .json, .toml)"),
        (add_an_experiment, CONTRACT, "it holds second.toml, smoke.yml"),
        (repeat_a_key, CONFIG, "the key 'model' stands twice"),
        (cut_a_tile, DATA, ".tif: not a readable tile (GTiff, PNG, JPEG, WEBP)"),
        (put_a_scene_among_the_tiles, DATA, ".tif: 5000 x 4000 pixels, a tile has at most"),
        (put_a_pointer_among_the_tiles, DATA, ".tif: not a readable tile (GTiff, PNG, JPEG, WEBP)"),
        (write_a_7, DATA, ".tif: mask value 7"),
        (move_the_masks, DATA, "no image has a mask of the same z/x/y"),
        (empty_the_masks, DATA, "dataset.mask_bucket: no directories lie below channel:mask"),
        (take_the_masks_away, DATA, "dataset.mask_bucket: channel:mask: no such folder"),
    ],
)
def test_spoilt_channel_is_told(run: Job, spoil: Callable[[Job], None], code: int, cause: str) -> None:
    spoil(run)
    assert cause in cause_of(run, code)


def test_channel_without_permission_to_read_is_told_to_another_user_than_root(run: Job) -> None:
    """Root may read anything. Whoever runs the image as someone else gives the folders to that user."""
    for folder in (run.base / name for name in ("model", "output", "output/data", "checkpoints")):
        folder.chmod(0o777)
    scene = run.base / "input/data/imagery/20180528_sierra"
    scene.chmod(0)
    try:
        cause = cause_of(run, DATA, options=("--user", "65534"))
    finally:
        scene.chmod(0o755)
    assert cause == "channel:imagery/20180528_sierra: no permission to read it"


def test_misspelt_secret_is_told_without_the_secret(run: Job) -> None:
    run.config("hyperparameters", {"aws_secret_access_key": "wJalrXUtnFEMI"})
    code, log = run.run("train")
    assert code == CONFIG
    assert "aws_secret_access_key" in run.cause
    assert "wJalrXUtnFEMI" not in log + (run.base / "output/failure").read_text()


def test_host_whose_name_does_not_resolve_is_named(run: Job) -> None:
    run.config(
        "resourceconfig", {"current_host": "algo-1", "hosts": ["algo-1", "algo-2"], "network_interface_name": "eth0"}
    )
    cause = cause_of(run, CONTRACT, "runtime.peer_timeout_s=2")
    assert cause.startswith("the name of host algo-1 does not resolve after 2 s (")


# Weights and room for them.


def test_checkpoint_of_another_band_count_is_told_with_both_counts(run: Job) -> None:
    model = {"name": "albunet", "encoder": "resnet18", "num_filters": 2}
    run.experiment(model=model)
    other = build_model(num_classes=1, num_channels=5, **model)  # type: ignore[arg-type]
    torch.save(other.state_dict(), run.base / "other.pth")
    cause = cause_of(run, CHECKPOINT, "checkpoint.path=/opt/ml/other.pth")
    assert cause.startswith(
        "/opt/ml/other.pth: not weights of this network: trained for 5 band(s), channels[].bands name 4"
    )


@pytest.mark.parametrize(("size", "room"), [("4k", "4.1 kB"), ("1g", "1.1 GB")], ids=["full", "room for one"])
def test_model_volume_without_room_is_told_with_numbers_in_the_failure_file(run: Job, size: str, room: str) -> None:
    """A checkpoint of the smoke experiment has 0.70 GB; the output volume is another, and takes the failure file."""
    options = ("--tmpfs", f"/opt/ml/model:size={size}")
    cause = cause_of(run, CONTRACT, options=options)
    assert cause.startswith(
        f"/opt/ml/model has room for {room}; the last checkpoint, the next one and the best model need 1."
    )


# Buckets, on a server on loopback.


@pytest.fixture
def refusing_store() -> Iterator[Store]:
    store = Store()
    store.status, store.code = 403, "AccessDenied"
    yield store
    store.server.shutdown()
    store.server.server_close()


def test_bucket_that_does_not_exist_is_told_by_name(run: Job, s3: S3Server) -> None:
    s3.make_bucket("planet-snowcover-snow")
    run.experiment(dataset={"image_bucket": "planet-snowcover-imagrey", "mask_bucket": "planet-snowcover-snow"})
    variables = {
        "AWS_ENDPOINT_URL": s3.endpoint_url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
    }
    options = tuple(word for each in variables.items() for word in ("--env", "=".join(each)))
    cause = cause_of(run, DATA, options=options, network="host")
    assert cause.startswith("dataset.image_bucket: s3://planet-snowcover-imagrey: ")
    assert "does not exist" in cause


def test_bucket_that_refuses_is_told_with_the_permission_that_the_mounted_profile_lacks(
    run: Job, refusing_store: Store, tmp_path: Path
) -> None:
    (tmp_path / "aws").mkdir()
    (tmp_path / "aws/credentials").write_text("[esip]\naws_access_key_id = ESIPKEY\naws_secret_access_key = word\n")
    place = {"image_bucket": "planet-closed", "aws_profile": "esip", "endpoint_url": refusing_store.url}
    run.experiment(dataset=place)
    cause = cause_of(run, DATA, options=mounted_profile(tmp_path / "aws"), network="host")
    assert cause.startswith("s3://planet-closed: access denied (403); check that profile esip may s3:ListBucket")
    assert refusing_store.asked_as() == "ESIPKEY"
