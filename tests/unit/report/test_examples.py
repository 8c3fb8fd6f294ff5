"""Example tiles chosen from counts worked out by hand."""

import numpy as np
import pytest

from robosat_pink.report.examples import choose_examples, tile_ious
from robosat_pink.training.final_evaluation import TileResults


def confusions(*tiles: tuple[int, int, int, int]) -> np.ndarray:
    return np.array(tiles, dtype=np.int64).reshape(-1, 2, 2)


def results(tiles: np.ndarray, pixels: int = 100) -> TileResults:
    none = np.zeros((0, 0))
    rows = np.arange(len(tiles)) + 10
    return TileResults(rows, rows, tiles, np.full(len(tiles), pixels), None, none, none, 0.5, 0, 0.0)


def test_score_of_a_tile_is_the_iou_of_the_only_class() -> None:
    ious = tile_ious(confusions((80, 5, 5, 10), (100, 0, 0, 0), (0, 0, 0, 100)), is_single=True)
    assert ious[0] == 10 / 20
    assert np.isnan(ious[1])  # no pixel of the class, and none predicted
    assert ious[2] == 1


def test_score_of_a_tile_with_several_classes_is_the_mean_over_those_met() -> None:
    matrix = np.array([[[50, 0, 0], [10, 40, 0], [0, 0, 0]]])
    assert tile_ious(matrix, is_single=False)[0] == pytest.approx((50 / 60 + 40 / 50) / 2)


def test_best_median_and_worst_are_shown_and_none_twice() -> None:
    tiles = confusions(*((0, 100 - right, 0, right) for right in range(10, 100, 5)))  # IoU 0.10 to 0.95
    examples = choose_examples(results(tiles), is_single=True)
    assert examples == {"best": [17, 16, 15], "median": [9, 8, 7], "worst": [0, 1, 2]}


@pytest.mark.parametrize(
    ("number", "sizes"),
    [(0, (0, 0, 0)), (1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (5, (2, 1, 2)), (7, (3, 1, 3))],
)
def test_few_tiles_are_shown_once_each(number: int, sizes: tuple[int, ...]) -> None:
    tiles = confusions(*((0, 50 - right, 0, 50 + right) for right in range(number)))
    examples = choose_examples(results(tiles), is_single=True)
    assert tuple(map(len, examples.values())) == sizes
    assert len({position for positions in examples.values() for position in positions}) == sum(sizes)


def test_tiles_with_next_to_nothing_to_see_are_left_aside_where_there_are_others() -> None:
    telling = [(0, 10 + wrong, 0, 90 - wrong) for wrong in range(12)]
    tiles = confusions((9999, 0, 1, 0), *telling, (0, 0, 0, 0), (500, 0, 0, 0))
    assert choose_examples(results(tiles), is_single=True)["worst"] == [12, 11, 10]
