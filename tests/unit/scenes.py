"""Small collections of tiles, written by code, for the tests of `datasets` and `loader`: folders imagery/ and mask/.

Mask values run from 0 to 4 in a pattern that no symmetry of the square leaves as it is, nor a shift by less than five
pixels along an axis, so that a mask that has parted from its image shows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conftest import pattern, write_tile
from robosat_pink.config import ChannelConfig, ClassConfig, DatasetConfig
from robosat_pink.datasets import TilePairs
from robosat_pink.datasets.images import ImageTiles
from robosat_pink.datasets.sides import Side
from robosat_pink.storage import Location

TWO_BANDS = (ChannelConfig(bands=(1, 2)),)
FIVE_CLASSES = tuple(ClassConfig(name=f"class {number}") for number in range(5))
SNOW = (ClassConfig(name="snow"),)


def mask_pattern(height: int, width: int) -> np.ndarray:
    """Mask (H, W) uint8 that belongs to `pattern(..., height, width)`."""
    row, column = np.ogrid[:height, :width]
    return ((2 * row + column) % 5).astype(np.uint8)


def mask_that_belongs_to(image: np.ndarray) -> np.ndarray:
    """The mask (..., H, W) of any cut or symmetry of a tile with the pattern, from band 1; 255 where it was padded."""
    row, column = np.divmod(image.astype(np.int64) - 10000, 64)
    return np.where(image == 0, 255, (2 * row + column) % 5)


def write_pair(
    folder: Path,
    x: int = 1,
    *,
    image: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    size: int = 8,
    scene: str = "scene",
    labels: str = "labels",
    image_nodata: float | None = None,
    mask_nodata: float | None = None,
) -> None:
    """The tile 5/x/2 in imagery/{scene} and in mask/{labels}, both with their pattern unless given."""
    image = pattern(2, size, size) if image is None else image
    mask = mask_pattern(*image.shape[-2:]) if mask is None else mask
    write_tile(folder / f"imagery/{scene}/5/{x}/2.tif", image, nodata=image_nodata)
    write_tile(folder / f"mask/{labels}/5/{x}/2.tif", mask, nodata=mask_nodata)


def pairs_in(
    folder: Path,
    classes: Sequence[ClassConfig] = FIVE_CLASSES,
    channels: Sequence[ChannelConfig] = TWO_BANDS,
    dataset: dict[str, Any] | None = None,
    **options: Any,
) -> TilePairs:
    """The pairs of a folder that `write_pair` filled, cut to 8 x 8 pixels in training and padded to multiples of 8."""
    where = {"image_bucket": f"{folder}/imagery", "mask_bucket": f"{folder}/mask"}
    sizes = {"tile_size": 8, "size_multiple": 8}
    return TilePairs(DatasetConfig(**(where | (dataset or {}))), channels, classes, **(sizes | options))


def images_in(where: str | Path, expression: str = ".*", endpoint_url: str | None = None, **options: Any) -> ImageTiles:
    """The images without masks of a folder or bucket, two bands of each."""
    location = Location.parse(str(where), endpoint_url=endpoint_url)
    return ImageTiles(Side(location, expression, "predict.images", "predict.images_regex"), TWO_BANDS, **options)
