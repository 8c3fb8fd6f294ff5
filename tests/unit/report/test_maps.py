"""Where tiles lie, and the map of a split."""

import re

import numpy as np
import pytest

from robosat_pink.datasets.tiles import Tile
from robosat_pink.report.maps import MAX_CELLS, bounds, link, metres_per_pixel, split_map

COLORS = {"train": "#111111", "val": "#222222", "holdout": "#333333"}


def test_bounds_are_those_of_the_web_mercator_grid() -> None:
    assert bounds(np.array([[0, 0, 0]])) == pytest.approx((-180, -85.0511, 180, 85.0511), abs=1e-4)
    assert bounds(np.array([[1, 1, 0]])) == pytest.approx((0, 0, 180, 85.0511), abs=1e-4)
    # mercantile.bounds(5524, 12666, 15)
    assert bounds(np.array([[15, 5524, 12666]])) == pytest.approx(
        (-119.31152, 37.76203, -119.30054, 37.77071), abs=1e-4
    )
    assert bounds(np.array([[1, 0, 0], [1, 1, 1]])) == pytest.approx((-180, -85.0511, 180, 85.0511), abs=1e-4)
    assert str(bounds(np.array([[1, 0, 0]]))) == "0.000° N to 85.051° N, 180.000° W to 0.000° E"


def test_link_shows_the_middle_of_the_tile_at_its_zoom() -> None:
    assert link(Tile(x=1, y=0, z=1)).endswith("?mlat=66.51326&mlon=90.00000#map=1/66.51326/90.00000")
    assert "#map=19/" in link(Tile(x=0, y=0, z=22))  # the map has no more


def test_pixel_is_as_large_as_the_equator_says() -> None:
    assert metres_per_pixel(np.array([[0, 0, 0]]), 256) == pytest.approx(156543.03, abs=0.1)
    assert metres_per_pixel(np.array([[15, 5524, 12666]]), 512) == pytest.approx(1.888, abs=0.01)


def squares(svg: str) -> dict[str, list[tuple[float, float, float]]]:
    """Left, top and width of every square, by color."""
    return {
        color: [tuple(map(float, square)) for square in re.findall(r"M(\S+) (\S+?)h([\d.]+)v", path)]  # type: ignore[misc]
        for color, path in re.findall(r'<path fill="(#\d+)" d="([^"]*)"', svg)
    }


def test_each_tile_is_a_square_in_the_color_of_its_split() -> None:
    zxy = np.array([[5, 10, 20], [5, 11, 20], [5, 11, 22]])
    svg = split_map(zxy, {"train": np.array([0]), "val": np.array([1, 2]), "holdout": np.array([], dtype=int)}, COLORS)
    assert 'viewBox="0 0 20 30"' in svg
    assert squares(svg) == {
        "#111111": [(0.5, 0.5, 9)],
        "#222222": [(10.5, 0.5, 9), (10.5, 20.5, 9)],
        "#333333": [],
    }
    assert 'aria-label="Map of the tiles: 1 train, 2 val, 0 holdout"' in svg


def test_days_of_one_tile_share_its_square() -> None:
    zxy = np.array([[5, 1, 1]] * 4)
    splits = {"train": np.array([0, 1, 2]), "val": np.array([3]), "holdout": np.array([], dtype=int)}
    shares = squares(split_map(zxy, splits, COLORS))
    assert shares["#111111"] == [(0.5, 0.5, 6.75)]
    assert shares["#222222"] == [(7.25, 0.5, 2.25)]


def test_map_of_a_million_tiles_stays_small() -> None:
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(1000), np.arange(1000)))
    zxy = np.stack([np.full(len(x), 18), x + 5000, y + 9000], axis=1).astype(np.int32)
    rows = np.arange(len(x))
    svg = split_map(zxy, {"train": rows[rows % 3 > 0], "val": rows[rows % 3 == 0], "holdout": rows[:0]}, COLORS)
    width, height = map(int, re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)[0])
    assert max(width, height) <= 10 * MAX_CELLS
    assert len(svg) < 1_500_000


def test_tiles_of_several_zooms_are_shown_at_the_lowest() -> None:
    zxy = np.array([[5, 2, 2], [6, 6, 4]])
    svg = split_map(zxy, {"train": np.array([0]), "val": np.array([1]), "holdout": np.array([], dtype=int)}, COLORS)
    assert squares(svg)["#222222"] == [(10.5, 0.5, 9)]
