"""Tile arithmetic: how a listing becomes tiles, which image has which mask, and how ground tiles are split."""

import ast
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from robosat_pink import datasets
from robosat_pink.datasets.file_names import parse_names, version_of
from robosat_pink.datasets.pairing import Pairs, pair, seeming_cause
from robosat_pink.datasets.split import Split, refuse_crossings, split_pairs
from robosat_pink.datasets.tiles import Tile, TileFiles, around, parents, tile_id
from robosat_pink.errors import DataError


def files(**listing: Sequence[str]) -> TileFiles:
    """The tiles among the paths of each directory."""
    return TileFiles.from_tables({name: [parse(name, *paths)] for name, paths in listing.items()})


def parse(directory: str, *paths: str, versions: Sequence[str] = (), modified: Sequence[int] = ()) -> np.ndarray:
    prefix, count = f"{directory}/", len(paths)
    etags, times = versions or ["v1"] * count, modified or [9] * count
    return parse_names(prefix, [prefix + path for path in paths], [7] * count, etags, times)


def paths(found: TileFiles) -> list[str]:
    return [found.path(row) for row in range(len(found))]


def paired(images: TileFiles, masks: TileFiles, image_groups: str = "", mask_groups: str = "") -> Pairs:
    """Joined, with a letter for the group of each directory; without letters all are of one."""
    groups: list[Sequence[Hashable]] = [
        [(letter,) for letter in letters] if letters else [()] * len(side.directories)
        for letters, side in ((image_groups, images), (mask_groups, masks))
    ]
    return pair(images, masks, *groups)


def joined(pairs: Pairs) -> list[tuple[str, str]]:
    return list(zip(paths(pairs.images), paths(pairs.masks), strict=True))


def pairs_at(*places: str, days: Sequence[str] = ("scene",)) -> Pairs:
    """A pair at each place, such as 5/1/2, on each day; every day is a group."""
    listing = {day: [f"{place}.tif" for place in places] for day in days}
    groups = [(day,) for day in days]
    return pair(files(**listing), files(**listing), groups, groups)


def places_of(pairs: Pairs, rows: Iterable[int]) -> set[str]:
    return {"/".join(map(str, pairs.images.zxy[row])) for row in rows}


def lists(split: Split) -> tuple[list[int], list[int], list[int]]:
    return split.train.tolist(), split.val.tolist(), split.holdout.tolist()


TEN = tuple(f"5/{x}/2" for x in range(10))


@pytest.mark.parametrize(
    "suffix", [".tif", ".tiff", ".png", ".jpg", ".jpeg", ".webp", ".TIF", ".Tiff", ".JPG", "@2x.png", "@2x.TIF"]
)
def test_tile_is_z_x_y_with_an_image_suffix_and_keeps_its_path(suffix: str) -> None:
    found = files(**{"20180528_tiled": [f"12/654/1583{suffix}"]})
    assert paths(found) == [f"20180528_tiled/12/654/1583{suffix}"]
    assert found.tile(0) == Tile(z=12, x=654, y=1583)


@pytest.mark.parametrize(
    "path",
    [
        "654/1583.tif",
        "scene/12/654/1583.tif",
        "12/654/1583/0.tif",
        "12/654/1583",
        "12/654/1583.tif.aux.xml",
        "12/654/1583.tif.ovr",
        "12/654/1583@3x.tif",
        "12/654/1583@2xtif",
        "12/654/1583.vrt",
        "12/654/1583.tif\n",
        "12/654/-3.tif",
        "12/654/15.83.tif",
        "z12/654/1583.tif",
        "12/654/.tif",
        "12/654/1583tif",
        "thumbs.db",
    ],
)
def test_any_other_file_is_no_tile(path: str) -> None:
    found = files(scene=[path, "12/654/1583.tif"], empty=[])
    assert paths(found) == ["scene/12/654/1583.tif"]


@pytest.mark.parametrize("directory", ["scene", "5", "1", "a.tif", "(x"])
def test_page_of_tiles_alone_is_parsed_like_one_with_other_files(directory: str) -> None:
    names = ["5/1/2.tif", "5/5/5.tif", "1/1/1.tif", "12/654/1583.tif", "0/0/0.tif", "5/999999999/1.tif"]
    versions = list("abcdef")
    alone = parse(directory, *names, versions=versions)
    among = parse(directory, *names, "readme.txt", versions=[*versions, "g"])
    assert sorted(paths(TileFiles.from_tables({directory: [alone]}))) == sorted(f"{directory}/{each}" for each in names)
    assert np.array_equal(alone, among)


