"""What is listed of images and masks, and what is said where nothing of it is a tile."""

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import S3Server, pattern, write_tile
from robosat_pink.datasets import expressions
from robosat_pink.datasets.scans import side_by_side
from robosat_pink.errors import ConfigError, DataError
from scenes import mask_pattern, pairs_in, write_pair


def refusal(folder: Path, **dataset: object) -> str:
    with pytest.raises(DataError) as caught:
        pairs_in(folder, dataset=dataset)
    return str(caught.value)


def rename(folder: Path, old: str, new: str) -> None:
    """Of images and masks alike."""
    for side in ("imagery/scene", "mask/labels"):
        target = folder / side / new
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / side / old).rename(target)


def test_tiles_directly_below_the_bucket_are_refused_with_the_keys_that_find_them(tmp_path: Path) -> None:
    for x in (1, 2):
        write_pair(tmp_path, x)
    shutil.rmtree(tmp_path / "imagery/scene/5/2")
    where = {"image_bucket": f"{tmp_path}/imagery/scene", "mask_bucket": f"{tmp_path}/mask/labels"}
    message = refusal(tmp_path, **where)
    for part in (
        f"dataset.image_bucket: {tmp_path}/imagery/scene holds no tile in its directories 5: found 5/1/2.tif",
        "expected DIRECTORY/5/1/2.tif",
        "directly below the bucket",
        f"give dataset.image_bucket: {tmp_path}/imagery and dataset.imagery_directory_regex: scene$",
    ):
        assert part in message
    as_told = {
        "image_bucket": f"{tmp_path}/imagery",
        "imagery_directory_regex": "scene$",
        "mask_bucket": f"{tmp_path}/mask",
        "mask_directory_regex": "labels$",
    }
    assert len(pairs_in(tmp_path, dataset=as_told)) == 1


def test_tiles_directly_below_a_bucket_without_prefix_are_refused_with_a_copy_to_make(
    tmp_path: Path, s3: S3Server
) -> None:
    write_pair(tmp_path)
    s3.make_bucket("planet-imagery")
    s3.upload(tmp_path / "imagery/scene", "planet-imagery")
    message = refusal(tmp_path, image_bucket="planet-imagery")
    assert "found 5/1/2.tif, expected DIRECTORY/5/1/2.tif" in message
    assert "aws s3 cp --recursive s3://planet-imagery/5/ s3://planet-imagery/scene/5/" in message
    s3.make_bucket("deeper")
    s3.upload(tmp_path / "imagery/scene", "deeper", "year/month/")
    message = refusal(tmp_path, image_bucket="s3://deeper/year/month")
    assert "give dataset.image_bucket: s3://deeper/year and dataset.imagery_directory_regex: month$" in message


def test_tiles_that_lie_deeper_are_refused_with_the_bucket_that_finds_them(tmp_path: Path) -> None:
    write_pair(tmp_path, scene="2018/may/scene")
    message = refusal(tmp_path)
    assert "found 2018/may/scene/5/1/2.tif, expected scene/5/1/2.tif: the tiles lie deeper" in message
    assert message.endswith(f"give dataset.image_bucket: {tmp_path}/imagery/2018/may")
    assert len(pairs_in(tmp_path, dataset={"image_bucket": f"{tmp_path}/imagery/2018/may"})) == 1


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("5/1/2.vrt", "'.vrt', is none of .tif, .tiff, .png, .jpg, .jpeg, .webp, with or without @2x"),
        ("5/1/2", "'', is none of .tif"),
        ("5/1/2@3x.tif", "'@3x.tif', is none of"),
        ("5/1/02.tif", "without leading zeros"),
        ("5/1/y2.tif", "does not begin with Y"),
        ("5/01/2.tif", "its folders are not ZOOM/X"),
        ("5-1-2.tif", "its folders are not ZOOM/X"),
    ],
)
def test_files_that_are_no_tiles_are_refused_by_one_of_their_names_and_why(tmp_path: Path, name: str, why: str) -> None:
    write_pair(tmp_path)
    rename(tmp_path, "5/1/2.tif", name)
    (tmp_path / "imagery/scene/readme.txt").write_text("no tile")
    message = refusal(tmp_path)
    assert message.startswith(
        f"dataset.image_bucket: {tmp_path}/imagery holds no tile in its directories scene: found "
    )
    assert f"found scene/{name}, expected DIRECTORY/ZOOM/X/Y.tif" in message or "/" not in name
    assert "expected DIRECTORY/ZOOM/X/Y.tif" in message
    assert why in message


def test_names_at_2x_are_tiles(tmp_path: Path) -> None:
    write_pair(tmp_path)
    rename(tmp_path, "5/1/2.tif", "5/1/2@2x.tif")
    tiles = pairs_in(tmp_path)
    assert tiles.request(0).image == "scene/5/1/2@2x.tif"
    assert np.array_equal(tiles[0].image, pattern(2, 8, 8))
    assert tiles.ids[0].endswith("scene-1-2-5")


