"""The georeference of a tile's file, and whether image and mask of a pair cover the same ground. No I/O.

`geotiff`, `gdal_bands` and `sidecars` call it to read georeferences, `pair_decoder` to compare them.
"""

from __future__ import annotations

import math
import re
import struct
from typing import NamedTuple

import numpy as np
from rasterio import warp
from rasterio.crs import CRS

from robosat_pink.datasets.mercator import latitude, longitude, tile_bounds
from robosat_pink.datasets.rasters.gdal import enter_environment

MODEL_TYPE, GEOGRAPHIC, PROJECTED = 1024, 2048, 3072  # keys of GeoTIFF 1.1, annex B
CODES = range(1024, 32767)  # EPSG codes; 32767 stands for a system that the file itself defines
LEAST_SHARED = 0.5  # intersection over union for the same ground; neighbouring tiles share an edge at most
LEAST_SAME = 0.95  # intersection over union that rounding leaves; a half-pixel shift of 64 x 64 leaves 0.97
LEAST_ALIKE = 0.9  # cosine of the angle between rows, or columns, of image and mask


class Georeference(NamedTuple):
    """A coordinate system and an affine transformation: x = a column + b row + c, y = d column + e row + f."""

    crs: int | str | bytes  # EPSG code; or WKT; or bytes of a GeoTIFF's own keys, not interpreted yet
    transform: tuple[float, float, float, float, float, float]  # a, b, c, d, e, f

    @property
    def is_south_up(self) -> bool:
        return self.transform[4] > 0

    def corners(self, height: int, width: int) -> np.ndarray:
        """x and y (4, 2) of the corners: the first row's start and end, then the last row's."""
        a, b, c, d, e, f = self.transform
        pixels = [(0, 0), (width, 0), (0, height), (width, height)]
        return np.array([(a * column + b * row + c, d * column + e * row + f) for column, row in pixels])

    def words(self, height: int, width: int) -> str:
        corners = self.corners(height, width)
        numbers = ", ".join(f"{number:.10g}" for number in (*corners.min(axis=0), *corners.max(axis=0)))
        return f"({numbers})" + (f" in EPSG:{self.crs}" if isinstance(self.crs, int) else "")


