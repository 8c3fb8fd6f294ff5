"""Pairs of an image and a mask tile, of noise from a seed, in a folder for each bucket. Called by the benchmarks."""

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

BUCKETS = ("imagery", "mask")
SIZE, BANDS = 512, 4


def write_pairs(folder: Path, count: int, size: int = SIZE, seed: int = 0) -> list[str]:
    """The keys of `count` pairs, written below FOLDER/imagery (4 bands of uint16) and FOLDER/mask (uint8)."""
    random = np.random.default_rng(seed)
    keys = [f"scene/15/{10000 + number // 100}/{10000 + number % 100}.tif" for number in range(count)]
    for key in keys:
        image = random.integers(1, 10000, (BANDS, size, size), dtype=np.uint16)
        mask = random.integers(0, 2, (1, size, size), dtype=np.uint8)
        for bucket, pixels in zip(BUCKETS, (image, mask), strict=True):
            write_tile(folder / bucket / key, pixels)
    return keys


def write_tile(path: Path, pixels: np.ndarray) -> None:
    """Pixels (C, H, W) as a plain GeoTIFF, as the original's project wrote them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = pixels.shape
    profile = {"count": bands, "height": height, "width": width, "dtype": pixels.dtype.name, "crs": "EPSG:3857"}
    with rasterio.open(path, "w", driver="GTiff", transform=from_origin(0, height, 1, 1), **profile) as file:
        file.write(pixels)
