"""Pairs of tiles: found, split, read and cut to size, from folders and from an S3 server."""

import hashlib
import logging
import pickle
import re
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
import xxhash
from torch.utils.data import DataLoader

from conftest import S3Server, pattern, write_tile
from robosat_pink.config import CacheConfig, ChannelConfig, ClassConfig, DatasetConfig, SplitConfig
from robosat_pink.datasets import TilePairs
from robosat_pink.datasets.normalisation import normalisation
from robosat_pink.datasets.pair_decoder import Decoded
from robosat_pink.datasets.pairs import TrainingCrop
from robosat_pink.datasets.reader import Sample
from robosat_pink.errors import DataError
from scenes import FIVE_CLASSES, SNOW, TWO_BANDS, mask_pattern, mask_that_belongs_to, pairs_in, write_pair

BY_DAY = {
    "imagery_directory_regex": r"modis_patagonia_snow_(?P<day>2015\d{3})",
    "mask_directory_regex": r"modis_patagonia_snow_(?P<day>2015\d{3})",
}


def identical(first: Sample, second: Sample) -> bool:
    """Whether all is the same but the number of retries: a busy test server may drop a request."""
    return all(
        np.array_equal(one, other) and np.asarray(one).dtype == np.asarray(other).dtype
        for one, other in zip(first._replace(retries=0), second._replace(retries=0), strict=True)
    )


def test_image_pairs_with_the_mask_of_its_tile_and_the_rest_is_counted(tmp_path: Path) -> None:
    for x in (3, 1, 2):
        write_pair(tmp_path, x, mask=np.full((8, 8), x, dtype=np.uint8))
    write_tile(tmp_path / "imagery/scene/5/4/2.tif", pattern(2, 8, 8))
    write_tile(tmp_path / "mask/labels/5/1/3.tif", mask_pattern(8, 8))
    write_tile(tmp_path / "mask/labels/4/1/2.tif", mask_pattern(8, 8))
    (tmp_path / "imagery/scene/readme.txt").write_text("no tile")

    tiles = pairs_in(tmp_path)
    assert len(tiles) == 3
    assert [tiles.pairs.images.path(row) for row in range(3)] == [
        "scene/5/1/2.tif",
        "scene/5/2/2.tif",
        "scene/5/3/2.tif",
    ]
    assert [tiles.pairs.masks.path(row) for row in range(3)] == [
        "labels/5/1/2.tif",
        "labels/5/2/2.tif",
        "labels/5/3/2.tif",
    ]
    assert (tiles.pairs.unpaired_images, tiles.pairs.unpaired_masks) == (1, 2)
    assert [np.unique(sample.mask).tolist() for sample in tiles.__getitems__([2, 0, 1])] == [[3], [1], [2]]


def test_only_directories_that_match_from_their_first_letter_are_read(tmp_path: Path) -> None:
    for scene in ("20180528_a_tiled", "20180528_b", "old_20180528_c_tiled"):
        write_pair(tmp_path, scene=scene)
    tiles = pairs_in(tmp_path, dataset={"imagery_directory_regex": "20180528_.*_tiled$"})
    assert tiles.pairs.images.directories == ("20180528_a_tiled",)


def test_id_is_source_root_x_y_z(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path, 7)
    monkeypatch.chdir(tmp_path)
    tiles = pairs_in(tmp_path, dataset={"image_bucket": "./imagery"})
    assert tiles.ids == ["imagery_scene-7-2-5"]
    assert tiles.id(0) == "imagery_scene-7-2-5"


def test_row_is_the_whole_tile_padded_with_zeros_and_ignored_pixels(tmp_path: Path) -> None:
    write_pair(tmp_path, image=pattern(2, 10, 16))
    sample = pairs_in(tmp_path)[0]
    assert (sample.image.shape, sample.image.dtype) == ((2, 16, 16), np.uint16)
    assert (sample.mask.shape, sample.mask.dtype) == ((16, 16), np.uint8)
    assert np.array_equal(sample.image[:, :10], pattern(2, 10, 16))
    assert np.array_equal(sample.mask[:10], mask_pattern(10, 16))
    assert not sample.image[:, 10:].any()
    assert (sample.mask[10:] == 255).all()
    assert (sample.symmetry, sample.row) == (0, 0)


def test_row_that_fits_already_is_not_padded(tmp_path: Path) -> None:
    write_pair(tmp_path, size=16)
    assert pairs_in(tmp_path)[0].mask.shape == (16, 16)


