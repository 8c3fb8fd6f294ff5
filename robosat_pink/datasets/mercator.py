"""Where tiles lie: Web Mercator in metres (EPSG:3857) and degrees, y counted from the north.

Source: OSGeo, "Tile Map Service Specification", profile global-mercator, which counts y from the south. Called by
`rasters.georeference`, `prediction`, `report` and `sample`.
"""

from __future__ import annotations

import math

HALF_WORLD_M = math.pi * 6378137  # half the side of the square that EPSG:3857 maps
FARTHEST = 700.0  # northing, in radii, whose sinh a float holds


def side_m(z: int) -> float:
    """Metres along the side of a tile, as EPSG:3857 counts them: true ones at the equator only."""
    return 2 * HALF_WORLD_M / 2**z


def tile_bounds(z: int, x: int, y: int) -> tuple[float, float, float, float]:
    """West, south, east, north of a tile, in metres of EPSG:3857."""
    side = side_m(z)
    west, north = x * side - HALF_WORLD_M, HALF_WORLD_M - y * side
    return west, north - side, west + side, north


def latitude(y: float, zoom: int) -> float:
    """The latitude of the northern edge of row y, in degrees; close to a pole for a row outside the zoom's."""
    northing = math.pi * (1 - 2 * y / 2**zoom)
    return math.degrees(math.atan(math.sinh(max(-FARTHEST, min(FARTHEST, northing)))))


def longitude(x: float, zoom: int) -> float:
    """The longitude of the western edge of column x, in degrees."""
    return 360 * x / 2**zoom - 180
