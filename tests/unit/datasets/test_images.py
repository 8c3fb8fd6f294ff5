"""Images without masks: listed in one location, refused where a map could not be made of them, read by one GET each."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio

from benchmarks.s3_server import S3Server
from conftest import pattern, write_tile
from robosat_pink.config import CacheConfig
from robosat_pink.datasets.pair_decoder import NAMED_FROM_THE_SOUTH
from robosat_pink.datasets.rasters.gdal import Damaged
from robosat_pink.errors import DataError
from robosat_pink.storage import location
from scenes import images_in, pairs_in


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server whose bucket is the folder `imagery`."""
    for x in (1, 2, 3):
        write_tile(tmp_path / f"buckets/imagery/scene/5/{x}/2.tif", pattern(2, 8, 8))
        write_tile(tmp_path / f"buckets/mask/labels/5/{x}/2.tif", pattern(1, 8, 8)[0] % 2)
    with S3Server(tmp_path / "buckets") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server
    location._client_of_this_process.cache_clear()


def test_tiles_of_matching_directories_are_rows_by_directory_and_tile(tmp_path: Path) -> None:
    for path in ("b_2018/5/3/2", "a_2018/5/10/1", "a_2018/5/3/2", "a_2018/5/3/1", "a_2017/5/3/1"):
        write_tile(tmp_path / f"{path}.tif", pattern(2, 8, 8))
    tiles = images_in(tmp_path, r"._2018")
    paths = ["a_2018/5/3/1.tif", "a_2018/5/3/2.tif", "a_2018/5/10/1.tif", "b_2018/5/3/2.tif"]
    assert [tiles.files.path(row) for row in range(len(tiles))] == paths
    name = str(tmp_path).replace("/", "_")
    assert tiles.ids == [
        f"{name}_a_2018-3-1-5",
        f"{name}_a_2018-3-2-5",
        f"{name}_a_2018-10-1-5",
        f"{name}_b_2018-3-2-5",
    ]
    assert (tiles.id(2), tiles.name(2)) == (tiles.ids[2], f"{tmp_path}/a_2018/5/10/1.tif")
    assert tiles.rows_of_scene("a_2018").tolist() == [0, 1, 2]
    assert tiles.rows_of_scene("b_2018").tolist() == [3]
    with pytest.raises(ValueError, match="not in"):
        tiles.rows_of_scene("a_2017")


def test_image_has_a_mask_of_0_where_it_has_data_and_is_not_padded(tmp_path: Path) -> None:
    image = pattern(2, 7, 9)
    image[:, 2, 3] = 9
    image[1, 4, 4] = 9
    write_tile(tmp_path / "scene/5/1/2.tif", image, nodata=9)
    sample = images_in(tmp_path)[0]
    expected = np.zeros((7, 9), dtype=np.uint8)
    expected[2, 3] = 255
    assert np.array_equal(sample.mask, expected)
    assert sample.mask.dtype == np.uint8
    assert np.array_equal(sample.image, np.where(image == 9, 0, image))
    assert (sample.size, sample.scale.tolist(), sample.symmetry) == ((7, 9), [10000, 10000], 0)


def test_image_alone_is_the_same_as_beside_its_mask(server: S3Server, tmp_path: Path) -> None:
    where = {"image_bucket": "s3://imagery", "mask_bucket": "s3://mask", "endpoint_url": server.url}
    pairs, images = pairs_in(tmp_path, dataset=where), images_in("s3://imagery", endpoint_url=server.url)
    assert images.ids == pairs.ids
    for alone, beside in zip(images.__getitems__([0, 1, 2]), pairs.__getitems__([0, 1, 2]), strict=True):
        assert np.array_equal(alone.image, beside.image)
        assert (alone.scale.tolist(), alone.notes.kind) == (beside.scale.tolist(), beside.notes.kind)


def test_image_is_read_by_one_get_and_then_from_a_cache_that_is_not_the_pairs(server: S3Server, tmp_path: Path) -> None:
    cache = CacheConfig(dir=str(tmp_path / "cache"), max_gb=1)
    where = {"image_bucket": "s3://imagery", "mask_bucket": "s3://mask", "endpoint_url": server.url, "cache": cache}
    pairs_in(tmp_path, dataset=where).__getitems__([0, 1, 2])
    images = images_in("s3://imagery", endpoint_url=server.url, cache=cache)
    server.reset()
    cold = images.__getitems__([0, 1, 2])
    assert server.stats()["requests"] == {"GET": 3}
    warm = images.__getitems__([0, 1, 2])
    assert server.stats()["requests"] == {"GET": 3}
    assert [sample.fetched_bytes for sample in warm] == [0, 0, 0]
    size = (tmp_path / "buckets/imagery/scene/5/1/2.tif").stat().st_size
    assert [sample.fetched_bytes for sample in cold] == [size] * 3
    for first, second in zip(cold, warm, strict=True):
        assert np.array_equal(first.image, second.image)
        assert np.array_equal(first.mask, second.mask)
    assert len(list((tmp_path / "cache").glob("*.tile"))) == 6


