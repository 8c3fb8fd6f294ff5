"""How well predicted boundaries lie: boundary F1, after Csurka and others. Called by `final_evaluation`.

"What is a good evaluation measure for semantic segmentation?", BMVC 2013, section 3.2. Pixels are counted over all
tiles, where the paper averages over images.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from robosat_pink.losses import IGNORE
from robosat_pink.training.metrics import predicted_classes

TOLERANCE = 2  # pixels between two boundaries that still match, in rows and in columns


class BoundaryCounts:
    """Boundary pixels over any number of batches, by class; of a single class, not of its background.

    A pixel is on a boundary if one of its eight neighbours is of another class. A neighbour that is ignored or outside
    of the tile makes none. Boundary pixels nearer than TOLERANCE to these are not counted: what they match is unknown.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self._classes = range(1, 2) if num_classes == 1 else range(num_classes)
        # Columns: predicted boundary pixels, those that match, true boundary pixels, those that match.
        self._counts = torch.zeros(num_classes, 4, dtype=torch.int64, device=device)

    def add(self, logits: Tensor, mask: Tensor) -> None:
        """Count the boundaries in logits (N, K, H, W) and mask (N, H, W) uint8; pixels with mask 255 are ignored."""
        predicted, is_valid = predicted_classes(logits), mask != IGNORE
        is_counted = ~_near(functional.pad(~is_valid, [TOLERANCE] * 4, value=True), padding=0)
        is_found, is_true = (_is_boundary(classes, is_valid) for classes in (predicted, mask))
        for row, number in enumerate(self._classes):
            found, true = is_found & (predicted == number), is_true & (mask == number)
            pairs = ((found, true), (true, found))
            counted = [(one & is_counted, one & is_counted & _near(other)) for one, other in pairs]
            self._counts[row] += torch.stack([pixels.sum() for pair in counted for pixels in pair])

    def counts(self) -> np.ndarray:
        """Pixels (K, 4) int64: predicted, those that match, true, those that match."""
        counts: np.ndarray = self._counts.cpu().numpy()
        return counts


def boundary_f1(counts: np.ndarray) -> np.ndarray:
    """The F1 (K,) of each class: the harmonic mean of the shares of predicted and of true boundaries that match.

    NaN for a class without a boundary in truth and prediction, 0 if only one of them has one.
    """
    predicted, predicted_matching, true, true_matching = counts.T.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = predicted_matching / predicted, true_matching / true
        f1 = np.where(precision + recall > 0, 2 * precision * recall / (precision + recall), 0.0)
    return np.where(predicted + true > 0, f1, np.nan)


def _is_boundary(classes: Tensor, is_valid: Tensor) -> Tensor:
    """Whether a pixel of classes (N, H, W) has a valid neighbour of another class, and is valid itself."""
    numbers = classes.float()
    highest = functional.max_pool2d(torch.where(is_valid, numbers, -torch.inf)[:, None], 3, 1, 1)[:, 0]
    lowest = -functional.max_pool2d(torch.where(is_valid, -numbers, -torch.inf)[:, None], 3, 1, 1)[:, 0]
    return is_valid & ((highest != numbers) | (lowest != numbers))


def _near(is_set: Tensor, padding: int = TOLERANCE) -> Tensor:
    """Whether a pixel of (N, H, W) that is set lies within TOLERANCE rows and columns."""
    return functional.max_pool2d(is_set.float()[:, None], 2 * TOLERANCE + 1, 1, padding)[:, 0] > 0