def test_name_with_a_line_break_that_looks_like_two_tiles_is_none() -> None:
    assert len(parse("scene", "5/1/2.tif\nscene/5/1/3.tif")) == 0


@pytest.mark.parametrize("path", ["5/01/2.tif", "5/1/4294967298.tif", f"5/1/{'9' * 30}.tif", "5/1/\u0663.tif"])
def test_number_that_would_be_read_back_as_another_is_no_tile(path: str) -> None:
    found = files(scene=[path])
    assert paths(found) == [f"scene/{path}"][: len(found)]  # a tile under its own path, or none


def test_tiles_come_sorted_by_directory_and_place_whatever_the_order_of_the_listing() -> None:
    found = files(b=["5/2/1.tif", "5/10/1.png"], a=["5/1/2.tif", "4/9/9.tif", "5/1/1.TIF"])
    assert paths(found) == ["b/5/2/1.tif", "b/5/10/1.png", "a/4/9/9.tif", "a/5/1/1.TIF", "a/5/1/2.tif"]
    assert found.directories == ("b", "a")
    assert paths(found.take(np.array([4, 1]))) == ["a/5/1/2.tif", "b/5/10/1.png"]


def test_version_tells_contents_apart_by_what_the_store_says() -> None:
    table = parse("scene", "5/1/2.tif", "5/1/3.tif", "5/1/4.tif", versions=["etag a", "etag b", "etag a"])
    first, second, third = table["version"].tolist()
    assert first == third != second
    assert first == version_of("etag a", 7, 9) != version_of("etag a", 8, 9)


def test_version_follows_the_time_only_where_there_is_no_etag() -> None:
    """And with one it is what resume points of earlier versions were written with: xxh3 of the ETag, seeded by size."""
    assert version_of('"5d41402abc4b2a76b9719d911017c592"', 5, 1) == 5305513880443817133
    assert version_of('"a"', 5, 1) == version_of('"a"', 5, 2)
    assert version_of("", 5, 1) != version_of("", 5, 2)
    assert version_of("", 5, 1) != version_of("", 6, 1)


def test_size_and_time_are_kept_whatever_clocks_and_disks_say() -> None:
    times = [9, -1, 2**32 + 5]
    table = parse_names("a/", [f"a/5/1/{y}.tif" for y in range(3)], [7, 2**32 - 1, 2**40], [""] * 3, times)
    among = parse_names(
        "a/", [f"a/5/1/{y}.tif" for y in (0, 1, 2, "x")], [7, 2**32 - 1, 2**40, 0], [""] * 4, [*times, 0]
    )
    assert np.array_equal(table, among)
    assert table["size"].tolist() == [7, 2**32 - 1, 2**32 - 1]
    assert table["modified"].tolist() == [9, 2**32 - 1, 5]


def test_name_that_comes_twice_is_one_file_the_later_one() -> None:
    pages = [
        parse("a", "5/1/2.tif", "5/1/1.tif", versions=["old", "one"], modified=[3, 9]),
        parse("a", "5/1/2.tif", "5/1/1.tif", versions=["new", "one"], modified=[4, 9]),
        parse("a", "5/1/2.tif", "readme.txt", versions=["older", "x"], modified=[2, 2]),
    ]
    found = TileFiles.from_tables({"a": pages})
    assert paths(found) == ["a/5/1/1.tif", "a/5/1/2.tif"]
    assert found.version.tolist() == [version_of("one", 7, 9), version_of("new", 7, 4)]
    assert len(paired(found, found)) == 2