def test_bands_of_all_channels_follow_one_another(tmp_path: Path) -> None:
    write_pair(tmp_path, image=pattern(4, 8, 8))
    tiles = pairs_in(tmp_path, channels=(ChannelConfig(bands=(4, 1)), ChannelConfig(bands=(3,))))
    assert np.array_equal(tiles[0].image, pattern(4, 8, 8)[[3, 0, 2]])


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 6), (20, 24), (24, 5), (5, 24)])
def test_draw_is_a_square_of_tile_size_in_which_image_and_mask_lie_on_each_other(
    tmp_path: Path, height: int, width: int
) -> None:
    write_pair(tmp_path, image=pattern(2, height, width))
    tiles = pairs_in(tmp_path)
    for epoch in range(10):
        sample = tiles[TrainingCrop(0, epoch)]
        assert sample.image.shape == (2, 8, 8)
        assert np.array_equal(sample.mask, mask_that_belongs_to(sample.image[0]))
        inside = sample.image[0] > 0
        assert inside.sum() == min(height, 8) * min(width, 8)
        assert (sample.image[1][inside] - sample.image[0][inside] == 10000).all()


def test_crops_reach_every_place_of_the_tile(tmp_path: Path) -> None:
    write_pair(tmp_path, image=pattern(2, 9, 10))
    tiles = pairs_in(tmp_path)
    corners = {int(tiles[TrainingCrop(0, epoch)].image[0, 0, 0]) - 10000 for epoch in range(100)}
    assert corners == {64 * top + left for top in (0, 1) for left in (0, 1, 2)}


@pytest.mark.parametrize("place", [(0, 0), (0, 63), (63, 0), (63, 63), (20, 41)])
def test_crop_holds_a_valid_pixel_if_the_tile_has_one(tmp_path: Path, place: tuple[int, int]) -> None:
    mask = np.full((64, 64), 255, dtype=np.uint8)
    mask[place] = 3
    write_pair(tmp_path, image=pattern(2, 64, 64), mask=mask, mask_nodata=255)
    tiles = pairs_in(tmp_path)
    for epoch in range(20):
        sample = tiles[TrainingCrop(0, epoch)]
        assert sample.mask.shape == (8, 8)
        assert sample.image[0][sample.mask == 3].tolist() == [10000 + 64 * place[0] + place[1]]


def test_draw_of_a_tile_without_a_valid_pixel_is_all_ignored(tmp_path: Path) -> None:
    write_pair(tmp_path, image=pattern(2, 20, 20), mask=np.full((20, 20), 255, dtype=np.uint8), mask_nodata=255)
    assert (pairs_in(tmp_path)[TrainingCrop(0, 1)].mask == 255).all()


def test_draw_depends_on_seed_epoch_and_row_alone(tmp_path: Path) -> None:
    for x in (1, 2):
        write_pair(tmp_path, x, image=pattern(2, 60, 60))
    tiles, again = (pairs_in(tmp_path, seed=3, augmentation=0.75) for _ in range(2))
    other_seed = pairs_in(tmp_path, seed=4, augmentation=0.75)
    draw = TrainingCrop(0, 1)
    first = tiles[draw]
    tiles.__getitems__([TrainingCrop(1, 1), TrainingCrop(0, 2), 0])
    assert identical(tiles[draw], first)
    assert identical(tiles.__getitems__([TrainingCrop(1, 1), draw])[1], first)
    assert identical(again[draw], first)
    # 53 x 53 windows of 8 x 8 in 60 x 60: two draws agree by chance once in 2,809 times.
    for other in (tiles[TrainingCrop(0, 2)], tiles[TrainingCrop(1, 1)], other_seed[draw]):
        assert not np.array_equal(other.image, first.image)


@pytest.mark.parametrize(("augmentation", "low", "high"), [(0.0, 0, 0), (0.75, 0.68, 0.82), (1.0, 1, 1)])
def test_symmetry_other_than_the_identity_is_drawn_with_the_probability_asked_for(
    tmp_path: Path, augmentation: float, low: float, high: float
) -> None:
    write_pair(tmp_path)
    tiles = pairs_in(tmp_path, augmentation=augmentation)
    drawn = [sample.symmetry for sample in tiles.__getitems__([TrainingCrop(0, epoch) for epoch in range(200)])]
    assert low <= np.mean([symmetry > 0 for symmetry in drawn]) <= high
    assert set(drawn) - {0} == (set(range(1, 8)) if augmentation else set())


def test_drawn_sample_is_not_turned_yet(tmp_path: Path) -> None:
    write_pair(tmp_path)
    sample = pairs_in(tmp_path, augmentation=1.0)[TrainingCrop(0, 1)]
    assert np.array_equal(sample.image, pattern(2, 8, 8))
    assert np.array_equal(sample.mask, mask_pattern(8, 8))


def named(**values: tuple[int, ...] | None) -> tuple[ClassConfig, ...]:
    return tuple(ClassConfig(name=name, values=each) for name, each in values.items())


