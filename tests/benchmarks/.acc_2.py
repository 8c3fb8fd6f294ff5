"""What the networks learn from real tiles behind an S3 server on loopback: val IoU of the last epoch, and the time.

    python tests/benchmarks/accuracy.py SCENE [KEY=VALUE ...]

Needs the folder of real tiles (../shared/data), whose manifest says what is trained on and what is evaluated.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import boto3
import yaml

SHARED = Path(__file__).parents[3] / "shared" / "data"
PORT = 5602
RESNET = {"name": "albunet", "encoder": "resnet18", "num_filters": 16, "tile_size": 256, "batch_size": 4}
COSINE = {"lr": 0.001, "schedule": "cosine"}
DAY = r"modis_patagonia_snow_(?P<day>2015\d{3})$"

# Expressions, classes, statistics of the train tiles after scaling, and how to train.
SCENES: dict[str, dict[str, Any]] = {
    "s2_virginia_water": {
        "expression": "s2_virginia_water$",
        "class": "water",
        "mean": [0.119, 0.095, 0.074, 0.101],
        "std": [0.017, 0.020, 0.026, 0.094],
        "model": RESNET | COSINE | {"epochs": 60},
    },
    "l7_everest_glacier": {
        "expression": "l7_everest_glacier$",
        "class": "glacier",
        "mean": [0.711, 0.674, 0.696, 0.561],
        "std": [0.281, 0.300, 0.295, 0.308],
        "model": RESNET | COSINE | {"epochs": 30},
    },
    "l8_himachal_snow": {
        "expression": "l8_himachal_snow$",
        "class": "snow",
        "mean": [0.676, 0.645, 0.664, 0.642],
        "std": [0.292, 0.304, 0.327, 0.323],
        "model": {"name": "ternausnetv2", "tile_size": 256, "batch_size": 2, "epochs": 1, "lr": 0.0001},
    },
    "modis_patagonia_snow": {
        "expression": DAY,
        "class": "snow",
        "mean": [0.272, 0.275, 0.267, 0.329],
        "std": [0.253, 0.260, 0.261, 0.248],
        "model": RESNET | COSINE | {"lr": 0.0005, "epochs": 60, "loss": {"lovasz": 0.5, "cross_entropy": 1.0}},
    },
}


def main(scene: str, *overrides: str) -> None:
    settings = SCENES[scene]
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-p", str(PORT)], stdout=nowhere, stderr=nowhere
        )
        try:
            upload(scene)
            job = Path(folder)
            (job / "input/data/config").mkdir(parents=True)
            (job / "input/data/config" / f"{scene}.yml").write_text(yaml.safe_dump(experiment(scene, settings)))
            started = time.monotonic()
            environment = os.environ | CREDENTIALS | {"SAGEMAKER_BASE_DIR": folder}
            subprocess.run([sys.executable, "-u", "-m", "robosat_pink.train", *overrides], check=True, env=environment)
            numbers = json.loads((job / "model/metrics.json").read_text())
            seconds = time.monotonic() - started
            print(f"{scene}: last epoch's val IoU {numbers['val']['iou']:.4f} after {seconds:.0f} s")
        finally:
            server.terminate()


CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT}",
}


def upload(scene: str) -> None:
    """The scene's images and masks in the original's buckets, the val ids where an earlier run would leave them."""
    for _ in range(100):
        try:
            urlopen(f"http://127.0.0.1:{PORT}/moto-api/", timeout=1)
            break
        except OSError:
            time.sleep(0.2)
    os.environ.update(CREDENTIALS)
    client = boto3.client("s3")
    for kind, bucket in (("imagery", "planet-snowcover-imagery"), ("mask", "planet-snowcover-snow")):
        client.create_bucket(Bucket=bucket)
        for path in sorted(SHARED.joinpath(kind).glob(f"{scene}*/**/*.tif")):
            client.put_object(Bucket=bucket, Key=str(path.relative_to(SHARED / kind)), Body=path.read_bytes())
    client.create_bucket(Bucket="planet-snowcover-models")
    ids = "".join(val_ids(scene)).encode()
    client.put_object(Bucket="planet-snowcover-models", Key=f"{scene}/test_ids.txt", Body=ids)


def val_ids(scene: str, bucket: str = "planet-snowcover-imagery") -> list[str]:
    """Lines of test_ids.txt."""
    with (SHARED / "manifest.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["scene"].startswith(scene) and row["split"] == "val"]
    return [f"{bucket}_{row['scene']}-{row['x']}-{row['y']}-{row['z']}\n" for row in rows]


def experiment(scene: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "dataset": {
            "image_bucket": "planet-snowcover-imagery",
            "imagery_directory_regex": settings["expression"],
            "mask_bucket": "planet-snowcover-snow",
            "mask_directory_regex": settings["expression"],
            "split": {"from": f"s3://planet-snowcover-models/{scene}/test_ids.txt"},
        },
        "classes": [{"name": settings["class"]}],
        "channels": [{"bands": [1, 2, 3, 4], "mean": settings["mean"], "std": settings["std"]}],
        "model": settings["model"],
    }


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in SCENES:
        sys.exit(f"usage: accuracy.py {{{','.join(SCENES)}}} [KEY=VALUE ...]")
    main(*sys.argv[1:])