def test_sidecar_belongs_to_the_tile_of_its_name_on_whatever_page_it_stands() -> None:
    pages = [
        parse("a", "5/1/1.tif.msk", "5/1/2.jpg", "5/1/2.jpg.AUX.XML", "5/1/3.tif.msk"),
        parse("a", "5/1/1.tif", "5/1/2.jpg.msk", "5/1/4.tif", "5/1/4.tif.MSK", "5/1/4.tif.msk", "5/1/4.jpg.msk"),
        parse("a", "5/1/5.tif", "5/1/6.tif"),
        parse("a", "5/1/6.TIF.aux.xml", "5/1/5.tif.aux.xml", "5/1/5.aux.xml", "5/1/0.png.msk"),
    ]
    found = TileFiles.from_tables({"a": pages})
    assert dict(zip(paths(found), found.sidecars.tolist(), strict=True)) == {
        "a/5/1/1.tif": 1,
        "a/5/1/2.jpg": 1 + 8,
        "a/5/1/4.tif": 1 + 4,
        "a/5/1/5.tif": 2,
        "a/5/1/6.tif": 0,
    }
    assert len(TileFiles.from_tables({"a": [parse("a", "5/1/1.tif.msk")]})) == 0


def test_no_directory_and_no_tile_is_an_empty_collection() -> None:
    nothing = files()
    assert (len(nothing), nothing.directories) == (0, ())
    assert len(paired(nothing, nothing)) == 0
    assert len(paired(files(a=["readme.txt"]), files(b=[]))) == 0


def test_image_pairs_with_the_mask_of_its_tile_and_the_rest_is_counted() -> None:
    images = files(scene=["5/1/2.tif", "5/2/1.tif", "6/1/2.tif", "5/9/9.tif"])
    masks = files(labels=["5/2/1.png", "5/1/2.png", "5/1/3.png"])
    found = paired(images, masks)
    assert joined(found) == [("scene/5/1/2.tif", "labels/5/1/2.png"), ("scene/5/2/1.tif", "labels/5/2/1.png")]
    assert (len(found), found.unpaired_images, found.unpaired_masks) == (2, 2, 1)


def test_images_of_several_directories_may_share_a_mask() -> None:
    found = paired(files(may=["5/1/2.tif"], june=["5/1/2.tif"]), files(labels=["5/1/2.tif"]))
    assert joined(found) == [("may/5/1/2.tif", "labels/5/1/2.tif"), ("june/5/1/2.tif", "labels/5/1/2.tif")]
    assert (found.unpaired_images, found.unpaired_masks) == (0, 0)


def test_named_groups_must_agree_whatever_the_order_of_the_directories() -> None:
    images = files(may=["5/1/2.tif"], june=["5/1/2.tif"], july=["5/1/2.tif"])
    masks = files(june_labels=["5/1/2.tif"], may_labels=["5/1/2.tif", "5/1/3.tif"])
    found = paired(images, masks, image_groups="567", mask_groups="65")
    assert joined(found) == [("may/5/1/2.tif", "may_labels/5/1/2.tif"), ("june/5/1/2.tif", "june_labels/5/1/2.tif")]
    assert found.group[0] != found.group[1]
    assert (found.unpaired_images, found.unpaired_masks) == (1, 1)


def test_directories_of_one_group_count_as_one() -> None:
    images = files(may_north=["5/1/2.tif"], may_south=["5/1/3.tif"])
    found = paired(images, files(may_labels=["5/1/2.tif", "5/1/3.tif"]), image_groups="55", mask_groups="5")
    assert len(found) == 2
    assert found.group[0] == found.group[1]


def test_two_masks_for_one_image_are_refused_by_name_with_the_way_out() -> None:
    images = files(scene=["5/1/1.tif", "5/1/2.tif", "5/1/3.tif"])
    masks = files(may=["5/1/1.tif", "5/1/2.tif", "5/1/3.tif"], june=["5/1/2.tif", "5/1/3.tif"])
    with pytest.raises(DataError) as caught:
        paired(images, masks)
    message = str(caught.value)
    for part in ("the image scene/5/1/2.tif:", "may/5/1/2.tif and june/5/1/2.tif", "masks in all: 2", "(?P<day>"):
        assert part in message
    assert "named group" in message


def test_two_masks_of_one_group_for_one_image_are_refused_and_of_two_groups_are_not() -> None:
    images, masks = files(scene=["5/1/2.tif"]), files(may=["5/1/2.tif"], june=["5/1/2.tif"])
    with pytest.raises(DataError, match="two masks for the image"):
        paired(images, masks, image_groups="5", mask_groups="55")
    assert joined(paired(images, masks, image_groups="6", mask_groups="56")) == [("scene/5/1/2.tif", "june/5/1/2.tif")]


