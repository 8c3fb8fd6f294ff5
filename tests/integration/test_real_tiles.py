"""A short training on real tiles in buckets: Sentinel-2 over Virginia's coast, the split taken from an earlier list."""

import csv
import json
import math
from pathlib import Path

import pytest
import yaml

from conftest import S3Server
from robosat_pink.train import main

SCENE, ANOTHER_SCENE = "s2_virginia_water", "l8_himachal_snow"
BUCKETS = {"imagery": "planet-snowcover-imagery", "mask": "planet-snowcover-snow"}
IOU_OF_ALL_POSITIVE = 4.936 / 9.658  # sums of the val tiles' pos_frac and valid_frac in manifest.csv: 0.511

EXPERIMENT = {
    "dataset": {
        "image_bucket": BUCKETS["imagery"],
        "imagery_directory_regex": "s2_.*_water$",
        "mask_bucket": BUCKETS["mask"],
        "mask_directory_regex": "s2_.*_water$",
        "split": {"from": "channel:earlier/test_ids.txt"},
    },
    "classes": [{"name": "water", "color": "blue"}],
    "channels": [
        {
            "bands": [1, 2, 3, 4],
            "mean": [0.119, 0.095, 0.074, 0.101],
            "std": [0.017, 0.02, 0.026, 0.094],
            "scale": "auto",
        }
    ],
    "model": {
        "name": "albunet",
        "encoder": "resnet18",
        "num_filters": 8,
        "tile_size": 256,
        "batch_size": 3,
        "epochs": 6,
        "lr": 0.002,
        "schedule": "cosine",
    },
    "runtime": {"workers": 0, "precision": "fp32"},
}


def ids_of(shared: Path, part: str) -> list[str]:
    """The scene's tiles that manifest.csv puts into train or val, by the ids of an earlier run's files."""
    with (shared / "data/manifest.csv").open() as file:
        tiles = [row for row in csv.DictReader(file) if (row["scene"], row["split"]) == (SCENE, part)]
    return sorted(f"planet-snowcover-imagery_{SCENE}-{tile['x']}-{tile['y']}-{tile['z']}" for tile in tiles)


@pytest.mark.slow
def test_water_is_learnt_from_tiles_in_buckets_with_the_split_of_an_earlier_run(
    opt_ml: Path, s3: S3Server, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, bucket in BUCKETS.items():
        s3.make_bucket(bucket)
        for scene in (SCENE, ANOTHER_SCENE):
            s3.upload(shared / "data" / kind / scene, bucket, f"{scene}/")
    (opt_ml / "input/data/earlier").mkdir()
    (opt_ml / "input/data/earlier/test_ids.txt").write_text("\n".join(ids_of(shared, "val")) + "\n")
    (opt_ml / "input/data/config/experiment.yml").write_text(yaml.safe_dump(EXPERIMENT))

    assert main([]) == 0

    assert "(train 15, val 10, holdout 0); without partner: 0 images, 0 masks" in capsys.readouterr().out
    for part, name in (("train", "train_ids.txt"), ("val", "test_ids.txt")):
        assert sorted((opt_ml / "model" / name).read_text().split()) == ids_of(shared, part)
    numbers = json.loads((opt_ml / "model/metrics.json").read_text())
    for part in ("train", "val"):
        assert math.isfinite(numbers[part]["loss"])
    # Measured on one core: 0.924, 0.943 and 0.927 with seeds 0 to 2; 0.57 with seed 3, where so short a training with
    # so narrow a decoder leaves the hinge on its plateau.
    assert numbers["val"]["iou"] > 0.75 > IOU_OF_ALL_POSITIVE