def test_bucket_is_cached_by_default_and_a_folder_is_not(server: S3Server, tmp_path: Path) -> None:
    assert images_in("s3://imagery", endpoint_url=server.url).reader.cache is not None
    assert images_in(tmp_path / "buckets/imagery").reader.cache is None
    cache = CacheConfig(dir=str(tmp_path / "cache"))
    assert images_in(tmp_path / "buckets/imagery", cache=cache).reader.cache is not None


def test_tiles_travel_to_another_process(tmp_path: Path) -> None:
    write_tile(tmp_path / "scene/5/1/2.tif", pattern(2, 8, 8))
    tiles = images_in(tmp_path)
    copied = pickle.loads(pickle.dumps(tiles))
    assert copied.ids == tiles.ids
    assert np.array_equal(copied[0].image, pattern(2, 8, 8))


def test_listing_is_that_of_rank_0(tmp_path: Path) -> None:
    write_tile(tmp_path / "scene/5/1/2.tif", pattern(2, 8, 8))
    listed = images_in(tmp_path).files
    write_tile(tmp_path / "scene/5/1/3.tif", pattern(2, 8, 8))
    assert images_in(tmp_path, on_rank_zero=lambda list_files: listed).files is listed


def test_expression_that_matches_no_directory_is_an_error_that_names_the_key(tmp_path: Path) -> None:
    write_tile(tmp_path / "scene/5/1/2.tif", pattern(2, 8, 8))
    with pytest.raises(DataError, match=r"^predict.images_regex = '2019' matches no directory of .*: scene$"):
        images_in(tmp_path, "2019")


def test_folder_without_directories_is_an_error_that_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^predict.images: no directories lie below "):
        images_in(tmp_path)


def test_two_files_of_one_tile_are_an_error_that_names_both(tmp_path: Path) -> None:
    for name in ("2.tif", "2.tiff"):
        write_tile(tmp_path / f"scene/5/1/{name}", pattern(2, 8, 8))
    with pytest.raises(DataError, match=r"two images of one tile: scene/5/1/2.tif and scene/5/1/2.tiff; remove one"):
        images_in(tmp_path)


def test_scene_of_several_zooms_is_an_error_with_an_example_of_each(tmp_path: Path) -> None:
    for path in ("a/5/1/2", "b/6/1/2", "b/6/1/3", "b/7/4/4"):
        write_tile(tmp_path / f"{path}.tif", pattern(2, 8, 8))
    with pytest.raises(DataError) as caught:
        images_in(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/b: has tiles of several zooms, 6 (2 tiles), 7 (1 tiles), such as b/6/1/3.tif and b/7/4/4.tif; a "
        "map has one zoom: move the tiles of each to a directory of its own, and choose by predict.images_regex"
    )
    assert len(images_in(tmp_path, "a")) == 1


def test_scenes_may_differ_in_their_zoom(tmp_path: Path) -> None:
    for path in ("a/5/1/2", "b/6/1/2"):
        write_tile(tmp_path / f"{path}.tif", pattern(2, 8, 8))
    assert len(images_in(tmp_path)) == 2


@pytest.mark.parametrize("content", [b"", b"no tile", None])
def test_unreadable_file_is_damage_and_a_missing_band_is_not(tmp_path: Path, content: bytes | None) -> None:
    path = write_tile(tmp_path / "scene/5/1/2.tif", pattern(2, 8, 8))
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    with pytest.raises(Damaged, match=r"scene/5/1/2.tif: "):
        images_in(tmp_path)[0]
    write_tile(path, pattern(1, 8, 8))
    with pytest.raises(DataError, match=r"has 1 band\(s\)") as caught:
        images_in(tmp_path)[0]
    assert not isinstance(caught.value, Damaged)


def test_image_with_south_up_is_flipped(tmp_path: Path) -> None:
    south_up = rasterio.Affine(1, 0, 0, 0, 1, 60)
    image = pattern(2, 8, 8)
    image[:, 0, 0] = 9
    write_tile(tmp_path / "scene/5/1/2.tif", image, transform=south_up, nodata=9)
    sample = images_in(tmp_path)[0]
    assert np.array_equal(sample.image, np.where(image == 9, 0, image)[:, ::-1])
    assert np.argwhere(sample.mask).tolist() == [[7, 0]]


def test_name_whose_y_counts_from_the_south_is_doubted(tmp_path: Path) -> None:
    width = 2 * 20037508.342789244 / 32
    for x, y in ((1, 2), (2, 29)):  # the file of both is in row 2 of 32 from the north
        transform = rasterio.Affine(width / 8, 0, width * (x - 16), 0, -width / 8, width * (16 - 2))
        write_tile(tmp_path / f"scene/5/{x}/{y}.tif", pattern(2, 8, 8), transform=transform)
    assert [sample.notes.doubts for sample in images_in(tmp_path).__getitems__([0, 1])] == ["", NAMED_FROM_THE_SOUTH]
