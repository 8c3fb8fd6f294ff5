"""Splits pairs: some are trained on, some are evaluated each epoch, some are held out. No I/O, no torch.

Called by `pairs`. A hash of seed and ground tile decides the split, so that it is the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np

from robosat_pink.datasets.pairing import Pairs
from robosat_pink.datasets.tiles import parents, zooms_in_words
from robosat_pink.errors import DataError

By = Literal["tile", "block", "group"]


class Split(NamedTuple):
    """The rows (positions in `Pairs`) of each split, ascending. Every row is in exactly one of the three."""

    train: np.ndarray
    val: np.ndarray
    holdout: np.ndarray


def split_pairs(
    pairs: Pairs,
    train_percent: float,
    *,
    by: By = "tile",
    seed: int = 0,
    zoom: int | None = None,
    holdout_percent: float = 0.0,
    folds: int | None = None,
    fold: int = 0,
) -> Split:
    """Sort units by their hash and cut: the first units are train, the last are holdout, those between are val.

    All images of a unit are in one split. A unit is a ground tile (by tile), its parent tile at `zoom` (by block, which
    keeps neighbours together), or what the shared named groups matched (by group). train and val get at least one unit
    each; so does holdout, unless holdout_percent is 0. The hash depends only on seed and unit, so that new data does
    not reshuffle the old. With `folds`, all units but the holdout are cut into that many folds: `fold` is val, the
    others are train, and train_percent does not act.
    """
    _refuse_several_zooms(pairs.images.zxy, by)
    unit_of_pair = pairs.group[:, None] if by == "group" else pairs.images.zxy
    if by == "block":
        unit_of_pair = parents(unit_of_pair, zoom or 0)
    units, unit_number = np.unique(unit_of_pair, axis=0, return_inverse=True)
    if len(units) < (folds or 2) + bool(holdout_percent):
        raise DataError(_too_few_units(pairs, len(units), by, zoom or 0, folds, bool(holdout_percent)))
    names = (pairs.group_values[number] for (number,) in _rows(units)) if by == "group" else _rows(units)
    hashes = np.fromiter(_hashes(names, seed), dtype=np.uint64, count=len(units))  # type: ignore[arg-type]
    if folds is None:
        by_rank = np.repeat([0, 1, 2], _counts(len(units), train_percent, holdout_percent))
    else:
        by_rank = _fold_by_rank(len(units), folds, fold, holdout_percent)
    split_of_unit = np.empty(len(units), dtype=np.uint8)
    split_of_unit[np.argsort(hashes, kind="stable")] = by_rank
    split_of_pair = split_of_unit[unit_number.reshape(-1)]
    return Split(*(np.flatnonzero(split_of_pair == number).astype(np.int32) for number in range(3)))


def _too_few_units(pairs: Pairs, units: int, by: By, zoom: int, folds: int | None, has_holdout: bool) -> str:
    zooms = np.unique(pairs.images.zxy[:, 0]).tolist()
    ways = []
    if folds and units - has_holdout >= 2:
        ways.append(f"folds: {units - has_holdout}")
    if by == "block" and zoom < zooms[0]:
        ways.append(f"a higher zoom, at most {zooms[0]}")
    if by != "tile" and len(zooms) == 1:
        ways.append("by: tile")
    if by != "group" and len(pairs.group_values) > 1:
        ways.append("by: group (of the expressions' named groups)")
    advice = f"try dataset.split: {', or '.join(ways)}, or add tiles" if ways else "add tiles"
    unit = "ground tile" if by == "tile" else by
    needed = f"{folds} folds{' and a holdout' if has_holdout else ''}" if folds else f"{2 + has_holdout} splits"
    return f"the {len(pairs)} pairs lie on {units} {unit}(s), too few for {needed}; {advice}"


def _hashes(names: Iterable[Iterable[object]], seed: int) -> Iterator[int]:
    """The 64-bit hash of each unit's name: z, x and y, or what the named groups matched."""
    for name in names:
        text = "/".join(map(str, (seed, *name)))
        yield int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _counts(units: int, train_percent: float, holdout_percent: float) -> tuple[int, int, int]:
    """The numbers of units in train, val and holdout: at least one each, but no holdout for a share of 0."""
    holdout = max(1, round(holdout_percent * units)) if holdout_percent else 0
    train = min(max(1, round(train_percent * units)), units - holdout - 1)
    train = max(train, 1)
    holdout = min(holdout, units - train - 1)
    return train, units - train - holdout, holdout


def _fold_by_rank(units: int, folds: int, fold: int, holdout_percent: float) -> np.ndarray:
    """(units,) the split of each rank: 2 for the holdout, the same ranks in every fold; 1 for `fold`; 0 for the others.

    The ranks before the holdout are cut into equal pieces. A remainder of the hash would not balance ten units; a
    remainder of the rank would reshuffle all units after a new one. With a cut, a new unit moves at most one unit over
    each cut, into the fold beside it.
    """
    holdout = min(max(1, round(holdout_percent * units)), units - folds) if holdout_percent else 0
    fold_of_rank = np.arange(units - holdout) * folds // (units - holdout)
    return np.append(fold_of_rank == fold, np.full(holdout, 2)).astype(np.uint8)


def _rows(table: np.ndarray) -> Iterator[list[int]]:
    """The rows as lists of int, converted 1,024 at a time to save memory."""
    for start in range(0, len(table), 1024):
        yield from table[start : start + 1024].tolist()


def _refuse_several_zooms(zxy: np.ndarray, by: str) -> None:
    """Raises DataError if a val tile might show ground that is trained on at another zoom."""
    zooms = np.unique(zxy[:, 0])
    if by != "block" and len(zooms) > 1:
        raise DataError(
            f"the pairs are of several zooms: {zooms_in_words(zxy)}; by dataset.split.by = {by}, ground of val tiles "
            "would be trained on at another zoom. Take one zoom, by buckets and expressions that name no other, or set "
            f"dataset.split: {{by: block, zoom: {zooms[0]}}}, or a lower zoom, which keeps a block's tiles together"
        )


def refuse_crossings(pairs: Pairs, split: Split, source: str) -> None:
    """Raises DataError if a val or holdout tile contains, or is part of, a training tile of another zoom."""
    zxy = pairs.images.zxy
    train, others = zxy[split.train], zxy[np.concatenate([split.val, split.holdout])]
    is_crossing = np.zeros(len(others), dtype=bool)
    for zoom in np.unique(zxy[:, 0])[:-1].tolist():
        is_coarse, is_fine = others[:, 0] == zoom, others[:, 0] > zoom
        coarse_train, fine_train = train[train[:, 0] == zoom], train[train[:, 0] > zoom]
        is_crossing[is_coarse] |= np.isin(_ground(others[is_coarse], zoom), _ground(fine_train, zoom))
        is_crossing[is_fine] |= np.isin(_ground(others[is_fine], zoom), _ground(coarse_train, zoom))
    if is_crossing.any():
        raise DataError(
            f"dataset.split.from: {source}: the pairs are of several zooms: {zooms_in_words(zxy)}; "
            f"{is_crossing.sum()} of the {len(others)} tiles to evaluate or hold out cover ground of training tiles of "
            "another zoom, or lie in it. Take one zoom, by buckets and expressions that name no other, or the ids of a "
            "run that split by block"
        )


def _ground(zxy: np.ndarray, zoom: int) -> np.ndarray:
    """A number (N,) for each tile's parent at `zoom`: equal for equal parents."""
    _, x, y = parents(zxy, zoom).astype(np.int64).T
    return x << 32 | y
