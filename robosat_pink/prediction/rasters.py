"""The files of a map: class and probability tiles as GeoTIFFs. Called by `results` and `mosaic`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import rasterio
from affine import Affine
from PIL import ImageColor
from rasterio.io import MemoryFile

from robosat_pink.datasets.mercator import side_m, tile_bounds
from robosat_pink.datasets.rasters.gdal import enter_environment
from robosat_pink.losses import IGNORE

NO_DATA = IGNORE  # in class and probability tiles alike
PROBABILITY_STEPS = 200  # a probability of 1; half a percent a step
MADE_FROM = "ROBOSAT_PINK_MADE_FROM"  # the tag with the digest of everything that determines a tile


class Legend(NamedTuple):
    """What the numbers of a class tile mean: names and colors by number, the background's first for a single class."""

    names: Sequence[str]
    colors: Sequence[str]

    @property
    def color_table(self) -> dict[int, tuple[int, int, int, int]]:
        opaque = {number: (*ImageColor.getrgb(color)[:3], 255) for number, color in enumerate(self.colors)}
        return {**opaque, NO_DATA: (0, 0, 0, 0)}

    @property
    def tags(self) -> dict[str, str]:
        return {f"CLASS_{number}": name for number, name in enumerate(self.names)}


def geotransform(z: int, x: int, y: int, height: int, width: int) -> Affine:
    """From column and row of the tile z/x/y, of height x width pixels, to metres in EPSG:3857."""
    west, _, _, north = tile_bounds(z, x, y)
    return Affine(side_m(z) / width, 0, west, 0, -side_m(z) / height, north)


def profile(height: int, width: int, bands: int, transform: Affine) -> dict[str, Any]:
    return {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": bands,
        "dtype": "uint8",
        "nodata": NO_DATA,
        "crs": "EPSG:3857",
        "transform": transform,
        "compress": "deflate",
    }


def class_tile(classes: np.ndarray, zxy: tuple[int, int, int], legend: Legend, made_from: str) -> bytes:
    """The file of a class tile, from class numbers (H, W) uint8, 255 = no data."""
    return _tile(classes[None], zxy, legend.tags | {MADE_FROM: made_from}, legend)


def probability_tile(
    probabilities: np.ndarray, missing: np.ndarray, zxy: tuple[int, int, int], names: Sequence[str], made_from: str
) -> bytes:
    """The file of a probability tile, a band a class, from probabilities (K, H, W) and missing pixels (H, W) bool."""
    steps = np.rint(probabilities * PROBABILITY_STEPS).astype(np.uint8)
    steps[:, missing] = NO_DATA
    return _tile(steps, zxy, {MADE_FROM: made_from}, names=names)


def _tile(
    pixels: np.ndarray,
    zxy: tuple[int, int, int],
    tags: Mapping[str, str],
    legend: Legend | None = None,
    names: Sequence[str] = (),
) -> bytes:
    enter_environment()
    bands, height, width = pixels.shape
    with MemoryFile() as memory:
        with memory.open(**profile(height, width, bands, geotransform(*zxy, height, width))) as dataset:
            describe(dataset, tags, legend, names)
            dataset.write(pixels)
        content: bytes = memory.read()
        return content


def describe(dataset: Any, tags: Mapping[str, str], legend: Legend | None, names: Sequence[str]) -> None:
    """Write tags, color table and band names into a new dataset, before its pixels."""
    dataset.update_tags(**tags)
    if legend:
        dataset.write_colormap(1, legend.color_table)
    for band, name in enumerate(names, 1):
        dataset.set_band_description(band, name)
        dataset.update_tags(band, unit=f"0 to {PROBABILITY_STEPS} for probabilities of 0 to 1")


def made_from(content: bytes) -> str | None:
    """The digest in a tile's file; None if the file is damaged, or from another program."""
    enter_environment()
    if not content:
        return None
    try:
        with MemoryFile(content) as memory, memory.open(driver="GTiff") as dataset:
            dataset.checksum(1)  # reads all pixels
            digest = dataset.tags().get(MADE_FROM)
            return digest if isinstance(digest, str) else None
    except rasterio.errors.RasterioError:
        return None


def read_tile(content: bytes) -> np.ndarray:
    """The pixels (bands, H, W) uint8 of a class or probability tile."""
    enter_environment()
    with MemoryFile(content) as memory, memory.open(driver="GTiff") as dataset:
        pixels: np.ndarray = dataset.read()
        return pixels