@pytest.mark.parametrize(
    ("classes", "mask", "expected"),
    [
        (named(snow=None), [0, 1, 1, 0], [0, 1, 1, 0]),
        (named(snow=(255,)), [0, 255, 255, 0], [0, 1, 1, 0]),
        (named(snow=(3, 200)), [0, 3, 200, 3], [0, 1, 1, 1]),
        (named(rock=None, snow=None, water=None), [0, 1, 2, 1], [0, 1, 2, 1]),
        (named(rock=(0, 7), snow=(255,)), [0, 7, 255, 0], [0, 0, 1, 0]),
        (named(rock=(20,), snow=None, water=(10, 0)), [0, 1, 10, 20], [2, 1, 2, 0]),
    ],
)
def test_mask_values_become_class_numbers(
    tmp_path: Path, classes: tuple[ClassConfig, ...], mask: list[int], expected: list[int]
) -> None:
    write_pair(tmp_path, image=pattern(2, 1, 4), mask=np.array([mask], dtype=np.uint8))
    assert pairs_in(tmp_path, classes)[0].mask[0, :4].tolist() == expected


@pytest.mark.parametrize(
    ("classes", "value", "count", "accepted"),
    [
        (SNOW, 7, 2, r"accepted: 0 \(background\), 1;"),
        (SNOW, 255, 1, r"accepted: 0 \(background\), 1;"),
        (named(snow=(255,)), 1, 1, r"accepted: 0 \(background\), 255;"),
        (named(rock=(0,), snow=(3, 2)), 7, 2, "accepted: 0, 2, 3;"),
        (FIVE_CLASSES, 255, 1, "accepted: 0, 1, 2, 3, 4;"),
    ],
)
def test_unlisted_mask_value_is_an_error_with_tile_and_value(
    tmp_path: Path, classes: tuple[ClassConfig, ...], value: int, count: int, accepted: str
) -> None:
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[2, 3 : 3 + count] = value
    write_pair(tmp_path, mask=mask)
    with pytest.raises(
        DataError, match=rf"mask/labels/5/1/2.tif: mask value {value} in {count} pixel\(s\); {accepted}"
    ):
        pairs_in(tmp_path, classes)[0]


def test_unlisted_value_is_accepted_as_the_declared_nodata_of_the_mask(tmp_path: Path) -> None:
    mask = mask_pattern(8, 8)
    mask[4, 5] = 7
    write_pair(tmp_path, mask=mask, mask_nodata=7)
    expected = mask_pattern(8, 8)
    expected[4, 5] = 255
    assert np.array_equal(pairs_in(tmp_path)[0].mask, expected)


def test_nodata_of_the_mask_is_ignored_even_if_a_class_lists_it(tmp_path: Path) -> None:
    write_pair(tmp_path, mask_nodata=3)
    sample = pairs_in(tmp_path)[0]
    assert np.array_equal(sample.mask, np.where(mask_pattern(8, 8) == 3, 255, mask_pattern(8, 8)))
    assert np.array_equal(sample.image, pattern(2, 8, 8))


def test_pixel_that_the_image_lacks_is_ignored_in_the_mask(tmp_path: Path) -> None:
    image = pattern(3, 8, 8)
    image[:2, 1, 6] = 9
    image[0, 2, 2] = 9
    write_pair(tmp_path, image=image, image_nodata=9)
    sample = pairs_in(tmp_path)[0]
    expected = mask_pattern(8, 8)
    expected[1, 6] = 255
    assert np.array_equal(sample.mask, expected)
    assert sample.image[:, 1, 6].tolist() == [0, 0]
    assert sample.image[:, 2, 2].tolist() == [0, 20000 + 128 + 2]


@pytest.mark.parametrize(
    ("dtype", "scale"), [("uint8", 255), ("uint16", 10000), ("int16", 10000), ("float32", 1), ("float64", 1)]
)
def test_scale_auto_follows_the_type_of_the_tile(tmp_path: Path, dtype: str, scale: float) -> None:
    write_pair(tmp_path, image=np.ones((2, 8, 8), dtype=dtype))
    for item in (0, TrainingCrop(0, 1)):
        sample = pairs_in(tmp_path)[item]
        assert (sample.scale.tolist(), sample.scale.dtype) == ([scale, scale], np.float32)


def test_scale_auto_does_not_guess_for_other_types(tmp_path: Path) -> None:
    write_pair(tmp_path, image=np.ones((2, 8, 8), dtype=np.uint32))
    for item in (0, TrainingCrop(0, 1)):
        with pytest.raises(
            DataError, match=r"scene/5/1/2.tif: .*uint8, uint16, int16, float32, not uint32; set a number"
        ):
            pairs_in(tmp_path)[item]
    numbered = pairs_in(tmp_path, channels=(ChannelConfig(bands=(1,), scale=100),))
    assert numbered[0].scale.tolist() == [100]


def test_scale_is_each_channels_own_and_raw_divides_by_1(tmp_path: Path) -> None:
    write_pair(tmp_path, image=pattern(4, 8, 8))
    channels = (
        ChannelConfig(bands=(1, 2), scale=3000),
        ChannelConfig(bands=(3,), scale="raw"),
        ChannelConfig(bands=(4,), scale="auto"),
    )
    assert pairs_in(tmp_path, channels=channels)[0].scale.tolist() == [3000, 3000, 1, 10000]