def test_two_masks_without_an_image_are_merely_unpaired() -> None:
    masks = files(may=["5/1/2.tif", "5/1/3.tif"], june=["5/1/3.tif"])
    found = paired(files(scene=["5/1/2.tif"]), masks)
    assert joined(found) == [("scene/5/1/2.tif", "may/5/1/2.tif")]
    assert found.unpaired_masks == 2


@pytest.mark.parametrize(("second", "shown"), [("5/1/2.png", "scene/5/1/2.png"), ("5/1/2.TIF", "scene/5/1/2.TIF")])
def test_two_files_of_one_tile_in_one_directory_are_refused_by_name(second: str, shown: str) -> None:
    one, two = files(scene=["5/1/2.tif"]), files(scene=["5/1/1.tif", "5/1/2.tif", second])
    with pytest.raises(DataError, match=f"^two images of one tile: scene/5/1/2.tif and {shown}"):
        paired(two, one)
    with pytest.raises(DataError, match=f"^two masks of one tile: scene/5/1/2.tif and {shown}"):
        paired(one, two)


# printf SEED/5/X/2 | b2sum -l 64, by rising digest: the order in which the tiles 5/X/2 are cut.
HASHES = {
    0: {2: "000de79bae2ad279", 4: "4f1096c4d1da91da", 1: "5bbf898ade5f4205", 3: "6e00d6b3a47ad074"},
    1: {3: "473ce2105a3dbea8", 2: "c1aaba8c9aae09bd", 1: "cc345ffcd5b60863", 4: "eb7288c4497eb14f"},
}


@pytest.mark.parametrize("seed", [0, 1])
def test_split_cuts_the_order_of_the_documented_hash(seed: int) -> None:
    ranked = [f"5/{x}/2" for x in HASHES[seed]]
    pairs = pairs_at(*(f"5/{x}/2" for x in (1, 2, 3, 4)))
    split = split_pairs(pairs, 0.5, seed=seed)
    assert (places_of(pairs, split.train), places_of(pairs, split.val)) == (set(ranked[:2]), set(ranked[2:]))
    thirds = split_pairs(pairs, 0.25, seed=seed, holdout_percent=0.5)
    assert [places_of(pairs, part) for part in thirds] == [{ranked[0]}, {ranked[1]}, set(ranked[2:])]


def ranking(places: Sequence[str], **options: object) -> list[str]:
    """The places in the order in which a growing share of them trains."""
    pairs = pairs_at(*places)
    order: list[str] = []
    for count in range(1, len(places)):
        split = split_pairs(pairs, count / len(places), **options)  # type: ignore[arg-type]
        order += sorted(places_of(pairs, split.train) - set(order))
        assert len(order) == count
    return order + sorted(set(places) - set(order))


def test_rank_depends_on_seed_and_place_alone() -> None:
    order = ranking(TEN)
    assert order != ranking(TEN, seed=1) != list(TEN) != order
    assert ranking(TEN[::-1]) == order
    assert ranking((*TEN, "5/3/7", "5/30/0")) != order
    assert [place for place in ranking((*TEN, "5/3/7", "5/30/0")) if place in TEN] == order


def test_split_does_not_depend_on_directories_nor_on_their_order() -> None:
    images = {"north": ["5/1/2.tif", "5/2/2.tif"], "south": ["5/3/2.tif", "5/4/2.tif"]}
    splits = []
    for names in (["north", "south"], ["south", "north"]):
        listed = files(**{name: images[name] for name in names})
        pairs = paired(listed, listed)
        splits.append(places_of(pairs, split_pairs(pairs, 0.5).train))
    assert splits == [{"5/2/2", "5/4/2"}] * 2


@pytest.mark.parametrize(
    ("count", "train_percent", "holdout_percent", "sizes"),
    [
        (10, 0.7, 0.0, (7, 3, 0)),
        (10, 0.75, 0.0, (8, 2, 0)),
        (10, 0.001, 0.0, (1, 9, 0)),
        (10, 0.999, 0.0, (9, 1, 0)),
        (2, 0.7, 0.0, (1, 1, 0)),
        (10, 0.5, 0.2, (5, 3, 2)),
        (10, 0.7, 0.29, (6, 1, 3)),
        (10, 0.7, 0.001, (7, 2, 1)),
        (10, 0.01, 0.98, (1, 1, 8)),
        (3, 0.9, 0.05, (1, 1, 1)),
    ],
)
def test_cut_counts_ground_tiles_and_leaves_each_part_one(
    count: int, train_percent: float, holdout_percent: float, sizes: tuple[int, int, int]
) -> None:
    split = split_pairs(pairs_at(*TEN[:count]), train_percent, holdout_percent=holdout_percent)
    assert tuple(len(part) for part in split) == sizes
    assert sorted(np.concatenate(split).tolist()) == list(range(count))
    assert all(part.tolist() == sorted(part.tolist()) for part in split)


