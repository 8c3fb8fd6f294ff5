"""Seams at tile edges: a map by `predict` beside one pass of the network over the whole scene.

    python tests/benchmarks/seams.py MODEL [--buffers 0 16 32 64 128]

MODEL is the folder of a model that was trained on a scene of one block of tiles, such as s2_virginia_water:

    python tests/benchmarks/seams.py --train FOLDER        # trains one there first, for some minutes

For each buffer, it prints the share of pixels whose class differs from the one pass: of those within 32 pixels of an
edge between two tiles, and of all; then the same for a map of the scene cut into tiles half a tile further on. Pixels
without data do not count. The one pass takes some 10 GB of memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ours
import rasterio
import real_tiles
import torch
import yaml

from robosat_pink.prediction.rasters import NO_DATA
from robosat_pink.trained import load_model

SCENE = "s2_virginia_water"
NEAR = 32  # pixels from an edge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--train", type=Path, metavar="FOLDER")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--buffers", type=int, nargs="+", default=[0, 16, 32, 64, 128])
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train, arguments.epochs)
        arguments.model = arguments.train / "model"
    tiles = read_tiles(real_tiles.FOLDER / "imagery" / SCENE)
    whole, corner = joined(tiles)
    expected = one_pass(arguments.model, whole)
    side = next(iter(tiles.values())).shape[1]
    half = side // 2
    edges = near_edges(whole.shape[1:], side)
    for buffer in arguments.buffers:
        with tempfile.TemporaryDirectory() as folder:
            found = predicted(arguments.model, real_tiles.FOLDER / "imagery", Path(folder), buffer)
            shifted = whole[:, half:-half, half:-half]
            write_tiles(Path(folder) / "shifted" / SCENE, shifted, corner, side)
            moved = predicted(arguments.model, Path(folder) / "shifted", Path(folder) / "out", buffer)
        valid = (found != NO_DATA) & (expected != NO_DATA)
        differs = (found != expected) & valid
        inner = slice(half, -half), slice(half, -half)
        both = (moved != NO_DATA) & valid[inner]
        row = {
            "buffer": buffer,
            "near_edges_percent": 100 * differs[edges].sum() / valid[edges].sum(),
            "all_percent": 100 * differs.sum() / valid.sum(),
            "half_a_tile_further_percent": 100 * ((moved != found[inner]) & both).sum() / both.sum(),
        }
        print(json.dumps({name: round(float(value), 4) for name, value in row.items()}), flush=True)


def train(folder: Path, epochs: int) -> None:
    config = folder / "input/data/config"
    config.mkdir(parents=True, exist_ok=True)
    ids = folder / "val_ids.txt"
    ids.write_text("\n".join(real_tiles.val_ids(SCENE)))
    (config / "experiment.yml").write_text(yaml.safe_dump(ours.experiment("strong", SCENE, str(ids))))
    run("train", folder, f"model.epochs={epochs}")


def run(verb: str, folder: Path, *arguments: str) -> None:
    environment = os.environ | {"SAGEMAKER_BASE_DIR": str(folder)}
    command = [sys.executable, "-m", f"robosat_pink.{verb}", *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout)


def read_tiles(folder: Path) -> dict[tuple[int, int, int], np.ndarray]:
    tiles = {}
    for path in sorted(folder.rglob("*.tif")):
        with rasterio.open(path) as dataset:
            z, x, y = int(path.parts[-3]), int(path.parts[-2]), int(path.stem)
            tiles[z, x, y] = dataset.read(real_tiles.BANDS) * (dataset.dataset_mask() > 0)
    return tiles


def joined(tiles: dict[tuple[int, int, int], np.ndarray]) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The scene (C, H, W), and its first tile."""
    positions = np.array(list(tiles))
    z, x0, y0 = positions.min(axis=0).tolist()
    _, x1, y1 = positions.max(axis=0).tolist()
    blank = np.zeros_like(next(iter(tiles.values())))
    rows = [np.concatenate([tiles.get((z, x, y), blank) for x in range(x0, x1 + 1)], 2) for y in range(y0, y1 + 1)]
    return np.concatenate(rows, 1), (z, x0, y0)


def near_edges(shape: tuple[int, ...], side: int) -> np.ndarray:
    """(H, W) bool: pixels within NEAR of an edge between two tiles."""
    near = []
    for length in shape:
        position = np.arange(length)
        is_near = np.minimum(position % side, side - 1 - position % side) < NEAR
        near.append(is_near & (position >= NEAR) & (position < length - NEAR))
    edges: np.ndarray = near[0][:, None] | near[1][None, :]
    return edges


@torch.inference_mode()
def one_pass(model: Path, image: np.ndarray) -> np.ndarray:
    """Classes (H, W) of the whole scene at once, 255 without data; its border mirrored as `predict` does."""
    trained: Any = load_model(model / "best.pth")
    border = 128
    around = np.pad(image, ((0, 0), (border, border), (border, border)), mode="reflect").astype(np.float32)
    scale = torch.full((1, len(image)), 10_000.0)
    pixels, _ = trained._transform(torch.from_numpy(around)[None], torch.empty(0), scale, ())
    logits = trained.network(pixels)[0, 0, border:-border, border:-border]
    return np.where((image == 0).all(axis=0), NO_DATA, (logits > 0).numpy()).astype(np.uint8)


def predicted(model: Path, images: Path, folder: Path, buffer: int) -> np.ndarray:
    """Classes (H, W) of the scene's mosaic."""
    config = folder / "input/data/config"
    config.mkdir(parents=True, exist_ok=True)
    (config / "experiment.yml").write_text((model / "config.yml").read_text())
    where = (f"predict.images={images}", f"predict.images_regex={SCENE}$", f"predict.model={model}")
    settings = (f"predict.buffer={buffer}", "predict.probability=false", "runtime.precision=fp32")
    run("predict", folder, *where, *settings)
    with rasterio.open(folder / f"output/data/predictions/{SCENE}.tif") as dataset:
        classes: np.ndarray = dataset.read(1)
        return classes


def write_tiles(folder: Path, image: np.ndarray, corner: tuple[int, int, int], side: int) -> None:
    z, x0, y0 = corner
    for row in range(image.shape[1] // side):
        for column in range(image.shape[2] // side):
            path = folder / str(z) / str(x0 + column) / f"{y0 + row}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            cut = image[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
            options = {"count": len(cut), "height": side, "width": side, "dtype": cut.dtype, "nodata": 0}
            with rasterio.open(path, "w", driver="GTiff", compress="deflate", **options) as dataset:
                dataset.write(cut)


if __name__ == "__main__":
    main()
