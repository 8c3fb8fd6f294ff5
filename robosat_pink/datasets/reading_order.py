"""The order in which tiles are read with their neighbours, so that each is read once and few are in memory at a time.

Called by `predict` and `neighbours`. Order and batches follow from the list of tiles alone. No I/O, no torch.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from robosat_pink.datasets.tiles import TileFiles

KEPT_BYTES = 512 * 10**6  # of decoded tiles that are kept for later batches
ASSUMED_PIXELS = 512 * 512  # of a tile, whose bands are assumed to be float32; other tiles take more memory, or less
LEAST_KEPT = 16


def most_kept(bands: int) -> int:
    """How many decoded tiles are kept in memory: KEPT_BYTES of them, with one byte a pixel for what is missing."""
    return max(KEPT_BYTES // (ASSUMED_PIXELS * (4 * bands + 1)), LEAST_KEPT)


def batches_in_order(files: TileFiles, rows: np.ndarray, batch_size: int, bands: int) -> list[list[int]]:
    """The rows (N,), each once, in batches of one scene: row by row within vertical stripes, scene after scene.

    While a stripe is read, two of its rows of tiles and some more are kept, which `most_kept` allows for `bands`. A
    scene that is wider has several stripes; the tiles at their edges are read twice, once for each.
    """
    rows = np.unique(rows)
    width = most_kept(bands) // 2 - 3  # two rows with a neighbour at each end, and two tiles of a third
    batches = []
    for scene in np.split(rows, np.flatnonzero(np.diff(files.directory[rows])) + 1):
        _, x, y = files.zxy[scene].T
        left = x.min(initial=2**31 - 1)
        in_order = scene[np.lexsort((x, y, (x - left) // width))].tolist()
        batches += [in_order[first : first + batch_size] for first in range(0, len(in_order), batch_size)]
    return batches


def share(batches: Sequence[list[int]], rank: int, size: int) -> Sequence[list[int]]:
    """The batches of one of `size` ranks: a contiguous part, because ranks that are neighbours read tiles twice."""
    return batches[len(batches) * rank // size : len(batches) * (rank + 1) // size]


class Change(NamedTuple):
    """What to read before a batch, and what is not kept after it."""

    read: list[int]
    drop: set[int]


def changes(needed: Sequence[Sequence[int]], most: int) -> Iterator[Change]:
    """For each batch, given the tiles that it needs: which of them are not in memory, and which to drop after it.

    A tile is kept while a later batch needs it. If these are more than `most`, those that are needed last are dropped,
    and read again later; Belady, "A study of replacement algorithms for a virtual-storage computer", 1966.
    """
    uses: defaultdict[int, deque[int]] = defaultdict(deque)  # numbers of the batches to come that need a tile
    for number, tiles in enumerate(needed):
        for tile in tiles:
            uses[tile].append(number)
    kept: set[int] = set()
    for tiles in needed:
        read = [tile for tile in tiles if tile not in kept]
        held = kept.union(tiles)
        for tile in tiles:
            uses[tile].popleft()
        wanted = sorted((tile for tile in held if uses[tile]), key=lambda tile: (uses[tile][0], tile))
        kept = set(wanted[:most])
        yield Change(read, held - kept)
