"""Peak memory of all processes that predict a scene of many tiles together, with its mosaics: `start.sh predict`.

    python tests/benchmarks/predict_memory.py [--side 100] [--size 256] [--filters 2] [KEY=VALUE ...]

One scene of SIDE x SIDE tiles of SIZE x SIZE x 4 uint16, noise: hard links to a few files in a folder. The network is a
random unet of FILTERS filters (16 by default in an experiment). Memory is counted as in `peak_memory`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from machine import describe_machine
from noise_tiles import BANDS, write_tile
from peak_memory import START, watch

ZOOM, LEFT, TOP = 15, 10000, 10000
FILES = 16


def experiment(folder: Path, filters: int) -> dict[str, object]:
    return {
        "dataset": {"image_bucket": str(folder / "imagery"), "mask_bucket": str(folder / "mask")},
        "classes": [{"name": "noise"}],
        "channels": [{"bands": list(range(1, BANDS + 1)), "scale": 10000}],
        "model": {"name": "unet", "num_filters": filters, "batch_size": 4},
        "predict": {"model": str(folder / "model"), "images": str(folder / "imagery")},
    }


def write_scene(folder: Path, side: int, size: int) -> None:
    random = np.random.default_rng(0)
    sources = [folder / f"source-{number}.tif" for number in range(FILES)]
    for source in sources:
        write_tile(source, random.integers(1, 10000, (BANDS, size, size), dtype=np.uint16))
    for x in range(side):
        column = folder / f"imagery/scene/{ZOOM}/{LEFT + x}"
        column.mkdir(parents=True)
        for y in range(side):
            os.link(sources[random.integers(FILES)], column / f"{TOP + y}.tif")


def write_model(folder: Path, path: Path) -> None:
    from robosat_pink import checkpoint
    from robosat_pink.config import load_config, to_tree
    from robosat_pink.models import build_model

    config = load_config(path)
    network = build_model("unet", num_classes=1, num_channels=BANDS, num_filters=config.model.options["num_filters"])
    metadata = {"config": to_tree(config), "zooms": [ZOOM]}
    folder.mkdir()
    checkpoint.save(folder / "best.pth", {"state_dict": network.state_dict(), "metadata": metadata})


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of a prediction.")
    parser.add_argument("--side", type=int, default=100, help="tiles along each side of the scene")
    parser.add_argument("--size", type=int, default=256, help="pixels along each side of a tile")
    parser.add_argument("--filters", type=int, default=2)
    options, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_scene(folder, options.side, options.size)
        path = folder / "job/input/data/config/experiment.yml"
        path.parent.mkdir(parents=True)
        path.write_text(yaml.safe_dump(experiment(folder, options.filters)))
        write_model(folder / "model", path)
        started = time.perf_counter()
        environment = os.environ | {"SAGEMAKER_BASE_DIR": str(folder / "job")}
        with (
            (folder / "log").open("w") as log,
            subprocess.Popen(["bash", str(START), "predict", *overrides], env=environment, stdout=log) as run,
        ):
            peak = watch(run)
        if not (folder / "job/output/data/predictions/scene.tif").exists():  # after a stop, the exit code is 0, too
            sys.exit((folder / "log").read_text())
        seconds = time.perf_counter() - started
        print(f"peak of all processes: {peak / 1e9:.2f} GB; {options.side**2:,} tiles in {seconds:.0f} s")
    print(describe_machine())


if __name__ == "__main__":
    main()
