"""Sentences on how far to trust the numbers of an evaluation, for the page and the model card. Called by `build`."""

from __future__ import annotations

import math

from robosat_pink.report.page import SPLIT_NAMES
from robosat_pink.training.boundaries import TOLERANCE
from robosat_pink.training.final_evaluation import Evaluation
from robosat_pink.training.intervals import PERCENT, RESAMPLES
from robosat_pink.training.thresholds import HALF, threshold_curve

ENOUGH_PLACES = 10
FEW_PLACES = (
    "So few places make it rough, and often too narrow: one place weighs much, so that a number may lie near one end."
)


def sentences(evaluation: Evaluation, threshold_origin: str) -> dict[str, str]:
    """What each number means, by name: interval, boundary F1, calibration error, threshold (of a single class).

    `threshold_origin` says where the threshold is from.
    """
    split, numbers = next(iter(evaluation.numbers.items()))
    where = f"{SPLIT_NAMES[split]} tiles"
    meanings = {
        "interval": interval_sentence(numbers["ground_tiles"], where),
        "boundary_f1": (
            f"The boundary F1, {number(numbers['boundary_f1'])} on {where}, says how well outlines lie: it is 1 if "
            f"each predicted boundary pixel is within {TOLERANCE} pixels of a true one, and each true one of a "
            "predicted one."
        ),
        "ece": (
            f"The expected calibration error (ECE), {number(numbers['ece'])} on {where}, says how far probabilities "
            "are from the truth: it is the mean difference between a predicted probability and the share of pixels "
            "for which it comes true."
        ),
    }
    if not evaluation.threshold:
        return meanings
    return meanings | {"threshold": f"{threshold_sentence(evaluation)}; {threshold_origin}."}


def interval_sentence(ground_tiles: int, where: str) -> str:
    if ground_tiles < 2:
        return f"There are no intervals, for the {where} show a single place, and nothing can be resampled."
    sentence = (
        f"An interval says how much a number depends on the choice of tiles: {PERCENT} % of {RESAMPLES} resamples of "
        f"the {ground_tiles} places in the {where} give a number inside."
    )
    return sentence if ground_tiles >= ENOUGH_PLACES else f"{sentence} {FEW_PLACES}"


def threshold_sentence(evaluation: Evaluation) -> str:
    """The threshold, and the IoU of each split above it beside that above 0.5, without a full stop."""
    ious = []
    for split, numbers in evaluation.numbers.items():
        above, half = number(numbers["at_threshold"]["iou"]), number(numbers["iou"])
        difference = "as well" if above == half else f"instead of {half}"
        ious.append(f"{above} {difference} on {SPLIT_NAMES[split]} tiles")
    return f"Above a probability of {evaluation.threshold:g} instead of 0.5, the IoU is {', and '.join(ious)}"


def curve_sentence(evaluation: Evaluation) -> str:
    """The scores of a single class above 0.5, and why one is undefined."""
    histogram = evaluation.shown.histogram
    assert histogram is not None
    curve = threshold_curve(histogram)
    precision, recall, iou = (scores[HALF] for scores in (curve.precision, curve.recall, curve.iou))
    return (
        f"On the {SPLIT_NAMES[evaluation.shown_split]} tiles. A pixel is of the class above a probability of 0.5, "
        f"which gives {_score('a precision', precision, 'no pixel is predicted')}, "
        f"{_score('a recall', recall, 'no pixel is of the class')} and "
        f"{_score('an IoU', iou, 'no pixel is of the class or predicted')}."
    )


def _score(name: str, value: float, reason: str) -> str:
    return f"no {name.split()[-1]} ({reason})" if math.isnan(value) else f"{name} of {value:.4f}"


def number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.4f}"
