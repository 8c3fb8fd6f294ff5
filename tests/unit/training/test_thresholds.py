"""Thresholds of probability tried and chosen, from counts worked out by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor

from robosat_pink.training.metrics import Confusion
from robosat_pink.training.thresholds import (
    BINS,
    HALF,
    THRESHOLDS,
    ProbabilityHistogram,
    Threshold,
    choose_threshold,
    confusion_above,
    threshold_curve,
)


def histogram_of(logits: Tensor, mask: Tensor) -> np.ndarray:
    """From logits (N, H, W)."""
    histogram = ProbabilityHistogram()
    histogram.add(logits[:, None], mask)
    return histogram.counts()


def histogram(background: dict[float, int], of_class: dict[float, int]) -> np.ndarray:
    """From pixels by probability, which lie in the bin above it."""
    counts = np.zeros((2, BINS), dtype=np.int64)
    for truth, pixels in enumerate((background, of_class)):
        for probability, count in pixels.items():
            counts[truth, round(probability * BINS)] = count
    return counts


def test_curve_at_one_half_is_what_the_confusion_matrix_says() -> None:
    logits = torch.tensor([[[-2.0, 1e-8, 0.0, 3.0], [0.3, -0.3, 5.0, -5.0]]])
    mask = torch.tensor([[[0, 0, 1, 1], [1, 1, 255, 0]]], dtype=torch.uint8)
    histogram = histogram_of(logits, mask)
    assert histogram.sum() == 7  # one of 8 is ignored
    curve = threshold_curve(histogram)
    half = THRESHOLDS.tolist().index(0.5)
    assert half == HALF
    # Predicted: 1e-8 (wrong), 3.0 and 0.3 (right); of the class: 0.0, 3.0, 0.3, -0.3.
    assert (curve.precision[half], curve.recall[half], curve.iou[half]) == (2 / 3, 2 / 4, 2 / 5)
    assert curve.recall[0] == 1  # of all above 0.005, which -0.3 and 0 are
    assert curve.recall[-1] == 0  # 3.0 is a probability of 0.953
    assert np.isnan(curve.precision[-1])


def test_curve_of_a_class_that_is_nowhere_is_undefined_and_not_an_error() -> None:
    curve = threshold_curve(np.zeros((2, BINS), dtype=np.int64))
    assert np.isnan(curve.recall).all()
    assert np.isnan(curve.iou).all()
    assert choose_threshold(curve) is None


def test_chosen_threshold_has_the_highest_iou() -> None:
    # Above 0.5: 10 right of 30, none wrong. Above 0.3 to 0.4: 30 right, 10 wrong. Below: 90 wrong more.
    counts = histogram({0.1: 90, 0.4: 10}, {0.4: 20, 0.7: 10})
    chosen = choose_threshold(threshold_curve(counts))
    assert chosen == Threshold(0.4, 30 / 40, 10 / 30)  # nothing lies between 0.105 and 0.4: the nearest to 0.5
    assert confusion_above(counts, chosen.value).tolist() == [[90, 10], [0, 30]]
    assert confusion_above(counts, 0.5).tolist() == [[100, 0], [20, 10]]


def test_threshold_stays_where_it_is_if_no_other_is_better() -> None:
    chosen = choose_threshold(threshold_curve(histogram({0.2: 5}, {0.8: 5})))
    assert chosen == Threshold(0.5, 1.0, 1.0)


def test_class_without_a_pixel_has_no_threshold() -> None:
    assert choose_threshold(threshold_curve(histogram({0.2: 5, 0.7: 1}, {}))) is None


@pytest.mark.parametrize("threshold", [0.005, 0.435, 0.5, 0.995])
def test_confusion_above_a_threshold_is_that_of_shifted_logits(threshold: float) -> None:
    torch.manual_seed(0)
    logits, mask = 3 * torch.randn(2, 8, 8), torch.randint(0, 2, (2, 8, 8), dtype=torch.uint8)
    mask[0, 0] = 255
    confusion = Confusion(1)
    confusion.add((logits - np.log(threshold / (1 - threshold)))[:, None], mask)
    assert confusion_above(histogram_of(logits, mask), threshold).tolist() == confusion.counts.tolist()
