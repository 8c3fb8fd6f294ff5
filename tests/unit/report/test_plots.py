"""Plots as SVG: what a reader can read off them."""

import base64
import math
import re

import numpy as np
import pytest

from robosat_pink.report import plots
from robosat_pink.training import metrics
from robosat_pink.training.thresholds import BINS, threshold_curve


def svg(uri: str) -> str:
    return base64.b64decode(uri.partition(",")[2]).decode()


def curves_of(val: list[float]) -> dict[str, str]:
    phases = [dict.fromkeys(metrics.NAMES, value) for value in val]
    history = [{"epoch": epoch, "train": phase, "val": phase} for epoch, phase in enumerate(phases, 1)]
    return plots.curves(history, best_epoch=1)[0]


def test_labels_of_a_narrow_range_are_inside_the_picture() -> None:
    picture = svg(curves_of([0.98501, 0.98512, 0.98525])["iou"])
    labels = re.findall(r'<text style="[^"]*text-anchor: end[^"]*" x="([-\d.]+)"[^>]*>(0\.985\d*)</text>', picture)
    assert labels
    for right, label in labels:
        assert float(right) > 4.5 * len(label)  # points; a digit of 9 points is 5.7 wide


def test_curve_that_is_undefined_throughout_says_so() -> None:
    assert "undefined: nothing to divide by" in svg(curves_of([math.nan, math.nan])["precision"])
    assert "undefined" not in svg(curves_of([0.5, math.nan])["precision"])


@pytest.mark.parametrize(
    ("snow_bin", "background_bin", "reason"),
    [(0, 0, "no probability is above 0.005"), (None, 150, "no pixel is of snow"), (150, 0, None)],
)
def test_empty_plot_of_precision_and_recall_says_why(
    snow_bin: int | None, background_bin: int, reason: str | None
) -> None:
    histogram = np.zeros((2, BINS), dtype=np.int64)
    histogram[0, background_bin] = 7
    if snow_bin is not None:
        histogram[1, snow_bin] = 5
    picture = svg(plots.precision_recall(threshold_curve(histogram), "snow")[0])
    assert (">no p" in picture) is (reason is not None)
    assert reason is None or reason in picture