def test_normalisation_lists_mean_and_std_of_all_bands_and_leaves_raw_ones_alone() -> None:
    channels = (
        ChannelConfig(bands=(4, 1), mean=(0.5, 0.25), std=(0.1, 0.2)),
        ChannelConfig(bands=(2,), mean=(9.0,), std=(9.0,), scale="raw"),
        ChannelConfig(bands=(3,), mean=(0.125,), scale=100),
    )
    assert normalisation(channels) == ((0.5, 0.25, 0, 0.125), (0.1, 0.2, 1, 1))


def test_image_and_mask_of_different_sizes_are_an_error_that_names_both(tmp_path: Path) -> None:
    write_pair(tmp_path, image=pattern(2, 8, 12), mask=mask_pattern(12, 8))
    message = r"mask/labels/5/1/2.tif: 8 x 12 pixels, but its image .*imagery/scene/5/1/2.tif has 12 x 8"
    with pytest.raises(DataError, match=message):
        pairs_in(tmp_path)[0]


@pytest.mark.parametrize("key", ["imagery_directory_regex", "mask_directory_regex"])
def test_expression_that_matches_no_directory_is_an_error_with_those_there_are(tmp_path: Path, key: str) -> None:
    write_pair(tmp_path, scene="2018_b", labels="2018_b")
    write_pair(tmp_path, scene="2017_a", labels="2017_a")
    with pytest.raises(DataError) as caught:
        pairs_in(tmp_path, dataset={key: r"2019_\d+"})
    folder = "imagery" if key.startswith("imagery") else "mask"
    assert str(caught.value).startswith(f"dataset.{key} = ")
    for part in (r"2019_", f"{tmp_path}/{folder}", "2017_a, 2018_b"):
        assert part in str(caught.value)


def test_no_pair_at_all_is_an_error_with_expressions_directories_and_samples_of_both_sides(tmp_path: Path) -> None:
    write_tile(tmp_path / "imagery/scene_a/5/1/2.tif", pattern(2, 8, 8))
    write_tile(tmp_path / "imagery/scene_b/5/1/3.tif", pattern(2, 8, 8))
    write_tile(tmp_path / "mask/labels_c/4/1/2.tif", mask_pattern(8, 8))
    with pytest.raises(DataError, match=r"^no image has a mask of the same z/x/y") as caught:
        pairs_in(tmp_path, dataset={"imagery_directory_regex": "scene_", "mask_directory_regex": "labels_."})
    for part in (
        f"{tmp_path}/imagery, expression 'scene_': 2 tiles in the directories scene_a, scene_b",
        "scene_a/5/1/2.tif, scene_b/5/1/3.tif",
        f"{tmp_path}/mask, expression 'labels_.': 1 tiles in the directories labels_c",
        "labels_c/4/1/2.tif",
    ):
        assert part in str(caught.value)


def test_two_masks_for_one_image_are_an_error_that_names_both_and_the_way_out(tmp_path: Path) -> None:
    write_pair(tmp_path, labels="labels_a")
    write_pair(tmp_path, labels="labels_b")
    with pytest.raises(DataError) as caught:
        pairs_in(tmp_path)
    for part in ("scene/5/1/2.tif", "labels_a/5/1/2.tif", "labels_b/5/1/2.tif", "named group", "(?P<day>"):
        assert part in str(caught.value)


def write_days(folder: Path) -> dict[str, str]:
    """Two days of one tile with a mask each, a third without one; the expressions that tell them apart."""
    for day in (1, 2):
        mask = np.full((8, 8), day, dtype=np.uint8)
        write_pair(folder, scene=f"image_day{day}_a", labels=f"truth_{day}", mask=mask)
    write_tile(folder / "imagery/image_day3_a/5/1/2.tif", pattern(2, 8, 8))
    return {
        "imagery_directory_regex": r"image_day(?P<day>\d)_(?P<part>.)",
        "mask_directory_regex": r"truth_(?P<day>\d)",
    }


def test_named_groups_that_both_expressions_share_must_agree(tmp_path: Path) -> None:
    tiles = pairs_in(tmp_path, dataset=write_days(tmp_path))
    found = {tiles.pairs.images.path(row): tiles[row].mask[0, 0] for row in range(len(tiles))}
    assert found == {"image_day1_a/5/1/2.tif": 1, "image_day2_a/5/1/2.tif": 2}
    assert (tiles.pairs.unpaired_images, tiles.pairs.unpaired_masks) == (1, 0)


def test_no_pair_that_agrees_in_the_named_groups_is_an_error_that_says_so(tmp_path: Path) -> None:
    expressions = write_days(tmp_path)
    for day in (1, 2):
        shutil.rmtree(tmp_path / f"imagery/image_day{day}_a")
    with pytest.raises(DataError, match="no image has a mask of the same z/x/y and the same day"):
        pairs_in(tmp_path, dataset=expressions)


