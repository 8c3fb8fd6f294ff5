"""Intervals of metrics over resampled ground tiles."""

import numpy as np
import pytest

from robosat_pink.training.intervals import INTERVAL_METRICS, intervals


def confusions(*rights: int) -> np.ndarray:
    """Tiles of 100 pixels of the class, of which so many are found."""
    return np.array([[[0, 0], [100 - right, right]] for right in rights])


def places(*numbers: int) -> np.ndarray:
    return np.array([[15, number, 0] for number in numbers])


def test_interval_is_the_range_of_most_resamples() -> None:
    """Of two tiles, one is found and one is missed: a resample has both, or one of them twice."""
    found = intervals(confusions(100, 0), places(1, 2), ["snow"])
    assert found["iou"] == [0.0, 1.0]
    assert set(found) == set(INTERVAL_METRICS)


def test_interval_of_many_tiles_is_that_of_the_binomial_distribution() -> None:
    tiles = confusions(*[100] * 80, *[0] * 20)
    found = intervals(tiles, places(*range(100)), ["snow"])
    # 0.8 plus and minus 1.96 * sqrt(0.8 * 0.2 / 100) = 0.078
    assert found["recall"] == [pytest.approx(0.722, abs=0.015), pytest.approx(0.878, abs=0.015)]


def test_tiles_of_one_place_are_drawn_together() -> None:
    """Four days of two places: with days that agree, as wide as if there was one day."""
    one_day = intervals(confusions(90, 40), places(1, 2), ["snow"])
    four_days = intervals(confusions(90, 90, 90, 90, 40, 40, 40, 40), places(1, 1, 1, 1, 2, 2, 2, 2), ["snow"])
    assert four_days == one_day
    assert one_day["recall"] == [0.4, 0.9]


def test_one_place_has_no_interval() -> None:
    found = intervals(confusions(90, 40), places(1, 1), ["snow"])
    assert set(found.values()) == {None}
    assert set(intervals(confusions()[:0].reshape(0, 2, 2), places()[:0].reshape(0, 3), ["snow"]).values()) == {None}


def test_undefined_metrics_are_left_out_and_no_warning_is_given(recwarn: pytest.WarningsRecorder) -> None:
    nothing = np.array([[[100, 0], [0, 0]], [[100, 0], [0, 0]], [[0, 0], [50, 50]]])
    found = intervals(nothing, places(1, 2, 3), ["snow"])
    assert found["iou"] == [0.5, 0.5]  # resamples without the third tile have no IoU
    assert intervals(nothing[:2], places(1, 2), ["snow"])["iou"] is None
    assert not recwarn


def test_intervals_are_the_same_each_time() -> None:
    tiles = np.random.default_rng(1).integers(0, 100, (12, 3, 3))
    first, second = (intervals(tiles, places(*range(12)), ["a", "b", "c"]) for _ in range(2))
    assert first == second
    low, high = first["miou"] or []
    assert low < high
