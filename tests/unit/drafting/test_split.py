"""How a draft splits tiles by where they lie."""

import numpy as np
import pytest

from robosat_pink.datasets.file_names import FILE
from robosat_pink.datasets.pairing import Pairs, pair
from robosat_pink.datasets.tiles import TileFiles
from robosat_pink.drafting.split import split
from robosat_pink.errors import DataError


def pairs_at(*zxy: tuple[int, int, int], days: int = 1) -> Pairs:
    """The pairs of these tiles, on each of some days."""
    table = np.zeros(len(zxy), dtype=FILE)
    table["zxy"] = zxy
    names = [str(day) for day in range(days)]
    files = TileFiles.from_tables({name: [table] for name in names})
    return pair(files, files, names, names)


def square(side: int, step: int = 1, zoom: int = 12) -> list[tuple[int, int, int]]:
    return [(zoom, 1000 + step * x, 2000 + step * y) for x in range(side) for y in range(side)]


@pytest.mark.parametrize(
    ("tiles", "days", "expected"),
    [
        (square(8), 1, "split: {by: block, zoom: 11}"),  # 16 blocks; of zoom 10 there would be 4
        (square(32), 1, "split: {by: block, zoom: 10, test_percent: 0.15}"),  # 64 blocks; of zoom 9, 16
        (square(8, step=10), 1, "split: {by: tile, test_percent: 0.15}"),
        (square(2), 1, "split: {by: tile}"),
        (square(1), 30, "split: {by: group, test_percent: 0.15}"),
        ([*square(4), *square(4, zoom=13)], 1, "split: {by: block, zoom: 12, test_percent: 0.15}"),
    ],
    ids=["square", "large square", "apart", "few", "one tile, many days", "two zooms"],
)
def test_neighbours_stay_together_where_there_are_blocks_enough(
    tiles: list[tuple[int, int, int]], days: int, expected: str
) -> None:
    drafted = split(pairs_at(*tiles, days=days), has_group=days > 1)
    assert drafted.entries[-1].yaml.replace("seed: 0, ", "") == expected
    assert 0 < len(drafted.train) < len(tiles) * days


def test_too_few_tiles_for_blocks_are_told() -> None:
    assert "validation flatters" in split(pairs_at(*square(2)), has_group=False).entries[-1].todo


def test_one_tile_of_one_day_cannot_be_split() -> None:
    with pytest.raises(DataError, match="too few for 2 splits"):
        split(pairs_at((12, 1, 1)), has_group=False)
