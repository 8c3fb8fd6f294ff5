"""Metrics from a confusion matrix (rows: truth, columns: prediction), and the table of their names.

0 / 0 is undefined: NaN here, null in metrics.json, and left out of means over classes. For example, a class that has no
pixel and is never predicted has no IoU, and does not change the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robosat_pink.losses import IGNORE

NAMES = ("loss", "iou", "miou", "precision", "recall", "f1", "accuracy", "mcc", "kappa")
CLASS_NAMES = ("iou", "precision", "recall", "f1")
PHASES = ("train", "val", "holdout")
EVALUATED = "evaluated"  # the phase of `evaluate`: its name in log, metrics.json, scenes.csv and report
PRINTED_NUMBER = r"([-+]?(?:[0-9]+\.?[0-9]*(?:[eE][-+]?[0-9]+)?|nan|inf))"


class Confusion:
    """Pixel counts (K, K) over any number of batches, K = 2 for a single class (background first)."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.size = max(num_classes, 2)
        self.counts = torch.zeros(self.size, self.size, dtype=torch.int64, device=device)

    def add(self, logits: Tensor, mask: Tensor) -> None:
        """Count the pixels of logits (N, K, H, W) and mask (N, H, W) uint8; pixels with mask 255 are ignored."""
        predicted = predicted_classes(logits)
        # Not torch.bincount: on a GPU it first fetches the largest value, for which the host waits.
        predicted = predicted.masked_fill(mask == IGNORE, self.size)
        for truth in range(self.size):
            of_truth = torch.where(mask == truth, predicted, self.size)
            self.counts[truth] += torch.stack([(of_truth == class_).sum() for class_ in range(self.size)])


def predicted_classes(logits: Tensor) -> Tensor:
    """The class numbers (N, H, W) int64 that logits (N, K, H, W) predict. A single class is 1, its background 0."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)


def scores(counts: np.ndarray, class_names: Sequence[str], loss: float) -> dict[str, Any]:
    """Every metric in NAMES and `per_class`, from a confusion matrix (K, K) of pixel counts.

    With one class, iou, precision, recall and f1 are those of the class, and miou is the mean of its IoU and the
    background's. With several classes, all are means over the classes.
    """
    matrix = np.asarray(counts, dtype=np.float64)
    correct = np.diag(matrix)
    truth, predicted, total = matrix.sum(axis=1), matrix.sum(axis=0), matrix.sum()
    by_class = {
        "iou": _ratio(correct, truth + predicted - correct),
        "precision": _ratio(correct, predicted),
        "recall": _ratio(correct, truth),
        "f1": _ratio(2 * correct, truth + predicted),
    }
    single = len(class_names) == 1
    summary = {name: values[1] if single else mean_of_defined(values) for name, values in by_class.items()}
    # Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004; Cohen, 1960.
    chance = (truth * predicted).sum()
    spread = math.sqrt((total**2 - (predicted**2).sum()) * (total**2 - (truth**2).sum()))
    values = {
        "loss": loss,
        **summary,
        "miou": mean_of_defined(by_class["iou"]),
        "accuracy": _ratio(correct.sum(), total),
        "mcc": _ratio(correct.sum() * total - chance, spread),
        "kappa": _ratio(correct.sum() * total - chance, total**2 - chance),
    }
    offset = 1 if single else 0
    return {name: float(values[name]) for name in NAMES} | {
        "per_class": {
            class_name: {name: float(by_class[name][number + offset]) for name in CLASS_NAMES}
            for number, class_name in enumerate(class_names)
        }
    }


def log_line(phase: str, epoch: int, epochs: int, values: dict[str, Any], **more: object) -> str:
    """`phase=val epoch=3 epochs=50 val_loss=0.412345 val_iou=…`: one line per phase and epoch."""
    numbers = " ".join(f"{_printed_name(phase, name)}={values[name]:.6f}" for name in NAMES)
    rest = "".join(f" {name}={value}" for name, value in more.items())
    return f"phase={phase} epoch={epoch} epochs={epochs} {numbers}{rest}"


def definitions() -> list[dict[str, str]]:
    """SageMaker's MetricDefinitions of a training: those of its phases, and its tiles per second."""
    by_phase = [definition for phase in PHASES for definition in definitions_of(phase)]
    return [*by_phase, {"Name": "train:tiles_per_s", "Regex": f"phase=train .* tiles_per_s={PRINTED_NUMBER}"}]


def definitions_of(phase: str) -> list[dict[str, str]]:
    """SageMaker's MetricDefinitions: `val:iou` and so on, each with the expression that matches it in a log line.

    The space before a name keeps it from matching the end of a longer name.
    """
    return [{"Name": f"{phase}:{name}", "Regex": f" {_printed_name(phase, name)}={PRINTED_NUMBER}"} for name in NAMES]


def with_every_name(values: Mapping[str, Any]) -> dict[str, Any]:
    """A phase's metrics from a resume point; metrics that its version did not have yet are NaN."""
    unknown = dict.fromkeys(CLASS_NAMES, math.nan)
    per_class = {class_name: unknown | scores for class_name, scores in values["per_class"].items()}
    return dict.fromkeys(NAMES, math.nan) | dict(values) | {"per_class": per_class}


def as_json(values: dict[str, Any]) -> dict[str, Any]:
    """The metrics with None in place of NaN, which JSON does not have."""
    return {
        name: as_json(value) if isinstance(value, dict) else None if _is_nan(value) else value
        for name, value in values.items()
    }


def mean_of_defined(values: np.ndarray) -> float:
    """The mean of the values that are not NaN; NaN if all are."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan


def is_better(value: float, best: float | None) -> bool:
    """Whether a score is better than the best so far. An undefined score (NaN) is better only than no score."""
    return best is None or value > best or (math.isnan(best) and not math.isnan(value))


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _printed_name(phase: str, name: str) -> str:
    return f"{phase}_{name}"


def _ratio(numerator: Any, denominator: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.equal(denominator, 0), np.nan, np.true_divide(numerator, denominator))
