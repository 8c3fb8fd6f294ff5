"""Metrics worked out by hand from a confusion matrix."""

import math

import numpy as np
import pytest
import torch

from robosat_pink.training import metrics
from robosat_pink.training.metrics import Confusion, scores

TP, FP, FN, TN = 30, 30, 10, 30
BINARY = np.array([[TN, FP], [FN, TP]])


def test_names_are_frozen() -> None:
    assert metrics.NAMES == ("loss", "iou", "miou", "precision", "recall", "f1", "accuracy", "mcc", "kappa")


def test_false_positives_lower_precision_and_false_negatives_recall() -> None:
    found = scores(BINARY, ["snow"], loss=0.5)
    assert found["precision"] == pytest.approx(30 / 60)
    assert found["recall"] == pytest.approx(30 / 40)
    assert found["f1"] == pytest.approx(2 * 30 / (2 * 30 + 30 + 10))
    assert found["iou"] == pytest.approx(30 / 70)
    assert found["miou"] == pytest.approx((30 / 70 + 30 / 70) / 2)
    assert found["accuracy"] == pytest.approx(60 / 100)
    assert found["mcc"] == pytest.approx((30 * 30 - 30 * 10) / math.sqrt(60 * 40 * 60 * 40))
    # Chance agreement: truth 60/40, predicted 40/60: (60 * 40 + 40 * 60) / 100^2 = 0.48.
    assert found["kappa"] == pytest.approx((0.6 - 0.48) / (1 - 0.48))
    assert found["loss"] == 0.5
    assert found["per_class"] == {"snow": {name: found[name] for name in metrics.CLASS_NAMES}}


def test_several_classes_are_averaged() -> None:
    found = scores(np.array([[4, 1, 0], [0, 3, 1], [1, 0, 0]]), ["rock", "snow", "water"], loss=0.0)
    assert found["per_class"]["rock"]["iou"] == pytest.approx(4 / 6)
    assert found["per_class"]["snow"]["precision"] == pytest.approx(3 / 4)
    assert found["per_class"]["snow"]["recall"] == pytest.approx(3 / 4)
    assert found["per_class"]["water"]["iou"] == 0
    assert found["iou"] == found["miou"] == pytest.approx((4 / 6 + 3 / 5 + 0) / 3)
    assert found["accuracy"] == pytest.approx(7 / 10)


def test_perfect_tile_without_positives_spoils_nothing() -> None:
    found = scores(np.array([[100, 0], [0, 0]]), ["snow"], loss=0.0)
    assert found["accuracy"] == found["miou"] == 1
    for name in ("iou", "precision", "recall", "f1", "mcc", "kappa"):
        assert math.isnan(found[name]), name


def test_class_that_is_nowhere_takes_no_part_in_the_mean() -> None:
    found = scores(np.array([[5, 0, 0], [0, 5, 0], [0, 0, 0]]), ["rock", "snow", "water"], loss=0.0)
    assert found["iou"] == found["f1"] == 1
    assert math.isnan(found["per_class"]["water"]["iou"])


def test_missed_class_has_recall_zero_and_no_precision() -> None:
    found = scores(np.array([[90, 0], [10, 0]]), ["snow"], loss=0.0)
    assert found["recall"] == found["iou"] == found["f1"] == 0
    assert math.isnan(found["precision"])


def test_confusion_counts_truth_in_rows_over_batches_and_leaves_out_ignored_pixels() -> None:
    confusion = Confusion(num_classes=1)
    logits = torch.tensor([[2.0, -1.0], [0.0, 3.0]]).view(1, 1, 2, 2)
    confusion.add(logits, torch.tensor([[[1, 1], [0, 255]]], dtype=torch.uint8))
    confusion.add(logits, torch.tensor([[[0, 255], [255, 255]]], dtype=torch.uint8))
    assert confusion.counts.tolist() == [[1, 1], [1, 1]]


def test_confusion_of_several_classes_takes_the_largest_logit() -> None:
    confusion = Confusion(num_classes=3)
    logits = torch.tensor([[5.0, 0.0], [1.0, 4.0], [0.0, 9.0]]).view(1, 3, 1, 2)
    confusion.add(logits, torch.tensor([[[0, 1]]], dtype=torch.uint8))
    assert confusion.counts.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_undefined_numbers_are_nan_in_the_log_and_null_in_json() -> None:
    found = scores(np.array([[100, 0], [0, 0]]), ["snow"], loss=0.25)
    line = metrics.log_line("val", 3, 50, found, tiles=7)
    assert line.startswith("phase=val epoch=3 epochs=50 val_loss=0.250000 val_iou=nan val_miou=1.000000 ")
    assert line.endswith(" tiles=7")
    assert metrics.as_json(found)["per_class"]["snow"]["iou"] is None


@pytest.mark.parametrize(
    ("value", "best", "better"),
    [
        (0.5, None, True),
        (0.5, 0.4, True),
        (0.4, 0.4, False),
        (math.nan, None, True),
        (math.nan, 0.1, False),
        (0.1, math.nan, True),
    ],
)
def test_a_score_replaces_the_best_only_if_it_is_higher(value: float, best: float | None, better: bool) -> None:
    assert metrics.is_better(value, best) is better
