"""Sentences on how far to trust the numbers of the best weights, for the page and the model card. Called by `build`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from robosat_pink.report.page import SPLIT_NAMES
from robosat_pink.training.boundaries import TOLERANCE
from robosat_pink.training.final_evaluation import BestEvaluation
from robosat_pink.training.intervals import PERCENT, RESAMPLES
from robosat_pink.training.thresholds import HALF, threshold_curve


def sentences(best: BestEvaluation) -> dict[str, str]:
    """What each number means, by name: interval, boundary F1, calibration error, threshold (of a single class)."""
    split, numbers = next(iter(best.numbers.items()))
    where = f"{SPLIT_NAMES[split]} tiles"
    meanings = {
        "interval": interval_sentence(numbers["ground_tiles"], where),
        "boundary_f1": (
            f"The boundary F1, {_number(numbers['boundary_f1'])} on {where}, says how well outlines lie: it is 1 if "
            f"each predicted boundary pixel is within {TOLERANCE} pixels of a true one, and each true one of a "
            "predicted one."
        ),
        "ece": (
            f"The expected calibration error (ECE), {_number(numbers['ece'])} on {where}, says how far probabilities "
            "are from the truth: it is the mean difference between a predicted probability and the share of pixels "
            "for which it comes true."
        ),
    }
    return meanings | ({"threshold": threshold_sentence(best)} if best.threshold else {})


def interval_sentence(ground_tiles: int, where: str) -> str:
    if ground_tiles < 2:
        return f"There are no intervals, for the {where} show a single place, and nothing can be resampled."
    return (
        f"An interval says how much a number depends on the choice of tiles: {PERCENT} % of {RESAMPLES} resamples of "
        f"the {ground_tiles} places in the {where} give a number inside."
    )


def threshold_sentence(best: BestEvaluation) -> str:
    """The chosen threshold, and the IoU above it beside that above 0.5."""
    assert best.threshold is not None
    value, iou, iou_at_half = best.threshold
    text = (
        f"Above a probability of {value:g} instead of 0.5, the IoU on validation tiles is {iou:.4f} instead of "
        f"{iou_at_half:.4f}"
    )
    if "holdout" in best.numbers:
        above, half = _ious(best.numbers["holdout"])
        text += f", and on held-out tiles {above} instead of {half}"
    return f"{text}; the threshold was chosen on validation tiles, which it flatters, and acts only if asked for."


def curve_sentence(best: BestEvaluation) -> str:
    """The scores of a single class above 0.5."""
    histogram = best.results["val"].histogram
    assert histogram is not None
    curve = threshold_curve(histogram)
    return (
        "On the validation tiles. A pixel is of the class above a probability of 0.5, which gives a precision of "
        f"{curve.precision[HALF]:.4f}, a recall of {curve.recall[HALF]:.4f} and an IoU of {curve.iou[HALF]:.4f}."
    )


def _ious(numbers: Mapping[str, Any]) -> tuple[str, str]:
    return _number(numbers["at_threshold"]["iou"]), _number(numbers["iou"])


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.4f}"
