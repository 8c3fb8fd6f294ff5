"""Probabilities and what came of them, worked out by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from robosat_pink.training.reliability import RELIABILITY_BINS, Reliability, calibration_error, reliability_curve


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def sums_of(logits: Tensor, mask: Tensor) -> np.ndarray:
    reliability = Reliability()
    reliability.add(logits, mask)
    return reliability.sums()


def test_single_class_is_judged_by_its_own_probability() -> None:
    logits = torch.tensor([[logit(0.25), logit(0.25), logit(0.25), logit(0.25), logit(0.85), logit(0.85), 0.0]])
    mask = torch.tensor([[1, 0, 0, 0, 1, 0, 255]], dtype=torch.uint8)
    sums = sums_of(logits[None, None], mask[None])
    assert reliability_curve(sums) == [
        {"probability": pytest.approx(0.25), "observed": 0.25, "pixels": 4},
        {"probability": pytest.approx(0.85), "observed": 0.5, "pixels": 2},
    ]
    assert calibration_error(sums) == pytest.approx((4 * 0 + 2 * 0.35) / 6)


def test_several_classes_are_judged_by_the_most_probable_one() -> None:
    probs = torch.tensor([[0.1, 0.1, 0.8], [0.7, 0.2, 0.1], [0.8, 0.1, 0.1]])
    mask = torch.tensor([[[2, 1, 0]]], dtype=torch.uint8)  # right, wrong, right
    sums = sums_of(probs.log().T[None, :, None], mask)
    assert sums[0].tolist() == [0, 0, 0, 0, 0, 0, 0, *sums[0, 7:].tolist()]
    assert sums[0].sum() == 3
    assert sums[2].sum() == 2
    # Bins: 0.7 alone, which is wrong; 0.8 twice, which are right.
    assert calibration_error(sums) == pytest.approx((0.7 + 2 * 0.2) / 3)


def test_certain_pixels_are_in_the_last_bin() -> None:
    sums = sums_of(torch.tensor([[[[100.0, -100.0]]]]), torch.tensor([[[1, 1]]], dtype=torch.uint8))
    assert sums[0].tolist() == [1] + [0] * (RELIABILITY_BINS - 2) + [1]
    assert calibration_error(sums) == 0.5


def test_no_pixel_has_no_calibration() -> None:
    sums = Reliability().sums()
    assert math.isnan(calibration_error(sums))
    assert reliability_curve(sums) == []
