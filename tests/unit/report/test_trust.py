"""Sentences about numbers, where these are few or undefined."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robosat_pink.report import trust
from robosat_pink.training.thresholds import BINS


def evaluation(histogram: np.ndarray, above: float = 0.0) -> Any:
    numbers = {"iou": 0.0, "at_threshold": {"iou": above}}
    shown = SimpleNamespace(histogram=histogram)
    return SimpleNamespace(shown=shown, shown_split="evaluated", numbers={"evaluated": numbers}, threshold=0.35)


@pytest.mark.parametrize(("places", "is_rough"), [(2, True), (9, True), (10, False)])
def test_interval_over_few_places_is_said_to_be_rough(places: int, is_rough: bool) -> None:
    sentence = trust.interval_sentence(places, "validation tiles")
    assert f"the {places} places in the validation tiles" in sentence
    assert ("So few places make it rough" in sentence) is is_rough


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        (1, "gives no precision (no pixel is predicted), a recall of 0.0000 and an IoU of 0.0000."),
        (0, "no recall (no pixel is of the class) and no IoU (no pixel is of the class or predicted)."),
    ],
)
def test_score_that_is_undefined_comes_with_its_reason(truth: int, words: str) -> None:
    histogram = np.zeros((2, BINS), dtype=np.int64)
    histogram[truth, 0] = 4
    sentence = trust.curve_sentence(evaluation(histogram))
    assert sentence.endswith(words)
    assert "nan" not in sentence


def test_threshold_that_changes_nothing_is_not_compared() -> None:
    empty = np.zeros((2, BINS), dtype=np.int64)
    assert trust.threshold_sentence(evaluation(empty)).endswith(
        "instead of 0.5, the IoU is 0.0000 as well on evaluated tiles"
    )
    assert trust.threshold_sentence(evaluation(empty, 0.25)).endswith("is 0.2500 instead of 0.0000 on evaluated tiles")
