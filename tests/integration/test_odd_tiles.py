"""Real GeoTIFFs that break careless readers, each trained on as the image tile of a run."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml

from conftest import write_tile
from robosat_pink.train import main

# Files of ../shared/data/odd that hold no valid pixel, cannot be read, or are a mask: they have tests of their own.
# riotiler_inverted_lat.tif holds -9999, its nodata value, in every pixel.
EMPTY = ["rasterio_all-nodata.tif", "riotiler_inverted_lat.tif"]
CORRUPT, MASK = "rasterio_corrupt.tif", "solaris_mask_0_255_nocrs.tif"
GOOD = [
    "20170915_020728_103d_3B_AnalyticMS.tif",
    "rasterio_alpha.tif",
    "rasterio_float_nan.tif",
    "rasterio_rgb_lzw.tif",
    "riocogeo_image_51px.tif",
    "riocogeo_image_nan.tif",
    "riotiler_cog_int16.tif",
    "riotiler_cog_rgb_mask.tif",
    "riotiler_cog_scale.tif",
]


def test_every_odd_file_has_a_test(shared: Path) -> None:
    assert {path.name for path in (shared / "data/odd").iterdir()} == {*GOOD, *EMPTY, CORRUPT, MASK}


def lay_out(job: Path, image: Path, mask: Path | None = None, **classes: Any) -> None:
    """Two places: at one the odd image, at the other a plain one of its bands, type and size; each in both parts."""
    with rasterio.open(image) as file:
        bands, height, width, dtype = file.count, file.height, file.width, file.dtypes[0]
    for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        target = job / f"input/data/imagery/scene/1/{x}/{y}.tif"
        labels = job / f"input/data/mask/scene/1/{x}/{y}.tif"
        if y == 0:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, target)
        else:
            write_tile(target, np.ones((bands, height, width), dtype))
        if mask:
            labels.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(mask, labels)
        else:
            write_tile(labels, np.tri(height, width, dtype=np.uint8), crs=None, transform=None)  # it lies nowhere
    experiment = {
        "dataset": {"image_bucket": "channel:imagery", "mask_bucket": "channel:mask", "train_percent": 0.5},
        "classes": [{"name": "snow", **classes}],
        "channels": [{"bands": list(range(1, bands + 1)), "scale": 3000}],
        "model": {
            "name": "albunet",
            "encoder": "resnet18",
            "num_filters": 2,
            "tile_size": 128,
            "batch_size": 2,
            "epochs": 1,
        },
        "runtime": {"workers": 0},
    }
    (job / "input/data/config/experiment.yml").write_text(yaml.safe_dump(experiment))


def empty_tiles(log: str) -> int:
    lines = [line for line in log.splitlines() if line.startswith("phase=")]
    return sum(int(word.removeprefix("empty=")) for line in lines for word in line.split() if word.startswith("empty="))


@pytest.mark.slow
@pytest.mark.parametrize("name", GOOD)
def test_odd_file_trains(name: str, shared: Path, opt_ml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(opt_ml, shared / "data/odd" / name)
    assert main([]) == 0
    assert empty_tiles(capsys.readouterr().out) == 0
    metrics = json.loads((opt_ml / "model/metrics.json").read_text())
    assert np.isfinite([metrics["train"]["loss"], metrics["val"]["loss"]]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", EMPTY)
def test_file_without_a_valid_pixel_is_counted_as_empty(
    name: str, shared: Path, opt_ml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out(opt_ml, shared / "data/odd" / name)
    assert main([]) == 0
    assert empty_tiles(capsys.readouterr().out) == 2


def test_corrupt_file_is_refused_by_name(shared: Path, opt_ml: Path) -> None:
    lay_out(opt_ml, shared / "data/odd" / CORRUPT)
    assert main([]) == 3
    cause = (opt_ml / "output/failure").read_text().splitlines()[0]
    assert cause.startswith("channel:imagery/scene/1/")
    assert ".tif: damaged, opens but cannot be read" in cause
    assert not list((opt_ml / "model").glob("*.pth"))


@pytest.mark.slow
def test_mask_of_0_and_255_without_crs_serves_with_its_values(
    shared: Path, opt_ml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = shared / "data/odd" / MASK
    with rasterio.open(mask) as file:
        values = file.read(1)
    image = write_tile(tmp_path / "image.tif", np.full((3, *values.shape), 700, np.uint16))
    lay_out(opt_ml, image, mask, values=[255])
    assert main(["model.tile_size=64"]) == 0
    assert empty_tiles(capsys.readouterr().out) == 0
    recall = json.loads((opt_ml / "model/metrics.json").read_text())["val"]["recall"]
    assert recall is not None  # undefined without a positive pixel in the truth


def test_vrt_named_tif_is_refused_and_what_it_points_to_is_not_read(opt_ml: Path, tmp_path: Path) -> None:
    secret = write_tile(tmp_path / "secret.tif", np.full((1, 64, 64), 77, np.uint8))
    lay_out(opt_ml, secret)
    vrt = (
        f'<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{secret}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    for x in (0, 1):
        (opt_ml / f"input/data/imagery/scene/1/{x}/0.tif").write_text(vrt)
    assert main([]) == 3
    assert "not a readable tile (GTiff, PNG, JPEG, WEBP)" in (opt_ml / "output/failure").read_text().splitlines()[0]