def from_geotiff(scale: bytes, tie_point: bytes, keys: bytes, parameters: bytes, order: str) -> Georeference | None:
    """Parse the bytes of ModelPixelScale, ModelTiepoint, GeoKeyDirectory and its parameters; None if incomplete.

    GeoTIFF 1.1, annex B.6 and section 7. `order` is "<" or ">".
    """
    if len(scale) < 16 or len(tie_point) != 48 or len(keys) < 16:
        return None
    x_size, y_size = struct.unpack_from(f"{order}2d", scale)
    column, row, _, x, y, _ = struct.unpack(f"{order}6d", tie_point)
    numbers = struct.unpack(f"{order}{len(keys) // 2}H", keys[: len(keys) // 2 * 2])
    values = {
        key: value
        for key, location, _, value in zip(*(numbers[first::4] for first in range(4, 8)), strict=False)
        if not location  # the value itself, not a reference into another tag
    }
    code = values.get(PROJECTED if values.get(MODEL_TYPE) == 1 else GEOGRAPHIC, 0)
    crs = code if code in CODES else keys + b"|" + parameters
    y_size = abs(y_size)  # as GDAL does
    return Georeference(crs, (x_size, 0.0, x - column * x_size, 0.0, -y_size, y + row * y_size))


def from_auxiliary(wkt: str, numbers: str) -> Georeference | None:
    """Parse an .aux.xml file's SRS and GeoTransform, which is c, a, b, f, d, e; None if they are malformed."""
    try:
        c, a, b, f, d, e = (float(number) for number in numbers.split(","))
        return of(CRS.from_wkt(wkt), (a, b, c, d, e, f))
    except ValueError:  # CRSError derives from it
        return None


def of(crs: CRS, transform: tuple[float, float, float, float, float, float]) -> Georeference:
    return Georeference(crs.to_epsg() or crs.to_wkt(), transform)


def disagreement(image: Georeference, mask: Georeference, height: int, width: int) -> str:
    """Why the mask cannot belong to the image of the same size (H, W), in words; empty if it can, or if unknown.

    Neither `crs` may be bytes, unless they are equal.
    """
    if image == mask:
        return ""
    of_image, of_mask = image.corners(height, width), mask.corners(height, width)
    if image.crs != mask.crs:
        enter_environment()
        try:
            x, y = warp.transform(_crs(mask), _crs(image), *of_mask.T)
        except Exception:  # GDAL and PROJ share no error class: system unknown, or undefined at a corner
            return ""
        of_mask = np.array([x, y]).T
        if _crs(image).is_geographic:  # move the mask to the image's side of the antimeridian
            of_mask[:, 0] += 360 * np.round((of_image[:, 0].mean() - of_mask[:, 0]) / 360)
    if not (np.isfinite(of_image).all() and np.isfinite(of_mask).all()):
        return ""
    if not _shared(of_image, of_mask) >= LEAST_SHARED:
        return (
            f"shows other ground: its bounds are {mask.words(height, width)}, the image's "
            f"{image.words(height, width)}. Give files of the same ground the same name: where only one side counts y "
            "from the south (TMS), rename y to 2^z - 1 - y there"
        )
    if not all(_cosine(of_image[end] - of_image[0], of_mask[end] - of_mask[0]) >= LEAST_ALIKE for end in (1, 2)):
        return (
            "its rows or columns run in another direction than the image's, as both files say; write both the same way "
            "up, for instance by gdalwarp, which writes north up"
        )
    return ""


def is_beside(image: Georeference, mask: Georeference, height: int, width: int) -> bool:
    """Whether image and mask of one system, without `disagreement`, are further apart than rounding explains."""
    if image.crs != mask.crs or image.transform == mask.transform:
        return False
    return _shared(image.corners(height, width), mask.corners(height, width)) < LEAST_SAME


def is_from_the_south(tile: Georeference, height: int, width: int, name: str) -> bool:
    """Whether a tile (H, W) named .../z/x/y is where its name says only if y is counted from the south."""
    named = re.search(r"(\d+)/(\d+)/(\d+)[^/]*$", name)
    if tile.crs not in (3857, 4326) or not named:
        return False
    z, x, y = map(int, named.groups())
    corners = tile.corners(height, width)
    from_north, from_south = (_shared(corners, _of_tile(z, x, row, tile.crs)) for row in (y, 2**z - 1 - y))
    return from_south >= LEAST_SHARED > from_north


def _of_tile(z: int, x: int, y: int, crs: int) -> np.ndarray:
    """x and y (2, 2) of two corners of a slippy-map tile, y counted from the north."""
    if crs == 3857:
        west, south, east, north = tile_bounds(z, x, y)
        return np.array([(west, north), (east, south)])
    return np.array([(longitude(x, z), latitude(y, z)), (longitude(x + 1, z), latitude(y + 1, z))])


def _shared(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two bounding boxes, each around points (N, 2)."""
    low, high = np.maximum(first.min(axis=0), second.min(axis=0)), np.minimum(first.max(axis=0), second.max(axis=0))
    shared = float(np.prod(np.maximum(high - low, 0)))
    areas = [float(np.prod(np.ptp(corners, axis=0))) for corners in (first, second)]
    return shared / (sum(areas) - shared) if min(areas) > 0 else 1.0


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    lengths = math.hypot(*first) * math.hypot(*second)
    return float(first @ second) / lengths if lengths else 1.0


def _crs(georeference: Georeference) -> CRS:
    crs = georeference.crs
    return CRS.from_epsg(crs) if isinstance(crs, int) else CRS.from_wkt(str(crs))
