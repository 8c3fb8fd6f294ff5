"""Whether predicted probabilities come true: reliability curve and calibration error. Called by `final_evaluation`.

Guo and others, "On Calibration of Modern Neural Networks", arXiv 1706.04599, equations 2 and 3.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from robosat_pink.losses import IGNORE

RELIABILITY_BINS = 10  # bins of equal width


class Reliability:
    """Sums over the pixels of any number of batches, by bin of probability. They stay on the device.

    The probability is that of a single class, or that of the most probable one of several. It comes true if the pixel
    is of this class.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        # Rows: pixels, sum of their probabilities, pixels whose prediction came true.
        self._sums = torch.zeros(3, RELIABILITY_BINS, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, mask: Tensor) -> None:
        """Add the pixels of logits (N, K, H, W) and mask (N, H, W) uint8; pixels with mask 255 are ignored."""
        if logits.shape[1] == 1:
            probs, is_true = logits[:, 0].float().sigmoid(), mask == 1
        else:
            probs, predicted = logits.float().softmax(dim=1).max(dim=1)
            is_true = predicted == mask
        bins = (probs * RELIABILITY_BINS).long().clamp(max=RELIABILITY_BINS - 1)
        bins = bins.masked_fill(mask == IGNORE, RELIABILITY_BINS)
        for number in range(RELIABILITY_BINS):  # one sum a bin: a scatter on a GPU adds in another order each time
            is_inside = bins == number
            sums = (is_inside, torch.where(is_inside, probs, 0.0), is_inside & is_true)
            self._sums[:, number] += torch.stack([values.sum(dtype=torch.float64) for values in sums])

    def sums(self) -> np.ndarray:
        """Sums (3, RELIABILITY_BINS) float64: pixels, their probabilities, and how many came true."""
        sums: np.ndarray = self._sums.cpu().numpy()
        return sums


def calibration_error(sums: np.ndarray) -> float:
    """Expected calibration error: |mean probability - share that came true|, a mean over pixels. NaN without pixels."""
    pixels, probabilities, came_true = sums
    return float(np.abs(came_true - probabilities).sum() / pixels.sum()) if pixels.sum() else math.nan


def reliability_curve(sums: np.ndarray) -> list[dict[str, float]]:
    """The bins that have a pixel, by ascending probability: mean probability, share that came true, pixels."""
    return [
        {"probability": float(probability / pixels), "observed": float(came_true / pixels), "pixels": int(pixels)}
        for pixels, probability, came_true in sums.T
        if pixels
    ]
