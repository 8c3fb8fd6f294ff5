"""The split of an earlier run, from the id files that it wrote. Called by `pairs` for `dataset.split.from`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robosat_pink.datasets.split import Split
from robosat_pink.errors import DataError
from robosat_pink.storage import location
from robosat_pink.storage.error_advice import NotFound
from robosat_pink.storage.location import MAX_IDS_BYTES

log = logging.getLogger(__name__)

# "test" is planet-snowcover's name for the validation tiles.
TRAIN_IDS, VAL_IDS, HOLDOUT_IDS = "train_ids.txt", "test_ids.txt", "holdout_ids.txt"


def split_from(path: str, ids: Sequence[str], options: Mapping[str, Any]) -> Split:
    """Val tiles are those in this id file, holdout tiles those in holdout_ids.txt next to it, train tiles all others.

    `ids` are this run's tile ids by row; `options` are those of `store_options`.
    """
    rows = {tile_id: row for row, tile_id in enumerate(ids)}
    val = rows_of_ids(location.read_file(path, max_bytes=MAX_IDS_BYTES, **options), rows, path)
    holdout_path = path.rpartition("/")[0] + f"/{HOLDOUT_IDS}"
    content = b""
    try:
        content = location.read_file(holdout_path, max_bytes=MAX_IDS_BYTES, **options)
    except DataError as error:  # S3 answers 403, not 404, without permission to list the bucket
        if not isinstance(error, NotFound):
            log.warning("warning: %s; no tiles are held out", error)
    holdout = np.setdiff1d(rows_of_ids(content, rows, holdout_path), val)
    train = np.setdiff1d(np.arange(len(ids)), np.concatenate([val, holdout]))
    if not len(val) or not len(train):
        raise DataError(
            f"dataset.split.from: {path} leaves {len(train)} tiles to train on and {len(val)} to evaluate of "
            f"{len(ids)}; it must name some, not all, of this run's tiles, such as {ids[0]}"
        )
    return Split(train, val, holdout)


def rows_of_ids(content: bytes, rows: Mapping[str, int], path: str) -> np.ndarray:
    """The rows of the ids in an id file (one per line), sorted and without duplicates. Warns of ids without a row."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 text ({error}); accepted: one tile id a line; save it as UTF-8"
        ) from error
    ids = {line.strip() for line in text.split("\n")} - {""}
    if unknown := ids - rows.keys():
        log.warning("%s names %d tiles that are not in this run's data", path, len(unknown))
    return np.array(sorted(rows[tile_id] for tile_id in ids & rows.keys()), dtype=np.int64)
