"""Statistics of bands and classes over a sample of an experiment's training tiles, and what follows from them.

Called by `check`.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import numpy as np

from robosat_pink.config import ClassConfig, Config
from robosat_pink.container import hardware
from robosat_pink.container.quantities import size
from robosat_pink.datasets import TilePairs, coverage
from robosat_pink.datasets.coverage import Coverage
from robosat_pink.datasets.normalisation import Moments

SAMPLED_PIXELS = 4096  # per tile, for the percentiles
EXTREMES = (2, 98)  # percentiles, `low` and `high`
MOST_RATIO = 10.0  # of the weights of two classes
FAR_RATIO = 2.0  # weights are suggested if the ratio of two classes is off by this factor


@dataclass(frozen=True)
class Survey:
    """Statistics of digital numbers divided by their scale, over the valid pixels of the tiles that were read."""

    coverage: Coverage
    scales: tuple[np.ndarray, ...]  # the distinct scales of the tiles, (C,) each
    mean: np.ndarray  # (C,)
    std: np.ndarray  # (C,)
    low: np.ndarray  # (C,)
    high: np.ndarray  # (C,)
    side: int  # median height of the tiles in pixels
    padded_side: int  # the same after padding for evaluation
    seconds: float
    fetched_bytes: int  # 0 if all tiles were in the cache
    decoded_bytes: int

    @property
    def shares(self) -> np.ndarray:
        """(K,) share of each class in the valid pixels; nan if there are none."""
        with np.errstate(invalid="ignore"):
            shares: np.ndarray = self.coverage.pixels / self.coverage.pixels.sum()
        return shares


def survey(config: Config, tiles: TilePairs, rows: np.ndarray) -> Survey:
    """Read whole tiles, evenly spread over `rows`. Raises the errors that training would raise for these tiles."""
    started = time.monotonic()
    counting, moments = coverage.Counting(config.num_classes), Moments(config.num_channels)
    scales: dict[bytes, np.ndarray] = {}
    sampled: list[np.ndarray] = []
    sides: list[tuple[int, int]] = []  # height of each tile, before and after padding
    fetched = decoded = 0
    for sample in coverage.read(tiles, coverage.chosen(rows)):
        counting.add(sample)
        height, width = sample.size
        values = coverage.scaled_values(sample)
        moments.add(values)
        sampled.append(values[:, :: max(1, values.shape[1] // SAMPLED_PIXELS)])
        sides.append((height, len(sample.mask)))
        scales.setdefault(sample.scale.tobytes(), sample.scale)
        fetched += sample.fetched_bytes
        decoded += height * width * (len(sample.image) * sample.image.itemsize + 1)
    side, padded_side = np.median(sides, axis=0).astype(int).tolist()
    pixels = np.concatenate(sampled, axis=1)
    low, high = np.percentile(pixels, EXTREMES, axis=1) if pixels.size else np.zeros((2, config.num_channels))
    return Survey(
        coverage=counting.finish(len(rows)),
        scales=tuple(scales.values()),
        mean=moments.mean,
        std=moments.std,
        low=low,
        high=high,
        side=side,
        padded_side=padded_side,
        seconds=time.monotonic() - started,
        fetched_bytes=fetched,
        decoded_bytes=decoded,
    )


def limit_line(tiles: TilePairs, surveyed: Survey, rank_rate: float, ranks: int) -> str:
    """What limits a run: the steps, or reading. `rank_rate` is what the steps of one rank take, in tiles/s.

    `ranks` counts those of this host. A rank reads at least as fast as the survey, which also counts pixels.
    """
    tiles_read, cache = len(surveyed.coverage.rows), tiles.reader.cache
    read_rate = tiles_read / surveyed.seconds
    each = f" in each of {ranks} ranks" if ranks > 1 else ""
    rates = f"limit: the steps take {rank_rate:.1f} tiles/s{each}, reading gave {read_rate:.1f}"
    if cache is None:
        return f"{rates}: {'the steps are' if read_rate > rank_rate else 'reading may be'} the limit of each epoch"
    if not surveyed.fetched_bytes:
        first = "from the cache, so that the first epoch's limit is not known"
    elif read_rate > rank_rate:
        first = "the steps are the limit of the first epoch"
    else:
        first = "reading may be the limit of the first epoch"
    tile_bytes = surveyed.decoded_bytes / tiles_read
    cached_bytes, room = tile_bytes * len(tiles), hardware.memory_bytes() / 2
    if cached_bytes > cache.max_bytes:
        later = f"later epochs fetch again what does not fit into the cache ({size(cached_bytes)} of tiles)"
    elif cached_bytes > room:
        later = (
            f"later epochs read {size(tile_bytes * rank_rate * ranks)}/s from the cache's disk, for its "
            f"{size(cached_bytes)} do not fit into half of the memory ({size(room)})"
        )
    else:
        later = "later epochs read from memory"
    return f"{rates}: {first}; {later}"


def balancing_weights(pixels: np.ndarray, is_binary: bool) -> np.ndarray:
    """(K,) class weights for pixel counts (K,): nan for classes without pixels; the background of a binary weighs 1.

    The square root of median frequency balancing, sqrt(median(f) / f(c)), with the frequencies f over all pixels:
    Eigen, Fergus, "Predicting Depth, Surface Normals and Semantic Labels with a Common Multi-Scale Convolutional
    Architecture", arXiv 1411.4734. A binary class of weight w is predicted from a probability of 1 / (1 + w), and the
    best threshold for F1 is half of the F1 that it reaches (Lipton, Elkan, Narayanaswamy, arXiv 1402.1892). The full
    ratio would predict a class of 1 % from 0.01; the root says 0.09, and MOST_RATIO allows no less.
    """
    counts = np.where(pixels > 0, pixels, np.nan)
    if np.isnan(counts).all():
        return counts
    counts = np.maximum(counts, np.nanmax(counts) / MOST_RATIO**2)
    weights: np.ndarray = np.sqrt((counts[0] if is_binary else np.nanmedian(counts)) / counts)
    return weights


def suggested_classes(config: Config, pixels: np.ndarray) -> str:
    """The experiment's `classes` as YAML, with weights that balance these pixel counts; empty if its own weights do."""
    is_binary = len(config.classes) == 1
    weights = balancing_weights(pixels, is_binary)
    ratios = np.array([1.0] * is_binary + [class_.weight for class_ in config.classes]) / weights
    ratios = ratios[np.isfinite(ratios)]
    if len(ratios) < 2 or ratios.max() < FAR_RATIO * ratios.min():
        return ""
    entries = map(_as_yaml, config.classes, weights[int(is_binary) :].tolist())
    return f"[{', '.join(entries)}]"


def _as_yaml(class_: ClassConfig, weight: float) -> str:
    """An entry of `classes`. A weight of nan leaves the class's own."""
    keys = {
        "name": class_.name,
        "color": class_.color,
        "values": class_.values,
        "weight": float(f"{weight:.2g}") if weight > 0 else class_.weight,
    }
    defaults = {"color": "white", "values": None, "weight": 1.0}
    given = {key: value for key, value in keys.items() if key not in defaults or value != defaults[key]}
    return "{" + ", ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in given.items()) + "}"