def test_holding_tiles_out_takes_them_from_the_evaluated_ones() -> None:
    pairs = pairs_at(*TEN)
    without, with_holdout = split_pairs(pairs, 0.5), split_pairs(pairs, 0.5, holdout_percent=0.3)
    assert with_holdout.train.tolist() == without.train.tolist()
    assert sorted([*with_holdout.val, *with_holdout.holdout]) == without.val.tolist()


def folds_of(pairs: Pairs, folds: int, **options: object) -> list[set[str]]:
    """The val places of each fold."""
    splits = [split_pairs(pairs, 0.7, folds=folds, fold=fold, **options) for fold in range(folds)]  # type: ignore[arg-type]
    return [places_of(pairs, split.val) for split in splits]


@pytest.mark.parametrize("seed", [0, 1])
def test_folds_cut_the_order_of_the_documented_hash(seed: int) -> None:
    ranked = [f"5/{x}/2" for x in HASHES[seed]]
    pairs = pairs_at(*(f"5/{x}/2" for x in (1, 2, 3, 4)))
    assert folds_of(pairs, 2, seed=seed) == [set(ranked[:2]), set(ranked[2:])]
    assert folds_of(pairs, 4, seed=seed) == [{place} for place in ranked]
    assert folds_of(pairs, 3, seed=seed, holdout_percent=0.1) == [{place} for place in ranked[:3]]


@pytest.mark.parametrize(
    ("count", "folds", "sizes"), [(10, 5, [2] * 5), (10, 3, [4, 3, 3]), (10, 10, [1] * 10), (7, 5, [2, 1, 2, 1, 1])]
)
def test_every_tile_is_val_in_exactly_one_of_the_equal_folds(count: int, folds: int, sizes: list[int]) -> None:
    pairs = pairs_at(*TEN[:count], days=("may", "june"))
    splits = [split_pairs(pairs, 0.7, folds=folds, fold=fold) for fold in range(folds)]
    assert [len(places_of(pairs, split.val)) for split in splits] == sizes
    assert sorted(np.concatenate([split.val for split in splits]).tolist()) == list(range(2 * count))
    for split in splits:
        assert not len(split.holdout)
        assert sorted([*split.train, *split.val]) == list(range(2 * count))
        assert not places_of(pairs, split.train) & places_of(pairs, split.val)


def test_every_fold_has_the_holdout_of_a_run_without_folds() -> None:
    pairs = pairs_at(*TEN)
    holdout = split_pairs(pairs, 0.5, holdout_percent=0.2).holdout.tolist()
    splits = [split_pairs(pairs, 0.5, holdout_percent=0.2, folds=4, fold=fold) for fold in range(4)]
    assert [split.holdout.tolist() for split in splits] == [holdout] * 4
    assert sorted([*holdout, *np.concatenate([split.val for split in splits])]) == list(range(10))
    assert [len(split.val) for split in splits] == [2] * 4


