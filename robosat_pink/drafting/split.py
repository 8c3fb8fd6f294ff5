"""Drafts how tiles are split for training and evaluation: neighbours stay together. Called by `draft`."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from robosat_pink.datasets.pairing import Pairs
from robosat_pink.datasets.split import By, split_pairs
from robosat_pink.datasets.tiles import parents, zooms_in_words
from robosat_pink.drafting.text import Entry

TRAIN_PERCENT = 0.7
ENOUGH_BLOCKS, LEAST_BLOCKS = 20, 4
LARGEST_STEP = 4  # zooms between tiles and blocks
FEW_GROUND_TILES = 5  # so few cannot be split by ground, where groups can
MANY_UNITS = 20  # of so many, some are held out
TEST_PERCENT = 0.15
VAL_SHARE = (0.15, 0.5)  # of the tiles; by the default seed, blocks of unequal size may give another one
SEEDS = 10  # that are tried for such a share
NEIGHBOURS = 0.1  # share of tiles with a neighbour, from which blocks are worth it


class _Choice(NamedTuple):
    by: By
    zoom: int | None
    units: int
    why: str
    todo: str = ""


class DraftedSplit(NamedTuple):
    entries: tuple[Entry, ...]  # of `dataset`
    train: np.ndarray  # the rows of the pairs that are trained on


def split(pairs: Pairs, has_group: bool) -> DraftedSplit:
    """How to split these pairs. Raises DataError if they are too few."""
    ground = np.unique(pairs.images.zxy, axis=0)
    choice = _by_group(pairs, ground) if has_group else None
    choice = choice or _by_ground(ground)
    test = TEST_PERCENT if choice.units >= MANY_UNITS else 0.0
    seed, train = _seed(pairs, choice, test)
    keys = [f"by: {choice.by}"]
    if choice.zoom is not None:
        keys.append(f"zoom: {choice.zoom}")
    keys += [f"seed: {seed}"] * bool(seed) + [f"test_percent: {test}"] * bool(test)
    held_out = f"; {test:.0%} are held out to the end, for unbiased numbers" if test else ""
    why = f"{choice.why}{held_out}" + ("; this seed gives train and val a fair share" if seed else "")
    entries = (
        Entry(f"train_percent: {TRAIN_PERCENT}", "share that is trained on; the rest is evaluated after each epoch"),
        Entry(f"split: {{{', '.join(keys)}}}", why, choice.todo),
    )
    return DraftedSplit(entries, train)


def _by_group(pairs: Pairs, ground: np.ndarray) -> _Choice | None:
    """By the named group, if there is too little ground to split."""
    groups = len(np.unique(pairs.group))
    if len(ground) >= FEW_GROUND_TILES or groups <= len(ground):
        return None
    why = (
        f"too little ground to split ({len(ground)} of z/x/y), but there are {groups} groups: a group's tiles stay "
        "together. The numbers then say how good the model is on other days of the same ground"
    )
    return _Choice("group", None, groups, why)


def _by_ground(ground: np.ndarray) -> _Choice:
    lowest = int(ground[:, 0].min())
    is_of_one_zoom = lowest == ground[:, 0].max()
    if is_of_one_zoom and _share_with_neighbour(ground) < NEIGHBOURS:
        return _Choice("tile", None, len(ground), "few tiles are neighbours, so that each is split by itself")
    candidates = range(lowest if not is_of_one_zoom else lowest - 1, max(lowest - LARGEST_STEP, 0) - 1, -1)
    blocks = {zoom: len(np.unique(parents(ground, zoom), axis=0)) for zoom in candidates}
    enough = [zoom for zoom, count in blocks.items() if count >= ENOUGH_BLOCKS]
    few = [zoom for zoom, count in blocks.items() if count >= LEAST_BLOCKS]
    zoom = min(enough, default=max(few, default=lowest))
    mixed = "" if is_of_one_zoom else f"tiles of zoom {zooms_in_words(ground)} show the same ground; "
    if zoom == lowest and is_of_one_zoom:
        todo = (
            f"the {len(ground)} ground tiles are too few for blocks, so that neighbours, which look alike, are on both "
            "sides of the split: validation flatters. With more tiles, set {by: block, zoom: "
            f"{lowest - 1}}}"
        )
        return _Choice("tile", None, len(ground), "each tile is split by itself", todo)
    why = (
        f"{mixed}neighbours look alike, so that the tiles of a block, a parent tile of zoom {zoom}, stay together: "
        f"{blocks[zoom]} blocks"
    )
    return _Choice("block", zoom, blocks[zoom], why)


def _share_with_neighbour(ground: np.ndarray) -> float:
    """The share of these tiles (N, 3) of one zoom that have one of their eight neighbours among them."""
    x, y = ground[:, 1].astype(np.int64), ground[:, 2].astype(np.int64)
    keys = x << 32 | y
    has_neighbour = np.zeros(len(keys), dtype=bool)
    for dx, dy in itertools.product((-1, 0, 1), repeat=2):
        if dx or dy:
            has_neighbour |= np.isin(((x + dx) << 32) + (y + dy), keys)
    return float(has_neighbour.mean())


def _seed(pairs: Pairs, choice: _Choice, test: float) -> tuple[int, np.ndarray]:
    """The first seed that gives the val tiles a share in VAL_SHARE, or 0 if none does; and the rows trained on."""
    low, high = VAL_SHARE
    splits = [
        split_pairs(pairs, TRAIN_PERCENT, by=choice.by, seed=seed, zoom=choice.zoom, holdout_percent=test)
        for seed in range(SEEDS)
    ]
    fair = (number for number, found in enumerate(splits) if low - test / 2 <= len(found.val) / len(pairs) <= high)
    seed = next(fair, 0)
    return seed, splits[seed].train
