"""Scores of a single class at each threshold of probability, and the best of them. Called by `final_evaluation`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from robosat_pink.losses import IGNORE

BINS = 200  # number of bins of probability
THRESHOLDS = np.arange(1, BINS) / BINS
HALF = BINS // 2 - 1  # position of 0.5 in THRESHOLDS


class ThresholdCurve(NamedTuple):
    """Scores of a single class above each threshold of probability, (BINS - 1,) each."""

    threshold: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    iou: np.ndarray


class Threshold(NamedTuple):
    """The threshold with the highest IoU, and the IoU above it and above 0.5."""

    value: float
    iou: float
    iou_at_half: float


class ProbabilityHistogram:
    """Pixels of a single class over any number of batches, truth by probability. The counts stay on the device."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._counts = torch.zeros(2 * BINS + 1, dtype=torch.int64, device=device)  # the ignored pixels last
        self._edges = torch.from_numpy(np.log(THRESHOLDS / (1 - THRESHOLDS))).to(device, torch.float32)

    def add(self, logits: Tensor, mask: Tensor) -> None:
        """Count the pixels of logits (N, 1, H, W) and mask (N, H, W) uint8; pixels with mask 255 are ignored.

        It compares logits, not probabilities, whose rounding would move pixels across 0.5.
        """
        bins = torch.bucketize(logits[:, 0].float(), self._edges) + BINS * mask.long()  # the edges below
        bins = bins.masked_fill(mask == IGNORE, 2 * BINS)
        self._counts += torch.bincount(bins.flatten(), minlength=2 * BINS + 1)

    def counts(self) -> np.ndarray:
        """The pixels (2, BINS) int64, truth by probability."""
        counts: np.ndarray = self._counts[:-1].reshape(2, BINS).cpu().numpy()
        return counts


def threshold_curve(histogram: np.ndarray) -> ThresholdCurve:
    """Scores of a single class from its histogram (2, BINS); nan if nothing is predicted, or no pixel is of the class.

    At 0.5 they agree with the confusion matrix: a pixel is of the class if its logit is above 0.
    """
    false, true = _predicted(histogram)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(false + true > 0, true / (false + true), np.nan)
        recall = np.where(histogram[1].sum() > 0, true / histogram[1].sum(), np.nan)
        iou = np.where(histogram[1].sum() + false > 0, true / (histogram[1].sum() + false), np.nan)
    return ThresholdCurve(THRESHOLDS, precision, recall, iou)


def choose_threshold(curve: ThresholdCurve) -> Threshold | None:
    """The threshold with the highest IoU, of several the one nearest to 0.5. None if no IoU is above 0."""
    iou = np.nan_to_num(curve.iou)  # it is undefined only if no pixel is of the class
    if not iou.any():
        return None
    best = np.flatnonzero(iou == iou.max())
    chosen = int(min(best, key=lambda position: abs(position - HALF)))
    return Threshold(float(curve.threshold[chosen]), float(iou[chosen]), float(iou[HALF]))


def confusion_above(histogram: np.ndarray, threshold: float) -> np.ndarray:
    """The confusion matrix (2, 2) if the pixels above a threshold, one of THRESHOLDS, are taken for the class."""
    predicted = _predicted(histogram)[:, round(threshold * BINS) - 1]
    return np.stack([histogram.sum(axis=1) - predicted, predicted], axis=1)


def _predicted(histogram: np.ndarray) -> np.ndarray:
    """The pixels above each threshold, (2, BINS - 1), by truth."""
    predicted: np.ndarray = histogram[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    return predicted