def test_days_of_one_ground_tile_stay_together_by_tile_and_part_by_group(tmp_path: Path) -> None:
    expressions = write_days(tmp_path)
    with pytest.raises(DataError, match="1 ground tile"):
        pairs_in(tmp_path, dataset=expressions).split()
    train, val, holdout = pairs_in(tmp_path, dataset=expressions | {"split": SplitConfig(by="group")}).split()
    assert sorted([*train, *val]) == [0, 1]
    assert (len(train), len(val), len(holdout)) == (1, 1, 0)


def test_split_takes_its_numbers_from_the_experiment(tmp_path: Path) -> None:
    for x in range(10):
        write_pair(tmp_path, x)
    sizes = {"train_percent": 0.5, "split": SplitConfig(test_percent=0.2)}
    parts = pairs_in(tmp_path, dataset=sizes).split()
    assert [len(part) for part in parts] == [5, 3, 2]
    assert sorted(np.concatenate(parts)) == list(range(10))
    reseeded = pairs_in(tmp_path, dataset=sizes | {"split": SplitConfig(test_percent=0.2, seed=1)}).split()
    assert [part.tolist() for part in parts] != [part.tolist() for part in reseeded]
    # All have y = 2: at zoom 3 a block is four columns wide, x 0-3, 4-7, 8-9.
    blocks = pairs_in(tmp_path, dataset={"train_percent": 0.5, "split": SplitConfig(by="block", zoom=3)}).split()
    assert len(blocks.train) + len(blocks.val) == 10
    assert not {row // 4 for row in blocks.train} & {row // 4 for row in blocks.val}


@pytest.fixture
def earlier_run(tmp_path: Path) -> Path:
    """Five pairs, rows 0 to 4 at x = 0 to 4 in a scene whose name has a space, and an empty folder for id files."""
    for x in range(5):
        write_pair(tmp_path, x, scene="scene of may")
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def split_from(run: Path, **dataset: object) -> tuple[list[int], ...]:
    from_earlier = {"split": SplitConfig(from_=f"{run}/test_ids.txt", seed=8, test_percent=0.4)}
    return tuple(part.tolist() for part in pairs_in(run.parent, dataset=from_earlier | dataset).split())


def write_ids(run: Path, name: str, rows: list[int], *others: str) -> None:
    ids = pairs_in(run.parent).ids
    (run / name).write_text("".join(f"{line}\n" for line in (*(ids[row] for row in rows), *others)))


def test_split_from_an_earlier_run_evaluates_its_tiles_and_trains_on_the_rest(earlier_run: Path) -> None:
    write_ids(earlier_run, "test_ids.txt", [3, 1])
    assert split_from(earlier_run, train_percent=0.9) == ([0, 2, 4], [1, 3], [])


def test_split_from_an_earlier_run_holds_out_what_it_held_out(earlier_run: Path) -> None:
    write_ids(earlier_run, "test_ids.txt", [3])
    write_ids(earlier_run, "holdout_ids.txt", [4, 0])
    assert split_from(earlier_run) == ([1, 2], [3], [0, 4])


def test_split_from_an_earlier_run_puts_no_tile_twice(earlier_run: Path) -> None:
    write_ids(earlier_run, "test_ids.txt", [3, 1, 3])
    write_ids(earlier_run, "holdout_ids.txt", [4, 1, 4])
    assert split_from(earlier_run) == ([0, 2], [1, 3], [4])


def test_split_from_an_earlier_run_warns_of_ids_that_are_not_there(
    earlier_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_ids(earlier_run, "test_ids.txt", [1])

    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    split_from(earlier_run)
    assert warnings() == []
    write_ids(earlier_run, "test_ids.txt", [1], "gone-1-2-5", "gone-2-2-5")
    assert split_from(earlier_run) == ([0, 2, 3, 4], [1], [])
    assert warnings() == [f"{earlier_run}/test_ids.txt names 2 tiles that are not in this run's data"]


@pytest.mark.parametrize("rows", [[], [0, 1, 2, 3, 4]])
def test_split_from_an_earlier_run_that_leaves_a_part_empty_is_an_error(earlier_run: Path, rows: list[int]) -> None:
    write_ids(earlier_run, "test_ids.txt", rows)
    message = rf"leaves {5 - len(rows)} tiles to train on and {len(rows)} to evaluate of 5; .*scene of may-0-2-5"
    with pytest.raises(DataError, match=message):
        split_from(earlier_run)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_id_files_may_have_a_byte_order_mark_and_line_ends_of_windows(earlier_run: Path, encoding: str) -> None:
    ids = pairs_in(earlier_run.parent).ids
    for name, rows in (("test_ids.txt", [3, 1]), ("holdout_ids.txt", [4])):
        (earlier_run / name).write_bytes("".join(f"{ids[row]}\r\n" for row in rows).encode(encoding))
    assert split_from(earlier_run) == ([0, 2], [1, 3], [4])


@pytest.mark.parametrize("name", ["test_ids.txt", "holdout_ids.txt"])
def test_id_file_that_is_not_utf_8_is_refused_in_words(earlier_run: Path, name: str) -> None:
    write_ids(earlier_run, "test_ids.txt", [1])
    ids = pairs_in(earlier_run.parent).ids
    (earlier_run / name).write_bytes(f"{ids[2]}\n".encode("utf-16"))
    with pytest.raises(DataError, match=rf"run/{name}: is not UTF-8 text .*one tile id a line; save it as UTF-8"):
        split_from(earlier_run)


def test_split_from_refuses_ground_that_is_trained_on_at_another_zoom(earlier_run: Path) -> None:
    folder = earlier_run.parent
    write_tile(folder / "imagery/scene of may/6/3/5.tif", pattern(2, 8, 8))
    write_tile(folder / "mask/labels/6/3/5.tif", mask_pattern(8, 8))
    ids = pairs_in(folder).ids
    assert ids[5] == "".join(ids[5].partition("scene of may")[:2]) + "-3-5-6"
    (earlier_run / "test_ids.txt").write_text(f"{ids[1]}\n")
    with pytest.raises(DataError, match=r"several zooms: 5 \(5 tiles\), 6 \(1 tiles\); 1 of the 1 tiles to evaluate"):
        split_from(earlier_run)
    (earlier_run / "test_ids.txt").write_text(f"{ids[1]}\n{ids[5]}\n")
    assert split_from(earlier_run) == ([0, 2, 3, 4], [1, 5], [])
    with pytest.raises(DataError, match=r"dataset\.split\.by = tile"):
        pairs_in(folder).split()


def test_split_from_a_file_that_is_not_there_is_an_error_that_names_it(earlier_run: Path) -> None:
    with pytest.raises(DataError, match=r"run/test_ids.txt: not found"):
        split_from(earlier_run)


def test_digest_changes_with_names_and_contents_only(tmp_path: Path) -> None:
    for x in (1, 2):
        write_pair(tmp_path, x)
    before = pairs_in(tmp_path).digest()
    assert pairs_in(tmp_path, seed=5, tile_size=16).digest() == before

    write_pair(tmp_path, 3)
    more = pairs_in(tmp_path).digest()
    write_tile(tmp_path / "mask/labels/5/2/2.tif", mask_pattern(8, 8)[::-1])
    other_mask = pairs_in(tmp_path).digest()
    (tmp_path / "imagery/scene").rename(tmp_path / "imagery/renamed")
    renamed = pairs_in(tmp_path).digest()
    assert len({before, more, other_mask, renamed}) == 4


def test_digest_of_a_bucket_is_that_of_earlier_resume_points(s3: S3Server, tmp_path: Path) -> None:
    for x in (2, 1):
        write_pair(tmp_path, x)
    for bucket in ("imagery", "mask"):
        s3.make_bucket(bucket)
        s3.upload(tmp_path / bucket, bucket)
    expected = hashlib.sha256()
    for name, folder in (("scene", tmp_path / "imagery/scene"), ("labels", tmp_path / "mask/labels")):
        contents = [(folder / f"5/{x}/2.tif").read_bytes() for x in (1, 2)]
        etags = [f'"{hashlib.md5(content).hexdigest()}"'.encode() for content in contents]
        versions = [xxhash.xxh3_64_intdigest(etag, len(content)) for etag, content in zip(etags, contents, strict=True)]
        expected.update(name.encode())
        for column in (
            np.zeros(2, np.int32),
            np.array([[5, 1, 2], [5, 2, 2]], np.int32),
            np.array(versions, np.uint64),
        ):
            expected.update(column.tobytes())
    where = {"image_bucket": "s3://imagery", "mask_bucket": "s3://mask"}
    assert pairs_in(tmp_path, dataset=where).digest() == expected.hexdigest()


@pytest.mark.parametrize("bits", ["image", "mask"])
def test_pair_with_a_sidecar_is_fetched_with_it_each_time_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: str
) -> None:
    for x in (1, 2):
        write_pair(tmp_path, x)
    side = "imagery/scene" if bits == "image" else "mask/labels"
    (tmp_path / side / "5/1/2.tif.aux.xml").write_bytes(b"<PAMDataset/>")
    (tmp_path / "cache").mkdir()
    tiles = pairs_in(tmp_path, dataset={"cache": CacheConfig(dir=str(tmp_path / "cache"), max_gb=1)})
    given: list[tuple[str, dict[str, bytes], dict[str, bytes]]] = []
    decode = tiles.reader.decoder.decode

    def decoded(image: memoryview, mask: memoryview, *rest: Any) -> Decoded:
        image_name, _, *sidecars = rest
        image_sidecars, mask_sidecars = ({name: bytes(each) for name, each in side.items()} for side in sidecars)
        given.append((image_name.removeprefix(f"{tmp_path}/imagery/"), image_sidecars, mask_sidecars))
        return decode(image, mask, *rest)

    monkeypatch.setattr(tiles.reader.decoder, "decode", decoded)
    for _ in range(2):
        tiles.__getitems__([0, 1])
    beside = {".aux.xml": b"<PAMDataset/>"}
    with_it = ("scene/5/1/2.tif", beside if bits == "image" else {}, beside if bits == "mask" else {})
    assert sorted(given, key=str) == sorted([with_it, with_it, ("scene/5/2/2.tif", {}, {})], key=str)
    assert len(list((tmp_path / "cache").glob("*.tile"))) == 1


def test_pairs_travel_to_another_process_and_read_the_same_there(tmp_path: Path) -> None:
    write_pair(tmp_path, size=20)
    tiles = pairs_in(tmp_path, seed=2, augmentation=0.5)
    samples = tiles.__getitems__([0, TrainingCrop(0, 1)])
    copied = pickle.loads(pickle.dumps(tiles))
    assert copied.ids == tiles.ids
    assert all(map(identical, copied.__getitems__([0, TrainingCrop(0, 1)]), samples))


@pytest.fixture
def scene_on_s3(tmp_path: Path, s3: S3Server) -> Path:
    """Three pairs in a folder, and the same ones in the buckets planet-imagery/2018/ and planet-mask."""
    for x in (1, 2, 3):
        write_pair(tmp_path, x, size=20)
    for bucket, prefix, folder in (("planet-imagery", "2018/", "imagery"), ("planet-mask", "", "mask")):
        s3.make_bucket(bucket)
        s3.upload(tmp_path / folder, bucket, prefix)
    return tmp_path


def pairs_on_s3(endpoint_url: str | None = None, **options: object) -> TilePairs:
    where = DatasetConfig(image_bucket="planet-imagery/2018", mask_bucket="s3://planet-mask", endpoint_url=endpoint_url)
    return TilePairs(where, TWO_BANDS, FIVE_CLASSES, tile_size=8, size_multiple=8, **options)  # type: ignore[arg-type]


def test_bucket_and_folder_give_the_same_samples(scene_on_s3: Path) -> None:
    options = {"seed": 1, "augmentation": 0.75}
    in_folder, on_s3 = pairs_in(scene_on_s3, **options), pairs_on_s3(**options)
    items = [0, 1, 2, TrainingCrop(2, 1), TrainingCrop(0, 1), TrainingCrop(0, 2)]
    assert all(map(identical, on_s3.__getitems__(items), in_folder.__getitems__(items)))
    assert on_s3.ids == [
        "planet-imagery_2018_scene-1-2-5",
        "planet-imagery_2018_scene-2-2-5",
        "planet-imagery_2018_scene-3-2-5",
    ]
    assert [part.tolist() for part in on_s3.split()] == [part.tolist() for part in in_folder.split()]


def rows_of(samples: list[Sample]) -> list[tuple[int, int]]:
    return [(sample.row, int(sample.image.sum())) for sample in samples]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["spawn", "forkserver"])
