"""The positions of tiles."""

import pytest

from robosat_pink.datasets.mercator import latitude, longitude, side_m, tile_bounds

HALF = 20037508.342789244


def test_bounds_of_the_world_and_of_a_quarter() -> None:
    assert tile_bounds(0, 0, 0) == (-HALF, -HALF, HALF, HALF)
    assert tile_bounds(1, 1, 0) == (0.0, 0.0, HALF, HALF)


def test_a_tile_of_zoom_15_is_1223_metres_wide() -> None:
    assert side_m(15) == pytest.approx(40075016.685578488 / 32768, abs=1e-9)


def test_the_square_ends_at_the_antimeridian_and_85_degrees() -> None:
    assert (longitude(0, 3), longitude(8, 3)) == (-180, 180)
    assert (latitude(0, 3), latitude(4, 3)) == (pytest.approx(85.0511287798), 0)


def test_row_that_no_map_has_is_at_a_pole() -> None:
    assert latitude(51200, 8) == pytest.approx(-90)
