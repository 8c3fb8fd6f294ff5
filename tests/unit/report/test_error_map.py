"""The map of errors, from counts worked out by hand."""

import re
from itertools import pairwise

import numpy as np

from robosat_pink.report.error_map import LIMITS, NOT_EVALUATED, SHADES, WITHOUT_DATA, ErrorMap, error_map
from robosat_pink.report.maps import MAX_CELLS
from robosat_pink.training.final_evaluation import TileResults


def results(right_and_wrong: dict[int, tuple[int, int]], empty: tuple[int, ...] = ()) -> TileResults:
    """The results of tiles, by row; half of the wrong pixels are of each kind."""
    none = np.zeros((0, 0))
    rows = np.array(list(right_and_wrong), dtype=np.int64)
    confusions = np.array(
        [[[0, wrong // 2], [wrong - wrong // 2, right]] for right, wrong in right_and_wrong.values()], dtype=np.int64
    ).reshape(-1, 2, 2)
    listed = np.concatenate([rows, np.array(empty, dtype=np.int64)])
    return TileResults(listed, rows, confusions, np.full(len(rows), 1000), None, none, none, 0.5, len(empty), 0.0)


def lines(found: ErrorMap) -> dict[str, list[tuple[float, float]]]:
    """The starts of the lines of each color."""
    paths = re.findall(r'<path stroke="(#\w+)"[^>]* d="([^"]*)"', found.svg)
    return {
        color: [(float(x), float(y)) for x, y in re.findall(r"M(\S+) (\d+)h", path)]  # a square, up to its corner
        for color, path in paths
    }


def marks(found: ErrorMap) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="(\S+)" cy="(\S+)"', found.svg)]


def test_square_is_the_darker_the_larger_the_share_of_wrong_pixels() -> None:
    zxy = np.array([[5, 10, 20], [5, 11, 20], [5, 12, 20], [5, 10, 21], [5, 12, 21]])
    found = error_map(zxy, [results({0: (1000, 0), 1: (970, 30)}), results({2: (0, 1000)}, empty=(3,))], {})
    assert lines(found) == {
        NOT_EVALUATED: [(23.5, 15)],
        WITHOUT_DATA: [(1, 11)],
        SHADES[0]: [(0.5, 5)],
        SHADES[3]: [(10.5, 5)],
        SHADES[6]: [(20.5, 5)],
    }
    assert 'viewBox="0 0 30 20"' in found.svg
    assert [shade.squares for shade in found.shades] == [1, 0, 0, 1, 0, 0, 1]
    assert (found.without_data, found.not_evaluated) == (1, 1)
    assert [shade.words for shade in found.shades][::3] == ["below 0.5 %", "2 to 5 %", "20 % or more"]
    assert found.words.endswith("Half of the wrong pixels (1,030) are in 1 of 3 squares.")
    assert "count together" not in found.words


def test_limit_belongs_to_the_darker_shade() -> None:
    zxy = np.array([[5, column, 0] for column in range(len(LIMITS))])
    found = error_map(zxy, [results({row: (1000 - round(1000 * limit), round(1000 * limit)) for row, limit in
                                     enumerate(LIMITS)})], {})  # fmt: skip
    assert [shade.squares for shade in found.shades] == [0, 1, 1, 1, 1, 1, 1]


def test_days_of_one_tile_count_together_and_the_page_says_so() -> None:
    found = error_map(np.array([[5, 1, 1]] * 3), [results({0: (0, 100), 2: (900, 0)}, empty=(1,))], {})
    assert [shade.squares for shade in found.shades] == [0, 0, 0, 0, 0, 1, 0]  # 10 % of all pixels
    assert (found.without_data, found.not_evaluated) == (0, 0)
    assert "several days, count together." in found.words


def test_examples_are_marked_in_their_squares_and_side_by_side_in_one() -> None:
    zxy = np.array([[5, 1, 1], [5, 1, 1], [5, 1, 3], [5, 4, 1]])
    tiles = dict.fromkeys(range(4), (10, 0))
    found = error_map(zxy, [results(tiles)], {1: "best tile", 0: "worst tile", 3: "worst tile"})
    assert marks(found) == [(2.5, 5), (7.5, 5), (35, 5)]
    links = re.findall(r'<a class="mark" id="([^"]*)" href="([^"]*)" aria-label="([^"]*)">', found.svg)
    assert links == [
        ("square-1", "#tile-1", "1: best tile"),
        ("square-2", "#tile-2", "2: worst tile"),
        ("square-3", "#tile-3", "3: worst tile"),
    ]
    assert 'role="group" aria-label="Map of errors"' in found.svg


def test_no_mark_lies_on_another_or_outside_the_picture() -> None:
    found = error_map(
        np.array([[5, 1, 1]] * 9), [results(dict.fromkeys(range(9), (10, 1)))], dict.fromkeys(range(9), "")
    )
    centers = np.array(marks(found))
    apart = np.linalg.norm(centers[:, None] - centers, axis=2) + 99 * np.eye(9)
    radius = float(re.findall(r'r="([\d.]+)"', found.svg)[0])
    assert apart.min() >= 2 * radius
    left, top, width, height = map(float, re.findall(r'viewBox="(\S+) (\S+) (\S+) (\S+)"', found.svg)[0])
    assert ((centers - radius).min(axis=0) >= [left, top]).all()
    assert ((centers + radius).max(axis=0) <= [left + width, top + height]).all()


def test_map_of_errors_of_a_million_tiles_stays_small_and_is_of_their_parents() -> None:
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(1000), np.arange(1000)))
    zxy = np.stack([np.full(len(x), 18), x + 5000, y + 9000], axis=1).astype(np.int32)
    rows = np.arange(0, len(x), 3)
    wrong = (x[rows] + y[rows]) % 400
    confusions = np.stack([1000 - wrong, wrong, 0 * wrong, 0 * wrong], axis=1).reshape(-1, 2, 2)
    none = np.zeros((0, 0))
    of_all = TileResults(rows, rows, confusions, np.full(len(rows), 1000), None, none, none, 0.5, 0, 0.0)
    found = error_map(zxy, [of_all], {0: "worst"})
    assert len(found.svg) < 400_000
    squares = sum(shade.squares for shade in found.shades)
    assert 10_000 < squares <= MAX_CELLS**2
    assert found.words.startswith("Each square is a tile of zoom 15. ")


def test_shades_are_told_apart_by_lightness_alone() -> None:
    """A contrast of 1.2 between neighbours, and between the page and the lightest: as in grey, for any eye."""
    luminances = [1.0]
    for color in SHADES:
        linear = [(int(color[start : start + 2], 16) / 255) ** 2.2 for start in (1, 3, 5)]
        luminances.append(float(np.dot([0.2126, 0.7152, 0.0722], linear)))
    assert all((lighter + 0.05) / (darker + 0.05) > 1.2 for lighter, darker in pairwise(luminances))
