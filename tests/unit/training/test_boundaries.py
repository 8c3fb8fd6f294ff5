"""Boundaries of squares that are shifted, counted by hand."""

import math

import numpy as np
import pytest
import torch

from robosat_pink.training.boundaries import TOLERANCE, BoundaryCounts, boundary_f1

SIDE = 24


def square(row: int, column: int, side: int = 6, value: int = 1) -> torch.Tensor:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    mask[row : row + side, column : column + side] = value
    return mask


def counts(predicted: torch.Tensor, mask: torch.Tensor, classes: int = 1) -> list[list[int]]:
    logits = predicted.float()[None] - 0.5
    if classes > 1:
        logits = torch.stack([(predicted == number).float() for number in range(classes)])
    boundaries = BoundaryCounts(classes)
    boundaries.add(logits[None], mask[None])
    return boundaries.counts().tolist()


@pytest.mark.parametrize("shift", [0, 1, TOLERANCE])
def test_boundary_within_the_tolerance_matches(shift: int) -> None:
    outline = 4 * 5  # pixels around a square of 6 x 6
    assert counts(square(8, 8 + shift), square(8, 8)) == [[outline] * 4]


def test_boundary_beyond_the_tolerance_does_not_match() -> None:
    # Shifted by 3 columns: of the prediction's columns 11 to 16, the right one, 16, is 3 away from 13; of the truth's,
    # the left one, 8, is 3 away from 11.
    assert counts(square(8, 11), square(8, 8)) == [[20, 14, 20, 14]]
    assert boundary_f1(np.array([[20, 14, 20, 14]])).tolist() == [pytest.approx(0.7)]


def test_border_of_missing_data_and_of_the_tile_is_no_boundary() -> None:
    mask = torch.ones(SIDE, SIDE, dtype=torch.uint8)
    mask[:, 12:] = 255
    assert counts(torch.ones(SIDE, SIDE), mask) == [[0] * 4]
    assert np.isnan(boundary_f1(np.zeros((1, 4)))).all()


def test_boundary_near_missing_data_or_the_edge_is_not_counted() -> None:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    mask[12:] = 1
    mask[:, 20:] = 255
    # The row 12, from column 2 to 17: without two columns at either end.
    assert counts(mask == 1, mask) == [[16] * 4]


def test_padding_changes_nothing() -> None:
    mask = square(1, 8)
    padded = torch.nn.functional.pad(mask, [0, 16, 0, 8], value=255)
    predicted = torch.nn.functional.pad(square(2, 9), [0, 16, 0, 8])
    assert counts(predicted, padded) == counts(square(2, 9), mask)


def test_each_of_several_classes_has_its_boundary() -> None:
    both = square(4, 4) + square(12, 12, value=2)
    found = counts(both, both, classes=3)
    assert found[1:] == [[20] * 4, [20] * 4]
    assert found[0] == [2 * 28 - 0] * 4  # around two squares of 6 x 6, corners included
    only_one = square(4, 4)
    assert counts(only_one, both, classes=3)[2] == [0, 0, 20, 0]
    assert boundary_f1(np.array([[0, 0, 20, 0], [0, 0, 0, 0], [10, 0, 10, 0]]))[0] == 0
    assert math.isnan(boundary_f1(np.array([[0, 0, 0, 0]]))[0])
