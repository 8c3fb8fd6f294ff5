"""In which order tiles are read with their neighbours, and which of them stay in memory. Worked out by hand."""

import numpy as np
import pytest

from robosat_pink.datasets import reading_order
from robosat_pink.datasets.file_names import parse_names
from robosat_pink.datasets.reading_order import batches_in_order, changes, most_kept, share
from robosat_pink.datasets.tiles import TileFiles, around


def scene(name: str, tiles: list[tuple[int, int]]) -> tuple[str, list[np.ndarray]]:
    paths = [f"{name}/9/{x}/{y}.tif" for x, y in tiles]
    count = len(paths)
    return name, [parse_names(f"{name}/", paths, [7] * count, ["v1"] * count, [9] * count)]


def listed(*scenes: tuple[str, list[np.ndarray]]) -> TileFiles:
    return TileFiles.from_tables(dict(scenes))


def grid(width: int, height: int) -> list[tuple[int, int]]:
    return [(100 + x, 200 + y) for x in range(width) for y in range(height)]


def tiles_of(files: TileFiles, batches: list[list[int]]) -> list[list[tuple[int, int]]]:
    """x and y of each tile, from the first ones of the grid."""
    return [[(files.tile(row).x - 100, files.tile(row).y - 200) for row in batch] for batch in batches]


def test_tiles_are_read_row_by_row_in_batches_of_one_scene() -> None:
    files = listed(scene("a", grid(3, 2)), scene("b", grid(2, 1)))
    batches = batches_in_order(files, np.arange(8), 4, bands=4)
    assert tiles_of(files, batches) == [
        [(0, 0), (1, 0), (2, 0), (0, 1)],
        [(1, 1), (2, 1)],
        [(0, 0), (1, 0)],
    ]
    assert [files.directory[batch].tolist() for batch in batches] == [[0] * 4, [0] * 2, [1] * 2]


def test_wide_scene_is_read_in_stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_order, "most_kept", lambda bands: 10)  # two tiles wide
    files = listed(scene("a", grid(5, 2)))
    assert tiles_of(files, batches_in_order(files, np.arange(10), 10, bands=4)) == [
        [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (3, 0), (2, 1), (3, 1), (4, 0), (4, 1)]
    ]


def test_batches_follow_from_the_set_of_rows_alone() -> None:
    files = listed(scene("a", grid(3, 3)))
    batches = batches_in_order(files, np.array([5, 0, 7, 0]), 2, bands=4)
    assert tiles_of(files, batches) == [[(0, 0), (2, 1)], [(1, 2)]]
    assert batches == batches_in_order(files, np.array([0, 5, 7]), 2, bands=4)
    assert batches_in_order(files, np.arange(0), 2, bands=4) == []


def test_ranks_share_the_batches_in_contiguous_parts() -> None:
    batches = [[number] for number in range(10)]
    shares = [share(batches, rank, 3) for rank in range(3)]
    assert shares == [[[0], [1], [2]], [[3], [4], [5]], [[6], [7], [8], [9]]]
    assert [share(batches[:1], rank, 3) for rank in range(3)] == [[], [], [[0]]]
    assert share(batches, 0, 1) == batches


def test_512_mb_of_tiles_are_kept_and_never_too_few_to_go_on() -> None:
    # 512 x 512 pixels of 4 float32 and a byte: 4,456,448 bytes; of 100 float32 and a byte: 105,119,744.
    assert most_kept(4) == 114
    assert most_kept(100) == 16


def test_tile_is_kept_until_the_last_batch_that_needs_it() -> None:
    assert list(changes([[1, 2], [2, 3], [1, 3]], most=9)) == [
        ([1, 2], set()),
        ([3], {2}),
        ([], {1, 3}),
    ]


def test_tile_that_is_needed_last_is_dropped_where_there_are_too_many() -> None:
    assert list(changes([[1, 2, 3], [2], [3], [1]], most=2)) == [
        ([1, 2, 3], {1}),
        ([], {2}),
        ([], {3}),
        ([1], {1}),
    ]


def times_read(width: int, height: int, batch_size: int, most: int) -> tuple[int, int]:
    """How many tiles of a grid are read with all of their neighbours, and how many are there."""
    files = listed(scene("a", grid(width, height)))
    batches = batches_in_order(files, np.arange(len(files)), batch_size, bands=4)
    nearby = [around(files, np.array(batch)) for batch in batches]
    needed = [np.unique(near[near >= 0]).tolist() for near in nearby]
    return sum(len(change.read) for change in changes(needed, most)), len(files)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_each_tile_of_a_stripe_is_read_once(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_order, "most_kept", lambda bands: 30)  # 12 tiles wide
    assert times_read(12, 9, batch_size, most=30) == (108, 108)


def test_tiles_at_the_edges_of_stripes_are_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_order, "most_kept", lambda bands: 30)
    read, tiles = times_read(24, 100, 4, most=30)
    assert tiles == 2400
    assert 2400 < read <= 2600  # 100 rows of two stripes that both need a tile of the other