def test_torchs_loader_reads_pairs_in_processes_that_are_started_anew(tmp_path: Path, way: str) -> None:
    write_pair(tmp_path)
    tiles = pairs_in(tmp_path)
    loader = DataLoader(tiles, batch_size=1, num_workers=1, multiprocessing_context=way, collate_fn=rows_of)
    assert list(loader) == [rows_of([tiles[0]])]


def test_process_that_was_forked_from_one_that_reads_says_so_instead_of_hanging(tmp_path: Path) -> None:
    write_pair(tmp_path)
    tiles = pairs_in(tmp_path)
    assert len(tiles[0].mask)
    loader = DataLoader(tiles, batch_size=1, num_workers=1, multiprocessing_context="fork", collate_fn=rows_of)
    with pytest.raises(RuntimeError, match="by forkserver or spawn"):
        list(loader)


def test_digest_of_a_bucket_changes_with_content(scene_on_s3: Path, s3: S3Server) -> None:
    before = pairs_on_s3().digest()
    assert pairs_on_s3().digest() == before
    body = (scene_on_s3 / "imagery/scene/5/1/2.tif").read_bytes()
    s3.client.put_object(Bucket="planet-imagery", Key="2018/scene/5/1/2.tif", Body=body[:-1] + b"\x01")
    assert pairs_on_s3().digest() != before


