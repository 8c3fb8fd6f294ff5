"""Bootstrap intervals of metrics, by resampling ground tiles. Called by `final_evaluation`.

Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3: percentile intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from robosat_pink.training import metrics

RESAMPLES = 1000
PERCENT = 95
SEED = 0
BLOCK = 50  # resamples at a time: each takes K x K numbers
INTERVAL_METRICS = tuple(name for name in metrics.NAMES if name != "loss")


def intervals(confusions: np.ndarray, ground: np.ndarray, class_names: Sequence[str]) -> dict[str, list[float] | None]:
    """The interval [low, high] of each metric, from the confusions (N, K, K) of tiles on the ground tiles (N, 3).

    All tiles of one ground tile are drawn together: images of one place on several days are not independent. Resamples
    in which a metric is undefined are left out. None if there are fewer than two ground tiles, or none with the metric.
    """
    names, group = np.unique(ground, axis=0, return_inverse=True)
    if len(names) < 2:
        return dict.fromkeys(INTERVAL_METRICS, None)
    size = confusions.shape[1]
    by_ground = np.zeros((len(names), size * size))
    np.add.at(by_ground, group.reshape(-1), confusions.reshape(len(confusions), -1))
    values: dict[str, list[float]] = {name: [] for name in INTERVAL_METRICS}
    random = np.random.default_rng(SEED)
    for _ in range(RESAMPLES // BLOCK):
        drawn = random.integers(0, len(names), (BLOCK, len(names)))
        times = np.stack([np.bincount(one, minlength=len(names)) for one in drawn]).astype(np.float64)
        for matrix in (times @ by_ground).reshape(BLOCK, size, size):
            scores = metrics.scores(matrix, class_names, math.nan)
            for name in INTERVAL_METRICS:
                values[name].append(scores[name])
    return {name: _percentiles(np.array(resampled)) for name, resampled in values.items()}


def _percentiles(values: np.ndarray) -> list[float] | None:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, high = np.percentile(defined, [(100 - PERCENT) / 2, (100 + PERCENT) / 2])
    return [float(low), float(high)]
