"""Palettes of files whose numbers are indices of colors. Called by `gdal_bands` and `decode`."""

from __future__ import annotations

import numpy as np
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader

from robosat_pink.errors import DataError


def of(dataset: DatasetReader, alpha_count: int, name: str) -> np.ndarray | None:
    """Red, green, blue and alpha (N, 4) uint8 by index; None if the file has no palette.

    Raises DataError unless band 1 has the indices and all other bands are alpha.
    """
    if ColorInterp.palette not in dataset.colorinterp:
        return None
    if dataset.count - alpha_count > 1 or dataset.colorinterp[0] != ColorInterp.palette:
        raise DataError(
            f"{name}: indices of a palette beside other bands; write its colors as bands (gdal_translate -expand)"
        )
    colors = dataset.colormap(1)
    table = np.zeros((max(colors) + 2, 4), dtype=np.uint8)  # the last row is for indices without a color
    for index, color in colors.items():
        table[index] = color
    return table


def look_up(palette: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The colors (..., 4) uint8 of indices (...)."""
    colors: np.ndarray = palette[np.minimum(indices.astype(np.intp), len(palette) - 1)]
    return colors


def in_words(palette: np.ndarray, indices: np.ndarray) -> str:
    """Colors of the indices that occur, as "0:000000 1:ffffff"; empty unless the indices are uint8."""
    if indices.dtype != np.uint8:
        return ""
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=1))
    colors = look_up(palette, used)[:, :3]
    return " ".join(f"{index}:{bytes(color).hex()}" for index, color in zip(used.tolist(), colors, strict=True))