@pytest.fixture
def relay(s3: S3Server) -> Iterator[tuple[str, list[str]]]:
    """The address of a server that passes requests on to the S3 server, and the requests it has passed on."""
    passed_on: list[str] = []

    class Relay(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            passed_on.append(f"{self.command} {self.path}")
            with urlopen(
                Request(s3.endpoint_url + self.path, headers=dict(self.headers), method=self.command)
            ) as answer:
                body = answer.read()
                self.send_response(answer.status)
                for name in ("ETag", "Last-Modified", "Content-Type"):
                    if name in answer.headers:
                        self.send_header(name, answer.headers[name])
                self.send_header("Content-Length", answer.headers.get("Content-Length", str(len(body))))
                self.end_headers()
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the base class calls it so

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Relay) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", passed_on
        server.shutdown()


def test_pair_is_read_by_one_get_of_the_image_and_one_of_the_mask(
    scene_on_s3: Path, relay: tuple[str, list[str]]
) -> None:
    address, passed_on = relay
    tiles = pairs_on_s3(address)
    listings = [request for request in passed_on if "list-type=2" in request]
    assert len(listings) == len(passed_on) == 4  # the directories and the one directory's files, of each bucket
    passed_on.clear()
    tiles.__getitems__([TrainingCrop(2, 1), 0])
    assert sorted(passed_on) == [
        "GET /planet-imagery/2018/scene/5/1/2.tif",
        "GET /planet-imagery/2018/scene/5/3/2.tif",
        "GET /planet-mask/labels/5/1/2.tif",
        "GET /planet-mask/labels/5/3/2.tif",
    ]


