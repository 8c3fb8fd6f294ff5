"""Remarks on the tiles that a model is applied to: those it has learnt from, and images unlike them.

Called by `plan` and `evaluation`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from robosat_pink.datasets.coverage import chosen, scaled_values
from robosat_pink.datasets.earlier_split import TRAIN_IDS
from robosat_pink.datasets.images import ImageTiles
from robosat_pink.datasets.normalisation import Moments, normalisation
from robosat_pink.datasets.pairs import TilePairs
from robosat_pink.errors import DataError, RobosatError
from robosat_pink.prediction.model import Model
from robosat_pink.prediction.model_files import ModelFiles

SOME_TILES = 8  # to read
# Other scenes of the same sensor differ by less: snow or none, sun high or low. An 8-bit image taken for reflectances
# times 10,000 is 40 times too dark.
FAR_MEAN, FAR_STD = 2.5, 8.0  # distance of means in stds of the training images, and ratio of stds


def about_images(model: Model, tiles: ImageTiles | TilePairs, rows: np.ndarray) -> Iterator[str]:
    """A warning if some of the images have values far from those that the model has learnt from."""
    mean, std = map(np.array, normalisation(model.config.channels))
    is_known = (mean != 0) | (std != 1)  # other bands were trained without statistics
    if not is_known.any():
        return
    some = chosen(rows, SOME_TILES)
    moments = Moments(len(mean))
    for row in some:
        with contextlib.suppress(RobosatError):  # the run reads this tile later, and says what it then does
            (sample,) = tiles.__getitems__([row])
            moments.add(scaled_values(sample))
    if not moments.count:
        return
    is_far = np.abs(moments.mean - mean) > FAR_MEAN * std
    ratio = np.maximum(moments.std, 1e-12) / std
    was_flat = std == 1  # a band that is the same everywhere has no std (normalisation.without_flat)
    is_far |= ((ratio > FAR_STD) | (ratio < 1 / FAR_STD)) & ~was_flat
    is_far &= is_known
    if is_far.any():
        band = int(np.argmax(is_far))
        yield (
            f"warning: the images are unlike those that the model has learnt from: band {band + 1} of its input has "
            f"the mean {moments.mean[band]:.3g} and std {moments.std[band]:.3g} in {len(some)} tiles, where it "
            f"was normalised by {mean[band]:.3g} and {std[band]:.3g}. Images of another data type, unit or order of "
            "bands differ like this; if these do, what the model says of them means little"
        )


def about_training_tiles(files: ModelFiles, ids: Sequence[str]) -> Iterator[str]:
    """A sentence if the model has learnt from some of the tiles with these ids, by the id file beside it."""
    try:
        learnt = set(files.read(TRAIN_IDS).decode("utf-8", errors="replace").splitlines())
    except DataError:  # planet-snowcover's checkpoints have none
        return
    if count := sum(tile_id in learnt for tile_id in ids):
        yield (
            f"the model has learnt from {count} of these {len(ids)} tiles ({TRAIN_IDS} beside it names them), and is "
            "better on them than elsewhere; predict.tiles = val or holdout leaves them out"
        )
