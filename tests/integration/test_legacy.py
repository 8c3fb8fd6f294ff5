"""What planet-snowcover's users have must work here: their configuration files, their buckets, their checkpoints."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from conftest import S3Server
from robosat_pink import checkpoint
from robosat_pink.errors import CheckpointError
from robosat_pink.models import build_model
from robosat_pink.sample import write_tiles
from robosat_pink.storage.credentials import usable_profile
from robosat_pink.train import main

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
FILES = [
    "ASO_3M_SD_USCAJW_20180423-Step3.toml",
    "ASO_3M_SD_USCASJ_20180601-Step2-V2.toml",
    "ASO_3M_SD_USCATE_20180528-Step1.toml",
    "CONFIG-TEMPLATE.toml",
    "co-train-checkpoint-resume.toml",
    "s3-new-train.toml",
]
# Directories as the project named them: for each expression one that it matches.
DIRECTORIES = {
    r"2018042\d_.*_tiled": "20180423_181409_0f31_3B_AnalyticMS_SR_tiled",
    r"20180601_.*_tiled$": "20180601_181447_0f52_3B_AnalyticMS_SR_tiled",
    r"20180528_.*": "20180528_181110_1025_3B_AnalyticMS_SR_clip_tiled",
    r"(.*)20180330(.*)_AnalyticMS_SR_clip": "out_20180330_172420_1054_3B_AnalyticMS_SR_clip",
}


def original_checkpoint(model: torch.nn.Module, epoch: int) -> dict[str, Any]:
    """As robosat.pink wrote them: DataParallel's prefix, the classifier never used, the optimizer beside."""
    weights = {f"module.{key}": value for key, value in model.state_dict().items()}
    weights |= {"module.resnet.fc.weight": torch.zeros(1000, 2048), "module.resnet.fc.bias": torch.zeros(1000)}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.000025)
    return {"epoch": epoch, "state_dict": weights, "optimizer": optimizer.state_dict()}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    write_tiles(folder, tiles=2, size=64)
    return folder


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ImageNet weights of ResNet-50, as torchvision would have fetched them."""
    folder = tmp_path_factory.mktemp("torch_home")
    (folder / "hub/checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), folder / "hub/checkpoints/resnet50-0676ba61.pth")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_configuration_file_of_the_original_trains_unchanged(
    name: str,
    shared: Path,
    scene: Path,
    torch_home: Path,
    s3: S3Server,
    opt_ml: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    usable_profile.cache_clear()  # which warns once a process
    text = (shared / "reference/configs" / name).read_text()
    experiment = tomllib.loads(text)
    (opt_ml / "input/data/config" / name).write_text(text)

    for kind, bucket, expression in (
        ("imagery", experiment["dataset"]["image_bucket"], experiment["dataset"]["imagery_directory_regex"]),
        ("mask", experiment["dataset"]["mask_bucket"], experiment["dataset"]["mask_directory_regex"]),
    ):
        bucket, _, prefix = bucket.partition("/")
        directory = DIRECTORIES.get(expression, expression.rstrip("$"))
        s3.make_bucket(bucket)
        s3.upload(scene / kind / "20180528_sierra", bucket, f"{prefix}/{directory}/".lstrip("/"))
        s3.client.put_object(Bucket=bucket, Key=f"{prefix}/{directory}.tif".lstrip("/"), Body=b"beside the directory")
    start = experiment.get("checkpoint", {}).get("path")
    if start:
        bucket, _, key = start.removeprefix("s3://").partition("/")
        torch.save(original_checkpoint(build_model("albunet", num_classes=1, num_channels=4), 50), tmp_path / "old.pth")
        s3.make_bucket(bucket)
        s3.client.put_object(Bucket=bucket, Key=key, Body=(tmp_path / "old.pth").read_bytes())

    code = main(["model.epochs=1", "runtime.workers=0"])
    log = capsys.readouterr().out
    assert code == 0, log
    assert "there is no aws_profile 'esip' on this machine" in log or "aws_profile 'esip' needs boto3" in log
    assert (opt_ml / "model/checkpoint-00001-of-00001.pth").exists()
    assert json.loads((opt_ml / "model/metrics.json").read_text())["val"]["loss"] > 0
    metadata = checkpoint.load(opt_ml / "model/best.pth")["metadata"]
    if start:
        assert f"starting from {start}" in log
        assert "ImageNet" not in log
        assert metadata["scale"] == ["raw"]
        assert "feeding digital numbers as they are" in log
    else:
        assert "ImageNet weights: " in log
        assert metadata["scale"] == ["auto"]


@pytest.mark.slow
def test_chain_of_three_experiments_runs_as_three_jobs(
    scene: Path,
    torch_home: Path,
    s3: S3Server,
    opt_ml: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each starts from the best weights that the one before has left in the bucket of models."""
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    for bucket in ("planet-snowcover-imagery", "planet-snowcover-snow", "planet-snowcover-models"):
        s3.make_bucket(bucket)
    for name in ("20180528_181110_tiled", "20180601_181447_tiled", "20180423_181409_tiled"):
        s3.upload(scene / "imagery/20180528_sierra", "planet-snowcover-imagery", f"{name}/")
    for name in (
        "ASO_3M_SD_USCATE_20180528_binary",
        "ASO_3M_SD_USCASJ_20180601_tiles_02",
        "ASO_3M_SD_USCAJW_20180423/ASO_3M_SD_USCAJW_20180423-MASK_02-COG",
    ):
        s3.upload(scene / "mask/20180528_sierra", "planet-snowcover-snow", f"{name}/")
    for step in (1, 2, 3):
        for folder in ("model", "input/data/config"):
            shutil.rmtree(opt_ml / folder)
        (opt_ml / "input/data/config").mkdir()
        shutil.copy(EXPERIMENTS / f"tuolumne-{step}.yml", opt_ml / "input/data/config")
        code = main(["model.epochs=1", "model.tile_size=64", "model.lr=1e-12", "runtime.workers=0"])
        log = capsys.readouterr().out
        assert code == 0, log
        if step > 1:
            assert f"starting from s3://planet-snowcover-models/tuolumne-{step - 1}/best.pth" in log
            assert checkpoint.load(opt_ml / "model/best.pth")["metadata"]["scale"] == [10000.0]
        best = (opt_ml / "model/best.pth").read_bytes()
        s3.client.put_object(Bucket="planet-snowcover-models", Key=f"tuolumne-{step}/best.pth", Body=best)