def test_folds_keep_blocks_and_groups_together() -> None:
    places = [f"5/{x}/{y}" for x in range(8) for y in range(4)]
    blocks = [
        {tuple(int(n) // 2 for n in place.split("/")[1:]) for place in fold}
        for fold in folds_of(pairs_at(*places), 4, by="block", zoom=4)
    ]
    assert [len(fold) for fold in blocks] == [2] * 4
    assert len(set.union(*blocks)) == 8
    days = pairs_at("5/1/2", "5/2/2", days=("a", "b", "c", "d"))
    splits = [split_pairs(days, 0.7, by="group", folds=4, fold=fold) for fold in range(4)]
    groups = ["".join(sorted({days.images.path(row)[0] for row in split.val})) for split in splits]
    assert sorted(groups) == ["a", "b", "c", "d"]


def test_train_share_does_not_act_with_folds() -> None:
    pairs = pairs_at(*TEN)
    assert lists(split_pairs(pairs, 0.1, folds=5, fold=1)) == lists(split_pairs(pairs, 0.9, folds=5, fold=1))


@pytest.mark.parametrize("new", ["5/3/7", "5/30/0", "5/11/11", "5/17/2"])
def test_new_tile_moves_at_most_one_tile_over_each_cut(new: str) -> None:
    old = [f"5/{x}/{y}" for x in range(8) for y in range(5)]
    before, after = (
        {place: fold for fold, places in enumerate(folds_of(pairs_at(*listed), 5)) for place in places}
        for listed in (old, [*old, new])
    )
    moves = [after[place] - before[place] for place in old if after[place] != before[place]]
    assert len(moves) <= 4
    assert set(moves) <= {-1, 1}


def test_all_images_of_a_ground_tile_are_on_one_side() -> None:
    pairs = pairs_at(*TEN, days=("may", "june", "july"))
    split = split_pairs(pairs, 0.6, holdout_percent=0.2)
    assert [len(part) for part in split] == [18, 6, 6]
    train, val, holdout = (places_of(pairs, part) for part in split)
    assert (len(train), len(val), len(holdout)) == (6, 2, 2)
    assert train | val | holdout == set(TEN)


def test_by_block_keeps_the_tiles_of_one_parent_together() -> None:
    places = [f"5/{x}/{y}" for x in range(8) for y in range(4)]
    pairs = pairs_at(*places)
    split = split_pairs(pairs, 0.5, by="block", zoom=4)  # 4 x 2 blocks of 2 x 2 tiles
    blocks = [{(x // 2, y // 2) for x, y, _ in map(pairs.images.tile, part)} for part in (split.train, split.val)]
    assert [len(part) for part in blocks] == [4, 4]
    assert not blocks[0] & blocks[1]
    assert (len(split.train), len(split.val)) == (16, 16)


def test_by_block_ranks_the_parent_as_a_tile_of_its_zoom() -> None:
    # Zoom 6: the tiles 5/1/2 to 5/4/2 in their upper left and lower right children.
    pairs = pairs_at(*(f"6/{2 * x + corner}/{4 + corner}" for x in (1, 2, 3, 4) for corner in (0, 1)))
    split = split_pairs(pairs, 0.25, by="block", zoom=5)
    assert places_of(pairs, split.train) == {"6/4/4", "6/5/5"}


def test_block_at_the_zoom_of_the_tiles_is_the_tile() -> None:
    pairs = pairs_at(*TEN)
    assert lists(split_pairs(pairs, 0.5, by="block", zoom=5)) == lists(split_pairs(pairs, 0.5))


def test_by_group_keeps_what_the_named_groups_matched_together() -> None:
    days = ("a", "b", "c", "d", "e")
    pairs = pairs_at("5/1/2", "5/2/2", days=days)
    split = split_pairs(pairs, 0.6, by="group", holdout_percent=0.2)
    directories = [{pairs.images.path(row).partition("/")[0] for row in part} for part in split]
    assert [len(part) for part in split] == [6, 2, 2]
    assert [len(part) for part in directories] == [3, 1, 1]
    assert set.union(*directories) == set(days)


def test_by_group_ranks_a_group_by_what_it_matched_so_that_more_days_do_not_reshuffle_it() -> None:
    def order(days: Sequence[str]) -> list[str]:
        pairs = pairs_at("5/1/2", days=days)
        ranked: list[str] = []
        for count in range(1, len(days) + 1):
            train = split_pairs(pairs, count / len(days), by="group").train if count < len(days) else range(len(days))
            ranked += sorted({pairs.images.path(row)[0] for row in train} - set(ranked))
        return ranked

    days = "cdefghij"
    assert [day for day in order("ab" + days) if day in days] == order(days)
    assert order(days[::-1]) == order(days)


@pytest.mark.parametrize(
    ("by", "zoom", "holdout_percent", "message"),
    [
        ("tile", None, 0.3, r"lie on 2 ground tile\(s\), too few for 3 splits"),
        ("block", 3, 0.0, r"lie on 1 block\(s\), too few for 2 splits; .*higher zoom, at most 5, or by: tile"),
        ("group", None, 0.0, r"lie on 1 group\(s\), too few for 2 splits; .*by: tile"),
    ],
)
def test_too_few_units_are_refused_with_another_way_to_split(
    by: str, zoom: int | None, holdout_percent: float, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        split_pairs(pairs_at("5/1/2", "5/2/2"), 0.5, by=by, zoom=zoom, holdout_percent=holdout_percent)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "by", "zoom", "holdout_percent", "message"),
    [
        (3, "tile", None, 0.0, r"lie on 3 ground tile\(s\), too few for 4 folds; try dataset.split: folds: 3, or add"),
        (4, "tile", None, 0.1, r"too few for 4 folds and a holdout; try dataset.split: folds: 3, or add tiles"),
        (4, "block", 3, 0.0, r"too few for 4 folds; try dataset.split: a higher zoom, at most 5, or by: tile"),
        (2, "tile", None, 0.1, r"too few for 4 folds and a holdout; add tiles"),
    ],
)
def test_too_few_units_for_the_folds_are_refused_with_how_many_fit(
    count: int, by: str, zoom: int | None, holdout_percent: float, message: str
) -> None:
    options = {"by": by, "zoom": zoom, "holdout_percent": holdout_percent}
    with pytest.raises(DataError, match=message):
        split_pairs(pairs_at(*TEN[:count]), 0.5, folds=4, **options)  # type: ignore[arg-type]


def test_many_images_of_one_ground_tile_are_too_few_to_split_by_tile() -> None:
    pairs = pairs_at("5/1/2", days=("may", "june", "july"))
    with pytest.raises(DataError, match=r"the 3 pairs lie on 1 ground tile\(s\).*by: group"):
        split_pairs(pairs, 0.5)
    assert len(split_pairs(pairs, 0.7, by="group").train) == 2


def test_tiles_of_several_zooms_are_refused_unless_blocks_keep_them_together() -> None:
    pairs = pairs_at("5/1/2", "5/9/2", "6/2/4", "6/3/5", "7/40/20")
    for by in ("tile", "group"):
        with pytest.raises(DataError) as caught:
            split_pairs(pairs, 0.5, by=by)  # type: ignore[arg-type]
        for part in ("several zooms: 5 (2 tiles), 6 (2 tiles), 7 (1 tiles);", "{by: block, zoom: 5}", "expressions"):
            assert part in str(caught.value)
    with pytest.raises(DataError, match=r"dataset.split.zoom = 6: there are tiles of zoom 5"):
        split_pairs(pairs, 0.5, by="block", zoom=6)
    parts = [places_of(pairs, part) for part in split_pairs(pairs, 0.5, by="block", zoom=5)]
    assert {"5/1/2", "6/2/4", "6/3/5"} in [part & {"5/1/2", "6/2/4", "6/3/5"} for part in parts]


@pytest.mark.parametrize(
    ("train", "val", "crossing"),
    [
        (["5/1/2", "5/2/2"], ["5/3/2"], 0),
        (["5/1/2", "6/2/4"], ["5/3/2", "6/7/4"], 0),
        (["5/1/2"], ["6/2/4", "6/4/4"], 1),
        (["6/2/4", "6/9/9"], ["5/1/2", "5/2/2"], 1),
        (["7/4/8"], ["5/1/2", "6/2/4", "6/3/4"], 2),
        (["5/1/2"], ["7/7/11", "7/8/11", "6/3/5"], 2),
        (["5/1/2"], ["7/4/12", "6/1/4"], 0),
    ],
)
def test_split_by_ids_is_refused_where_ground_of_val_is_trained_on_at_another_zoom(
    train: list[str], val: list[str], crossing: int
) -> None:
    pairs = pairs_at(*train, *val)
    rows = {"/".join(map(str, pairs.images.zxy[row])): row for row in range(len(pairs))}
    of_train, of_val = (np.array([rows[each] for each in part], dtype=np.int64) for part in (train, val))
    for split in (Split(of_train, of_val, of_val[:0]), Split(of_train, of_val[:1], of_val[1:])):
        if crossing:
            with pytest.raises(DataError, match=rf"ids.txt: .*; {crossing} of the {len(val)} tiles to evaluate"):
                refuse_crossings(pairs, split, "ids.txt")
        else:
            refuse_crossings(pairs, split, "ids.txt")


def test_cause_of_no_common_place_is_named_where_it_shows() -> None:
    images, masks = files(a=["5/1/2.tif", "5/2/2.tif"]).zxy, files(b=["5/1/29.tif"]).zxy
    assert "count from the south (TMS)" in seeming_cause(images, masks)
    assert "zoom 5 (2 tiles), the masks of 6 (1 tiles)" in seeming_cause(images, files(b=["6/1/2.tif"]).zxy)
    assert seeming_cause(images, files(b=["5/9/9.tif"]).zxy) == ""


def test_parent_halves_column_and_row_with_each_zoom() -> None:
    zxy = np.array([[12, 654, 1583], [12, 655, 1582], [10, 163, 395], [9, 81, 197]], dtype=np.int32)
    assert parents(zxy, 9).tolist() == [[9, 81, 197]] * 4
    assert parents(zxy[:3], 10).tolist() == [[10, 163, 395]] * 3
    assert parents(zxy, 0).tolist() == [[0, 0, 0]] * 4
    assert parents(zxy[:2], 12).tolist() == zxy[:2].tolist()
    assert parents(zxy[:0], 3).tolist() == []


def test_parent_below_the_tile_is_refused_with_the_zoom_to_use() -> None:
    zxy = np.array([[12, 654, 1583], [9, 81, 197]], dtype=np.int32)
    with pytest.raises(DataError, match=r"dataset\.split\.zoom = 10: there are tiles of zoom 9"):
        parents(zxy, 10)


def test_tile_id_is_that_of_the_original_id_files() -> None:
    tile = Tile(z=12, x=654, y=1583)
    assert (
        tile_id("planet-snowcover-imagery/20180528_tiled", tile)
        == "planet-snowcover-imagery_20180528_tiled-654-1583-12"
    )
    assert tile_id("bucket/pre/fix/scene", tile) == "bucket_pre_fix_scene-654-1583-12"


@pytest.mark.parametrize("module", ["tiles", "pairing", "split"])
def test_tile_arithmetic_imports_neither_torch_nor_anything_that_reads(module: str) -> None:
    tree = ast.parse((Path(datasets.__path__[0]) / f"{module}.py").read_text())
    found = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    found |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    allowed = {
        "__future__",
        "collections.abc",
        "dataclasses",
        "hashlib",
        "typing",
        "numpy",
        "robosat_pink.errors",
        "robosat_pink.datasets.file_names",
        "robosat_pink.datasets.pairing",
        "robosat_pink.datasets.tiles",
    }
    assert found <= allowed
    assert "open" not in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_neighbours_are_of_the_same_directory_and_minus_1_where_there_is_none() -> None:
    listed = files(a=["3/1/1.tif", "3/1/2.tif", "3/2/1.tif", "3/2/3.tif"], b=["3/2/2.tif", "3/1/1.tif"])
    # Rows of a, by x and y: (1, 1) 0, (1, 2) 1, (2, 1) 2, (2, 3) 3; of b: (1, 1) 4, (2, 2) 5.
    assert around(listed, np.array([1, 3])).tolist() == [
        [[-1, 0, 2], [-1, 1, -1], [-1, -1, 3]],
        [[1, -1, -1], [-1, 3, -1], [-1, -1, -1]],
    ]
    assert around(listed, np.array([4])).tolist() == [[[-1, -1, -1], [-1, 4, -1], [-1, -1, 5]]]


def test_neighbour_across_the_antimeridian_is_the_first_or_last_column() -> None:
    listed = files(a=["2/0/1.tif", "2/3/0.tif", "2/3/1.tif"])
    assert around(listed, np.array([0, 2])).tolist() == [
        [[1, -1, -1], [2, 0, -1], [-1, -1, -1]],
        [[-1, 1, -1], [-1, 2, 0], [-1, -1, -1]],
    ]
    world = files(a=["0/0/0.tif"])
    assert around(world, np.array([0])).tolist() == [[[-1, -1, -1], [0, 0, 0], [-1, -1, -1]]]


def test_neighbours_at_the_poles_end_there() -> None:
    listed = files(a=[f"1/{x}/{y}.tif" for x in (0, 1) for y in (0, 1)])  # rows 2 x + y
    assert around(listed, np.array([0, 1])).tolist() == [
        [[-1, -1, -1], [2, 0, 2], [3, 1, 3]],
        [[2, 0, 2], [3, 1, 3], [-1, -1, -1]],
    ]
