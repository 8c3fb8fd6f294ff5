"""What is said of the training tiles before anything is learnt from them."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from robosat_pink.config import CacheConfig, ChannelConfig, ClassConfig, Config, DatasetConfig, ModelConfig
from robosat_pink.datasets import TilePairs, coverage
from robosat_pink.datasets.image_kinds import MOST_KINDS
from robosat_pink.datasets.loader import TileLoader
from robosat_pink.datasets.pair_decoder import HIDDEN
from scenes import mask_pattern, pairs_in, write_pair

ROAD_AND_HOUSE = tuple(ClassConfig(name=name) for name in ("ground", "road", "house"))


def remarks(tiles: TilePairs, classes: tuple[ClassConfig, ...], **dataset: Any) -> list[str]:
    config = Config(
        dataset=DatasetConfig(image_bucket="/", mask_bucket="/", **dataset),
        classes=classes,
        channels=(ChannelConfig(bands=(1, 2)),),
        model=ModelConfig(name="albunet"),
    )
    return coverage.look(config, tiles, np.arange(len(tiles))).remarks


def test_class_that_the_nodata_tag_hides_is_named_with_the_way_to_count_it(tmp_path: Path) -> None:
    for x in (1, 2):
        write_pair(
            tmp_path, x, mask=np.array([[0, 0, 1, 2]] * 8, np.uint8), image=np.ones((2, 8, 4), np.uint16), mask_nodata=0
        )
    (remark,) = remarks(pairs_in(tmp_path, ROAD_AND_HOUSE), ROAD_AND_HOUSE)
    assert remark.startswith(
        "warning: no pixel of the 2 training tiles is ground (mask value 0): the masks declare 32 pixels of that value "
        "as nodata"
    )
    assert "gdal_edit.py -unsetnodata" in remark


def test_class_that_only_tiles_that_were_not_read_have_is_not_said_to_be_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage, "MOST_TILES", 1)
    for x in (1, 2):
        write_pair(tmp_path, x, mask=np.full((8, 8), x - 1, np.uint8))
    (remark,) = remarks(pairs_in(tmp_path, (ClassConfig(name="snow"),)), (ClassConfig(name="snow"),))
    assert remark == (
        "warning: no pixel of the 1 training tiles read (of 2) is snow (mask value 1): their masks do not have that "
        "value; if no mask has it, check classes[].values"
    )


def test_class_that_lies_where_the_images_have_no_data_is_named(tmp_path: Path) -> None:
    image = np.ones((2, 8, 4), np.uint16)
    image[:, :, 3] = 0
    write_pair(tmp_path, mask=np.array([[0, 0, 1, 2]] * 8, np.uint8), image=image)
    first, second = remarks(pairs_in(tmp_path, ROAD_AND_HOUSE), ROAD_AND_HOUSE)
    assert first == (
        "warning: no pixel of the 1 training tiles is house (mask value 2): all 8 pixels of that value lie where the "
        "images have no data"
    )
    assert second.startswith("25.00% of the pixels read count as missing: they are 0 in all bands")
    assert "dataset.missing = auto" in second


def test_class_whose_values_no_mask_has_is_named(tmp_path: Path) -> None:
    write_pair(tmp_path, mask=np.ones((8, 8), np.uint8))
    (remark,) = remarks(pairs_in(tmp_path, (ClassConfig(name="snow"),)), (ClassConfig(name="snow"),))
    assert remark == (
        "warning: no pixel of the 1 training tiles is background (mask value 0): the masks do not have that value; "
        "check classes[].values"
    )


def test_nothing_is_said_of_tiles_that_have_all_classes(tmp_path: Path) -> None:
    write_pair(tmp_path, mask=mask_pattern(8, 8))
    classes = tuple(ClassConfig(name=str(number)) for number in range(5))
    assert remarks(pairs_in(tmp_path, classes), classes) == []


def test_class_that_the_nodata_tag_of_some_masks_hides_is_told(tmp_path: Path) -> None:
    mask = np.array([[0, 0, 1, 2]] * 8, np.uint8)
    for x in (1, 2, 3):
        write_pair(tmp_path, x, mask=mask, image=np.ones((2, 8, 4), np.uint16), mask_nodata=0 if x == 2 else None)
    (remark,) = remarks(pairs_in(tmp_path, ROAD_AND_HOUSE), ROAD_AND_HOUSE)
    assert remark.startswith("warning: in 1 of the 3 training tiles, such as ")
    assert remark.endswith(f"imagery_scene-2-2-5: {HIDDEN}")
    for x in (1, 2, 3):
        write_pair(tmp_path, x, mask=mask, image=np.ones((2, 8, 4), np.uint16), mask_nodata=255)
    assert remarks(pairs_in(tmp_path, ROAD_AND_HOUSE), ROAD_AND_HOUSE) == []


@pytest.mark.parametrize(("second", "is_told"), [("ff0000", True), ("ffffff", False)])
def test_palettes_of_masks_that_mean_other_colors_by_an_index_are_told(
    tmp_path: Path, second: str, is_told: bool
) -> None:
    for x, color in ((1, "ffffff"), (2, second)):
        write_pair(tmp_path, x, mask=np.eye(8, dtype=np.uint8))
        with rasterio.open(tmp_path / f"mask/labels/5/{x}/2.tif", "r+") as file:
            file.write_colormap(1, {0: (0, 0, 0), 1: tuple(bytes.fromhex(color)), 2: (x, x, x)})
    found = remarks(pairs_in(tmp_path, SNOW), SNOW)
    assert [each.startswith("warning: the masks' palettes differ: 1 is #ffffff in ") for each in found] == [
        True
    ] * is_told


@pytest.mark.parametrize(
    ("channel", "differing"),
    [
        (ChannelConfig(bands=(1, 2), scale=10000.0), ["uint8; 2", "uint16; 2"]),
        (ChannelConfig(bands=(1, 2), scale="auto"), []),
    ],
)
def test_types_that_one_number_divides_are_told(tmp_path: Path, channel: ChannelConfig, differing: list[str]) -> None:
    for x, dtype in ((1, np.uint8), (2, np.uint16)):
        write_pair(tmp_path, x, image=np.full((2, 8, 8), 30, dtype), mask=np.eye(8, dtype=np.uint8))
    found = " ".join(remarks(pairs_in(tmp_path, SNOW, (channel,)), SNOW))
    assert all(words in found for words in differing)
    assert ("the images differ" in found) == bool(differing)


def test_colors_in_another_order_and_nodata_of_some_images_are_told(tmp_path: Path) -> None:
    order = (ColorInterp.blue, ColorInterp.green, ColorInterp.red)
    for x in (1, 2, 3):
        image = np.full((3, 8, 8), 30, np.uint8)
        write_pair(tmp_path, x, image=image, mask=np.eye(8, dtype=np.uint8), image_nodata=0 if x == 3 else None)
        with rasterio.open(tmp_path / f"imagery/scene/5/{x}/2.tif", "r+") as file:
            file.colorinterp = order[:: 1 if x == 1 else -1]
    (remark,) = remarks(pairs_in(tmp_path, SNOW), SNOW)
    assert '1 have "uint8; bands blue, green, red; 3 band(s);' in remark
    assert '1 have "uint8; nodata 0; 3 band(s);' in remark
    assert '1 have "uint8; 3 band(s);' in remark


def test_files_without_the_tags_that_shall_be_applied_are_told(tmp_path: Path) -> None:
    write_pair(tmp_path, 1, mask=np.eye(8, dtype=np.uint8))
    (remark,) = remarks(pairs_in(tmp_path, SNOW, (ChannelConfig(bands=(1, 2), scale="tags"),)), SNOW)
    assert remark.startswith(
        "warning: channels[].scale: tags, but none of the 1 training tiles has a scale or offset: their numbers are "
    )


def test_images_that_all_differ_are_told_some_times(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for x in range(20):
        with_offset(tmp_path, x, x / 10)
    with caplog.at_level(logging.WARNING):
        list(TileLoader(pairs_in(tmp_path, SNOW), 1, 0).evaluation(np.arange(20)))
    assert len([each for each in caplog.records if each.levelno == logging.WARNING]) == MOST_KINDS + 1


def with_offset(folder: Path, x: int, offset: float) -> None:
    write_pair(folder, x, mask=np.eye(8, dtype=np.uint8))
    with rasterio.open(folder / f"imagery/scene/5/{x}/2.tif", "r+") as file:
        file.scales, file.offsets = (0.0001, 0.0001), (offset, offset)


SNOW = (ClassConfig(name="snow"),)


def test_tiles_that_disagree_in_what_they_say_of_their_bands_are_counted(tmp_path: Path) -> None:
    for x, offset in enumerate((0, 0, -0.1), start=1):
        with_offset(tmp_path, x, offset)
    (remark,) = remarks(pairs_in(tmp_path, SNOW), SNOW)
    assert remark.startswith(
        'warning: the images differ: of the 3 training tiles, 2 have "uint16; 2 band(s); scale 0.0001, offset 0"; '
        '1 have "uint16; 2 band(s); scale 0.0001, offset -0.1". '
    )
    assert "channels[].scale: tags" in remark


def test_scale_and_offset_that_all_files_have_and_nobody_applies_are_told(tmp_path: Path) -> None:
    for x in (1, 2):
        with_offset(tmp_path, x, -0.1)
    (remark,) = remarks(pairs_in(tmp_path, SNOW), SNOW)
    assert remark == (
        "the images have uint16; 2 band(s); scale 0.0001, offset -0.1; channels[].scale: tags applies the files' own "
        "scale and offset"
    )
    tags = (ChannelConfig(bands=(1, 2), scale="tags"),)
    assert remarks(pairs_in(tmp_path, SNOW, tags), SNOW) == []


def test_tile_of_another_kind_that_comes_later_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for x, offset in enumerate((0, -0.1, -0.1), start=1):
        with_offset(tmp_path, x, offset)
    tiles = pairs_in(tmp_path, SNOW)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            list(TileLoader(tiles, 1, 0).evaluation(np.arange(3)))
    (line,) = (each.getMessage() for each in caplog.records if each.levelno == logging.WARNING)
    assert line.startswith("warning: the images of this run differ: ")
    assert f'{tiles.id(1)} has "uint16; 2 band(s); scale 0.0001, offset -0.1"; {tiles.id(0)} has "uint16;' in line


def test_what_was_said_of_kept_tiles_is_kept_with_them(tmp_path: Path) -> None:
    with_offset(tmp_path, 1, -0.1)
    options: dict[str, Any] = {"dataset": {"cache": CacheConfig(dir=str(tmp_path / "cache"))}}
    first = pairs_in(tmp_path, SNOW, **options)[0]
    again = pairs_in(tmp_path, SNOW, **options)[0]
    assert first.fetched_bytes > again.fetched_bytes == 0
    assert first.notes == again.notes == ("uint16", "uint16; 2 band(s); scale 0.0001, offset -0.1", 0, "", "")