def test_published_weights_below_model_with_wrapped_norms_load() -> None:
    """As TernausNetV2's were saved: under "model", from DataParallel, activated batch norms with a "bn" inside."""
    model = build_model("ternausnetv2", num_classes=1, num_channels=3, num_filters=4)
    published = {
        f"module.{key}".replace(".bn1.", ".bn1.bn.").replace(".bn2.", ".bn2.bn."): value + 1
        for key, value in model.state_dict().items()
    }
    assert "module.conv2.block1.bn1.bn.weight" in published
    expected = {key: value + 1 for key, value in model.state_dict().items()}
    checkpoint.load_weights(model, {"model": published, "epoch": 3, "step": 4})
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_original_checkpoint_loads_and_says_what_it_left_aside() -> None:
    torch.manual_seed(1)
    old = build_model("albunet", num_classes=1, num_channels=4, encoder="resnet50", num_filters=4)
    new = build_model("albunet", num_classes=1, num_channels=4, encoder="resnet50", num_filters=4)
    loaded = checkpoint.load_weights(new, original_checkpoint(old, 50))
    assert loaded.epoch == 50
    assert loaded.ignored == ("resnet.fc.weight", "resnet.fc.bias")
    assert loaded.metadata == {}
    assert all(torch.equal(value, new.state_dict()[key]) for key, value in old.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 3, "num_channels": 4}, r"trained for 1 class\(es\), classes name 3"),
        ({"num_classes": 1, "num_channels": 11}, r"trained for 4 band\(s\), channels\[\].bands name 11"),
    ],
)
def test_checkpoint_of_another_class_or_band_count_says_so(options: dict[str, int], message: str) -> None:
    kind: dict[str, Any] = {"encoder": "resnet18", "num_filters": 4}
    old = build_model("albunet", num_classes=1, num_channels=4, **kind)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load_weights(build_model("albunet", **options, **kind), old.state_dict())
