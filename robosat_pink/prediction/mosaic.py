"""One cloud-optimised GeoTIFF of a scene's tiles, written tile by tile. Called by `run` after all tiles are there."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.windows import Window

from robosat_pink.container.quantities import size
from robosat_pink.datasets.rasters.gdal import enter_environment
from robosat_pink.errors import ContractError
from robosat_pink.prediction.rasters import Legend, describe, geotransform, profile

BLOCK = 512  # pixels, side of a block in the file
CACHE_MB = 256  # of blocks in memory, besides the tile at hand


class MosaicTile(NamedTuple):
    zxy: tuple[int, int, int]
    pixels: np.ndarray  # (bands, H, W) uint8


def write_mosaic(
    path: Path,
    zxy: np.ndarray,
    tiles: Iterable[MosaicTile],
    tags: Mapping[str, str],
    legend: Legend | None = None,
    names: Sequence[str] = (),
) -> None:
    """Write tiles of one zoom and size, with positions (N, 3), to `path`; where there is none, the file has no data.

    Classes get overviews by mode, probabilities by average. Needs the disk space of the file twice meanwhile, beside
    `path`, and memory for CACHE_MB and one tile.
    """
    enter_environment()
    _, west, north = zxy.min(axis=0).tolist()
    _, east, south = zxy.max(axis=0).tolist()
    plain = path.with_name(f"plain-{path.name}")
    tiles = iter(tiles)
    first = next(tiles)
    bands, height, width = first.pixels.shape
    zoom = first.zxy[0]
    transform = geotransform(zoom, west, north, height, width)
    options = profile((south - north + 1) * height, (east - west + 1) * width, bands, transform)
    options |= {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "sparse_ok": True, "bigtiff": "IF_SAFER"}
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_MB):
            with rasterio.open(plain, "w", **options) as dataset:
                describe(dataset, tags, legend, names)
                for tile in itertools.chain([first], tiles):
                    column, row = (tile.zxy[1] - west) * width, (tile.zxy[2] - north) * height
                    dataset.write(tile.pixels, window=Window(column, row, width, height))
            rasterio.shutil.copy(
                plain,
                path,
                driver="COG",
                COMPRESS="DEFLATE",
                BLOCKSIZE=BLOCK,
                OVERVIEW_RESAMPLING="MODE" if legend else "AVERAGE",
                BIGTIFF="IF_SAFER",
                SPARSE_OK="YES",
            )
    except (RasterioError, CPLE_BaseError, OSError) as error:
        free = size(shutil.disk_usage(path.parent).free)
        raise ContractError(
            f"{path.parent}: a mosaic could not be written there: {error}; {free} are free; make room, or "
            "set predict.mosaic: false"
        ) from error
    finally:
        plain.unlink(missing_ok=True)