def test_files_below_no_directory_are_refused_by_name(tmp_path: Path) -> None:
    write_pair(tmp_path)
    shutil.rmtree(tmp_path / "imagery/scene")
    (tmp_path / "imagery/5-1-2.tif").write_bytes(b"")
    assert "but files: found 5-1-2.tif; expected DIRECTORY/ZOOM/X/Y.tif" in refusal(tmp_path)
    (tmp_path / "imagery/5-1-2.tif").unlink()
    assert "no directories lie below" in refusal(tmp_path)
    (tmp_path / "imagery/scene").mkdir()
    assert "holds no tile in its directories scene, and no other file" in refusal(tmp_path)


def test_rows_counted_from_the_south_are_named_where_no_image_has_a_mask(tmp_path: Path) -> None:
    write_tile(tmp_path / "imagery/scene/5/1/2.tif", pattern(2, 8, 8))
    write_tile(tmp_path / "mask/labels/5/1/29.tif", mask_pattern(8, 8))
    assert "no image has a mask" in refusal(tmp_path)
    assert "from the south (TMS)" in refusal(tmp_path)


def test_image_that_would_be_its_own_mask_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "imagery")
    for other in ("imagery", "imagery/", "link"):
        message = refusal(tmp_path, mask_bucket=f"{tmp_path}/{other}")
        assert "1 images would be their own masks, such as scene/5/1/2.tif" in message
    write_tile(tmp_path / "imagery/truth/5/1/2.tif", mask_pattern(8, 8))
    expressions_of_one_place = {"imagery_directory_regex": "scene", "mask_directory_regex": "truth"}
    assert len(pairs_in(tmp_path, dataset={"mask_bucket": f"{tmp_path}/imagery"} | expressions_of_one_place)) == 1


def listed(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("listed")]


STRAYS = ["scene//b", "scene/../5/1/2.tif", "scene/5//1/2.tif", "scene/5/1/Icon\r", "scene/./x", "scene/5/1/2.tif/"]


def test_keys_that_the_client_refuses_are_skipped_and_counted(
    tmp_path: Path, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for x in (1, 2):
        write_pair(tmp_path, x)
    s3.make_bucket("planet-imagery")
    s3.upload(tmp_path / "imagery", "planet-imagery", "2018/")
    for key in STRAYS[:-1]:
        s3.client.put_object(Bucket="planet-imagery", Key=f"2018/{key}", Body=b"stray")
    for key in ("2018//x", "2018/../x", "2018/a\x01b/5/1/2.tif"):
        s3.client.put_object(Bucket="planet-imagery", Key=key, Body=b"stray")
    tiles = pairs_in(tmp_path, dataset={"image_bucket": "planet-imagery/2018"})
    assert [tiles.request(row).image for row in range(2)] == ["scene/5/1/2.tif", "scene/5/2/2.tif"]
    assert np.array_equal(tiles[0].image, pattern(2, 8, 8))
    assert "listed 2 tiles of s3://planet-imagery/2018 (directories: 1, other files: 5)" in listed(caplog)


def test_stray_names_in_a_folder_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    write_pair(tmp_path)
    scene = tmp_path / "imagery/scene"
    (scene / "5/1/Icon\r").write_bytes(b"")
    (scene / "5/\x01").mkdir()
    (scene / "5/\x01/3.tif").write_bytes(b"")
    (scene / "5/1/dead.tif").symlink_to("/nowhere")
    (scene / "5/ring").symlink_to(scene)
    (scene / "5/self").symlink_to(scene / "5/self")
    (tmp_path / "imagery/a\x01b").mkdir()
    (tmp_path / "imagery/self").symlink_to(tmp_path / "imagery/self")
    tiles = pairs_in(tmp_path)
    assert len(tiles) == 1
    assert "directories: 1" in listed(caplog)[0]
    assert len(tiles[0].mask) == 8


def test_expression_that_takes_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "LIMIT_S", 1.0)
    write_pair(tmp_path, labels="a" * 40 + "b")
    with pytest.raises(ConfigError, match=r"dataset.mask_directory_regex = '\(a\+\)\+\$': was still matching"):
        pairs_in(tmp_path, dataset={"mask_directory_regex": "(a+)+$"})


def test_first_error_does_not_wait_for_the_others() -> None:
    release = threading.Event()

    def work(number: int) -> int:
        if number:
            release.wait(30)
            return number
        raise DataError("the first")

    started = time.monotonic()
    with pytest.raises(DataError, match="the first"):
        side_by_side(work, range(4), 2)
    assert time.monotonic() - started < 20
    release.set()
    assert side_by_side(lambda number: number + 1, range(4), 2) == [1, 2, 3, 4]