def without_etags(s3: S3Server) -> ThreadingHTTPServer:
    """A server that passes requests on to the S3 server, and no ETag back."""

    class Relay(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with urlopen(Request(s3.endpoint_url + self.path, headers=dict(self.headers))) as answer:
                body = re.sub(rb"<ETag>.*?</ETag>", b"", answer.read()) if "?" in self.path else answer.read()
                self.send_response(answer.status)
                self.send_header("Last-Modified", answer.headers.get("Last-Modified", ""))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    return ThreadingHTTPServer(("127.0.0.1", 0), Relay)


def test_cache_follows_the_time_of_a_tile_where_the_store_has_no_etags(
    scene_on_s3: Path, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    mask = scene_on_s3 / "mask/labels/5/1/2.tif"
    with without_etags(s3) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        for _ in range(2):
            first = pairs_on_s3(address)[0]
        assert first.fetched_bytes == 0  # kept
        said = [record.getMessage() for record in caplog.records if "Last-Modified" in record.getMessage()]
        assert sorted(each.split()[1] for each in said) == ["s3://planet-imagery/2018", "s3://planet-mask"]
        time.sleep(1.1)  # times are of whole seconds
        write_tile(mask, mask_pattern(20, 20)[::-1])
        s3.client.put_object(Bucket="planet-mask", Key="labels/5/1/2.tif", Body=mask.read_bytes())
        assert not np.array_equal(pairs_on_s3(address)[0].mask, first.mask)
        server.shutdown()


def test_modis_scenes_pair_with_the_mask_of_their_own_day(shared: Path) -> None:
    where = DatasetConfig(image_bucket=f"{shared}/data/imagery", mask_bucket=f"{shared}/data/mask", **BY_DAY)
    tiles = TilePairs(where, (ChannelConfig(bands=(1, 2, 3, 4)),), SNOW)
    assert len(tiles) == len(set(tiles.ids)) == 60
    images, masks = tiles.pairs.images, tiles.pairs.masks
    days = [images.directories[number] for number in images.directory]
    assert days == [masks.directories[number] for number in masks.directory]
    assert len(set(days)) == 60
    assert {images.tile(row) for row in range(60)} == {images.tile(0)}

    snow = [share_of_snow(sample.mask) for sample in tiles.__getitems__(range(60))]
    manifest = [line.split(",") for line in (shared / "data/manifest.csv").read_text().splitlines()]
    column = manifest[0].index("pos_frac_valid")
    assert snow == pytest.approx([float(line[column]) for line in sorted(manifest) if line[0] in days], abs=1e-4)


def share_of_snow(mask: np.ndarray) -> float:
    return float((mask == 1).sum() / (mask != 255).sum())


def test_modis_scenes_without_the_day_in_the_expressions_are_refused(shared: Path) -> None:
    where = DatasetConfig(
        image_bucket=f"{shared}/data/imagery",
        mask_bucket=f"{shared}/data/mask",
        imagery_directory_regex="modis_",
        mask_directory_regex="modis_",
    )
    with pytest.raises(DataError, match="two masks for the image modis_patagonia_snow_2015"):
        TilePairs(where, TWO_BANDS, SNOW)


def test_valid_and_positive_share_of_every_real_tile_is_the_manifests(shared: Path) -> None:
    where = DatasetConfig(
        image_bucket=f"{shared}/data/imagery",
        mask_bucket=f"{shared}/data/mask",
        imagery_directory_regex=r"(?P<scene>s2_.*|l[78]_.*)",
        mask_directory_regex=r"(?P<scene>s2_.*|l[78]_.*)",
    )
    tiles = TilePairs(where, (ChannelConfig(bands=(1, 2, 3, 4)),), SNOW)
    masks = [sample.mask for sample in tiles.__getitems__(range(len(tiles)))]
    found = {tiles.pairs.images.path(row): mask for row, mask in enumerate(masks)}
    lines = [line.split(",") for line in (shared / "data/manifest.csv").read_text().splitlines()]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:] if not line[0].startswith("modis")]
    assert len(found) == len(rows) == 25 + 29 + 14
    for row in rows:
        mask = found[f"{row['scene']}/{row['z']}/{row['x']}/{row['y']}.tif"]
        assert (mask != 255).mean() == pytest.approx(float(row["valid_frac"]), abs=1e-4)
        assert share_of_snow(mask) == pytest.approx(float(row["pos_frac_valid"]), abs=1e-4)
