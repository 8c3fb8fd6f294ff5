"""Whether image and mask of a pair show the same ground, as far as both say where they lie."""

import struct

import pytest
from rasterio import warp
from rasterio.crs import CRS

from robosat_pink.datasets.rasters.georeference import Georeference, disagreement, from_geotiff

SIDE = 1222.9924525628  # metres of a tile at zoom 15, in EPSG:3857
PIXEL = SIDE / 64


def at(x: float, y: float, pixel: float = PIXEL, crs: int | str = 3857, south_up: bool = False) -> Georeference:
    """64 x 64 pixels whose north-west corner lies x and y tiles from the origin."""
    top = -y * SIDE
    if south_up:
        return Georeference(crs, (pixel, 0, x * SIDE, 0, pixel, top - 64 * pixel))
    return Georeference(crs, (pixel, 0, x * SIDE, 0, -pixel, top))


@pytest.mark.parametrize(
    "mask", [at(3, 5), at(3 + 1 / 64, 5 - 1 / 64), at(3.2, 5.1), at(3, 5, PIXEL * 1.1), at(3, 5, crs="LOCAL")]
)
def test_mask_of_the_same_ground_agrees_also_if_it_is_a_little_beside(mask: Georeference) -> None:
    mask = mask._replace(crs=CRS.from_epsg(3857).to_wkt() if mask.crs == "LOCAL" else mask.crs)
    assert disagreement(at(3, 5), mask, 64, 64) == ""


@pytest.mark.parametrize("mask", [at(4, 5), at(3, 6), at(3, -5), at(3.6, 5), at(3, 5, PIXEL / 4)])
def test_mask_of_other_ground_is_told_with_both_bounds(mask: Georeference) -> None:
    reason = disagreement(at(3, 5), mask, 64, 64)
    assert reason.startswith("shows other ground: its bounds are (")
    assert "TMS" in reason
    assert at(3, 5).words(64, 64) in reason
    assert mask.words(64, 64) in reason


def test_bounds_are_west_south_east_north() -> None:
    assert at(3, 5).words(64, 64) == "(3668.977358, -7337.954715, 4891.96981, -6114.962263) in EPSG:3857"
    assert at(3, 5, south_up=True).words(64, 64) == at(3, 5).words(64, 64)


def test_systems_that_differ_are_compared_on_the_ground() -> None:
    degrees = 360 / 2**15
    image = at(0, 1)
    same = Georeference(4326, (degrees / 64, 0, 0, 0, -degrees / 64, -degrees))
    assert disagreement(image, same, 64, 64) == ""
    assert disagreement(image, same._replace(transform=(degrees / 64, 0, 1, 0, -degrees / 64, 0)), 64, 64)


@pytest.mark.parametrize(
    "mask",
    [
        at(3, 5, south_up=True),
        Georeference(3857, (-PIXEL, 0, 4 * SIDE, 0, -PIXEL, -5 * SIDE)),
        Georeference(3857, (0, PIXEL, 3 * SIDE, -PIXEL, 0, -5 * SIDE)),
    ],
)
def test_rows_or_columns_that_run_the_other_way_are_told(mask: Georeference) -> None:
    assert disagreement(at(3, 5), mask, 64, 64).startswith("its rows or columns run in another direction")
    assert disagreement(mask, mask, 64, 64) == ""


def test_pixel_size_below_zero_is_taken_as_gdal_takes_it() -> None:
    keys = struct.pack("<12H", 1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 3857)
    scale, tie_point = struct.pack("<3d", 2, -2, 0), struct.pack("<6d", 0, 0, 0, 5, 9, 0)
    assert from_geotiff(scale, tie_point, keys, b"", "<") == (3857, (2, 0, 5, 0, -2, 9))


@pytest.mark.parametrize("crs", ['LOCAL_CS["WGS 84 / Pseudo-Mercator"]', 9999, 104903])
def test_system_that_cannot_be_compared_is_no_reason(crs: int | str) -> None:
    assert disagreement(at(3, 5), at(4, 5)._replace(crs=crs), 64, 64) == ""
    assert disagreement(at(4, 5)._replace(crs=crs), at(3, 5), 64, 64) == ""


def test_place_outside_of_a_projection_is_no_reason() -> None:
    assert disagreement(at(3, 5), Georeference(4326, (1, 0, 0, 0, -1, 900)), 64, 64) == ""


NONSENSE = [(0, 0, 0, 0, 0, 0), (float("nan"), 0, 0, 0, 1, 0), (1e308, 0, 1e308, 0, -1e308, 0)]


@pytest.mark.parametrize("transform", NONSENSE)
def test_georeference_that_makes_no_sense_is_no_reason(transform: tuple[float, ...]) -> None:
    assert disagreement(Georeference(3857, transform), at(3, 5), 64, 64) == ""


def test_systems_are_compared_across_the_line_where_180_degrees_are_minus_180() -> None:
    image = Georeference(4326, (0.09 / 64, 0, 179.97, 0, -0.09 / 64, -17))
    x, y = warp.transform(CRS.from_epsg(4326), CRS.from_epsg(32760), [179.97], [-17])
    mask = Georeference(32760, (9580 / 64, 0, x[0], 0, -9960 / 64, y[0]))
    assert disagreement(image, mask, 64, 64) == ""
    east = mask._replace(transform=(9580 / 64, 0, x[0] + 9580, 0, -9960 / 64, y[0]))
    assert "shows other ground" in disagreement(image, east, 64, 64)
