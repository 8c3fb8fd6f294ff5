"""Which tiles are predicted: all, or those of an id file. Called by `run`."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from robosat_pink.datasets.earlier_split import HOLDOUT_IDS, VAL_IDS, rows_of_ids
from robosat_pink.errors import DataError
from robosat_pink.prediction.model_files import ModelFiles
from robosat_pink.storage import location
from robosat_pink.storage.error_advice import NotFound
from robosat_pink.storage.location import MAX_IDS_BYTES

log = logging.getLogger(__name__)

ID_FILES = {"val": VAL_IDS, "holdout": HOLDOUT_IDS}


def selected_rows(setting: str, ids: Sequence[str], files: ModelFiles) -> np.ndarray:
    """The rows, ascending, that `predict.tiles` selects: all, val, holdout, or those in the id file of that name.

    Raises DataError if that file cannot be read, or names none of the tiles.
    """
    if setting == "all":
        return np.arange(len(ids))
    if setting in ID_FILES:
        where = f"{files.folder}/{ID_FILES[setting]}"
        try:
            content = files.read(ID_FILES[setting])
        except NotFound as error:
            raise DataError(
                f"predict.tiles = {setting}: {error}; accepted: all, or the name of a file with a tile id a line"
            ) from error
    else:
        where = location.local_path_or(setting)
        content = location.read_file(where, max_bytes=MAX_IDS_BYTES, **files.store)
    rows = rows_of_ids(content, {tile_id: row for row, tile_id in enumerate(ids)}, where)
    if not len(rows):
        wanted = content.decode("utf-8-sig").split()
        raise DataError(
            f"predict.tiles = {setting}: {where} names none of the {len(ids)} tiles, but "
            f"{wanted[0] if wanted else 'nothing'}; the tiles have ids such as {ids[0]}"
        )
    return rows
