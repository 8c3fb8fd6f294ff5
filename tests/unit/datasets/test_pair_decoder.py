"""From two files to image and labels: classes, values to ignore, the files' own scale, rows that face alike."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from conftest import pattern, write_tile
from robosat_pink.config import ChannelConfig, ClassConfig
from robosat_pink.datasets.image_kinds import ways_to_agree
from robosat_pink.datasets.normalisation import scales_of
from robosat_pink.datasets.pair_decoder import BESIDE, FROM_THE_SOUTH, PairDecoder
from robosat_pink.errors import DataError

SNOW = (ClassConfig(name="snow"),)
NORTH_UP, SOUTH_UP = rasterio.Affine(1, 0, 0, 0, -1, 64), rasterio.Affine(1, 0, 0, 0, 1, 60)


def decode(
    folder: Path,
    image: np.ndarray,
    mask: np.ndarray,
    classes: Sequence[ClassConfig] = SNOW,
    channels: Sequence[ChannelConfig] = (ChannelConfig(bands=(1,)),),
    image_profile: dict[str, Any] | None = None,
    mask_profile: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    image_file = write_tile(folder / "image.tif", image, **(image_profile or {})).read_bytes()
    mask_file = write_tile(folder / "mask.tif", mask, **(mask_profile or {})).read_bytes()
    decoder = PairDecoder(tuple(channels), tuple(classes), **options)
    return decoder.decode(image_file, mask_file, "image/5/1/2.tif", "mask/5/1/2.tif")


def test_values_to_ignore_count_nowhere(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 254, 255]], np.uint8)
    for dtype in (np.uint8, np.uint16):
        labels = decode(tmp_path, pattern(1, 1, 4), mask.astype(dtype), ignored=(254, 255)).mask
        assert labels.tolist() == [[0, 1, 255, 255]]


def test_value_that_is_neither_listed_nor_ignored_is_an_error_that_damages_no_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        decode(tmp_path, pattern(1, 1, 4), np.array([[0, 1, 7, 255]], np.uint8), ignored=(255,))
    assert str(caught.value) == (
        "mask/5/1/2.tif: mask value 7 in 1 pixel(s); accepted: 0 (background), 1, and to be ignored 255; add it to "
        "classes[].values, or to dataset.ignore_values if it stands for no class"
    )


@pytest.mark.parametrize(
    ("mask", "way_out"),
    [
        (np.array([[0, 0.25, 1]], np.float32), "a class number is whole"),
        (np.array([[0, 254, 255]], np.uint8), "once in a lossy format, or resampled"),
        (np.array([[0, 3, 255]], np.uint8), "once in a lossy format, or resampled"),
        (np.arange(0, 256, 17, dtype=np.uint8)[None], "once in a lossy format, or resampled"),
        (np.array([[0, 100, 255]], np.uint8), "; add it to classes"),
    ],
)
def test_way_out_for_a_mask_value_fits_what_the_mask_looks_like(tmp_path: Path, mask: np.ndarray, way_out: str) -> None:
    snow = (ClassConfig(name="snow", values=(255,)),)
    with pytest.raises(DataError) as caught:
        decode(tmp_path, pattern(1, *mask.shape), mask, snow)
    assert way_out in str(caught.value)


def place(z: int, x: int, y: int, crs: str) -> dict[str, Any]:
    side = 2 * 20037508.342789244 / 2**z
    if crs == "EPSG:3857":
        edges = (x * side - 2**z * side / 2, 2**z * side / 2 - (y + 1) * side, (x + 1) * side - 2**z * side / 2,
                 2**z * side / 2 - y * side)  # fmt: skip
    else:
        north, south = (np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * row / 2**z)))) for row in (y, y + 1))
        edges = (360 * x / 2**z - 180, south, 360 * (x + 1) / 2**z - 180, north)
    return {"crs": crs, "transform": rasterio.transform.from_bounds(*edges, 4, 4)}


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:4326"])
@pytest.mark.parametrize("said_by", ["image_profile", "mask_profile"])
def test_tile_that_lies_where_rows_from_the_south_would_is_doubted_beside_one_that_does_not_say(
    tmp_path: Path, crs: str, said_by: str
) -> None:
    profiles: dict[str, Any] = {name: {"crs": None, "transform": None} for name in ("image_profile", "mask_profile")}
    image, mask = pattern(1, 4, 4), np.eye(4, dtype=np.uint8)
    for row, doubts in ((2, ""), (29, FROM_THE_SOUTH), (7, "")):
        profiles[said_by] = place(5, 1, row, crs)
        assert decode(tmp_path, image, mask, **profiles).notes.doubts == doubts


def test_pair_that_lies_a_little_apart_is_doubted(tmp_path: Path) -> None:
    for shift, doubts in ((0, ""), (0.05, ""), (1, BESIDE)):
        there = {"transform": rasterio.Affine(1, 0, shift, 0, -1, 64)}
        decoded = decode(tmp_path, pattern(1, 4, 4), np.eye(4, dtype=np.uint8), mask_profile=there)
        assert decoded.notes.doubts == doubts


def tagged(path: Path, pixels: np.ndarray, scales: Sequence[float], offsets: Sequence[float]) -> bytes:
    write_tile(path, pixels, nodata=7)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = scales, offsets
    return path.read_bytes()


def test_own_scale_and_offset_of_a_file_are_applied_where_a_channel_asks_for_them(tmp_path: Path) -> None:
    image = tagged(tmp_path / "image.tif", np.array([[[100, 200, 7]], [[10, 20, 7]]], np.uint16), (0.5, 4.0), (-1, 3))
    mask = write_tile(tmp_path / "mask.tif", np.array([[0, 1, 1]], np.uint8)).read_bytes()
    channels = (ChannelConfig(bands=(2,), scale="tags"), ChannelConfig(bands=(1,), scale="tags"))
    decoded = PairDecoder(channels, SNOW).decode(image, mask, "image", "mask")
    assert decoded.image.dtype == np.float32
    assert decoded.image.tolist() == [[[43, 83, 0]], [[49, 99, 0]]]
    assert decoded.mask.tolist() == [[0, 1, 255]]
    assert scales_of(channels, decoded.notes.dtype, "image").tolist() == [1, 1]


def test_files_are_told_apart_by_what_the_experiment_relies_on(tmp_path: Path) -> None:
    mask = write_tile(tmp_path / "mask.tif", np.zeros((1, 3), np.uint8)).read_bytes()
    image = tagged(tmp_path / "image.tif", np.ones((2, 1, 3), np.uint16), (0.5, 0.5), (-1, 3))

    def kind(*channels: ChannelConfig) -> str:
        return str(PairDecoder(channels, SNOW).decode(image, mask, "image", "mask").notes.kind)

    assert kind(ChannelConfig(bands=(1,))) == "nodata 7; 2 band(s); scale 0.5, offset -1, 3"
    assert kind(ChannelConfig(bands=(1,), scale="tags")) == "nodata 7; 2 band(s); a scale of its own"


def test_way_to_agree_is_one_that_mends_what_differs() -> None:
    plain = "2 band(s) named B2, B8; scale 1, offset 0"
    scaled = ways_to_agree([plain, "2 band(s) named B2, B8; scale 0.0001, offset 0"])
    assert "scale: tags" in scaled
    assert "descriptions" not in scaled
    turned = ways_to_agree([plain, "2 band(s) named B8, B2; scale 1, offset 0"])
    assert "scale: tags" not in turned
    assert "by their descriptions" in turned
    assert "imagery_directory_regex" in ways_to_agree(["a scale of its own", "no scale of its own"])


@pytest.mark.parametrize("other", ["none", "packbits"])
def test_rows_are_turned_where_both_files_say_that_south_is_up(tmp_path: Path, other: str) -> None:
    image, mask = pattern(1, 4, 4), np.eye(4, dtype=np.uint8)
    both = {"image_profile": {"transform": SOUTH_UP}, "mask_profile": {"transform": SOUTH_UP, "compress": other}}
    decoded = decode(tmp_path, image, mask, **both)
    assert np.array_equal(decoded.image, image[:, ::-1])
    assert np.array_equal(decoded.mask, mask[::-1])


@pytest.mark.parametrize("silent", ["image_profile", "mask_profile"])
def test_rows_stay_as_they_lie_where_only_one_file_says_how(tmp_path: Path, silent: str) -> None:
    said = {"image_profile": {"transform": SOUTH_UP}, "mask_profile": {"transform": SOUTH_UP}}
    said[silent] = {"crs": None, "transform": None}
    image, mask = pattern(1, 4, 4), np.eye(4, dtype=np.uint8)
    decoded = decode(tmp_path, image, mask, **said)
    assert np.array_equal(decoded.image, image)
    assert np.array_equal(decoded.mask, mask)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (SOUTH_UP, "its rows or columns run in another direction"),
        (rasterio.Affine(1, 0, 4, 0, -1, 64), "shows other ground"),
        (rasterio.Affine(0, 1, 0, -1, 0, 64), "its rows or columns run in another direction"),
    ],
)
def test_pair_whose_georeferences_do_not_agree_is_refused(
    tmp_path: Path, transform: rasterio.Affine, message: str
) -> None:
    with pytest.raises(DataError, match=rf"^mask/5/1/2\.tif: {message}.* Its image: image/5/1/2\.tif"):
        decode(tmp_path, pattern(1, 4, 4), np.eye(4, dtype=np.uint8), mask_profile={"transform": transform})


def test_systems_with_other_names_for_the_same_are_compared_on_the_ground(tmp_path: Path) -> None:
    """A system that GeoTIFF can only spell out, and another one."""
    own = "+proj=laea +lat_0=0 +lon_0=0 +units=m"
    far = rasterio.Affine(1, 0, 900, 0, -1, 64)
    image, mask = pattern(1, 4, 4), np.eye(4, dtype=np.uint8)
    assert (
        decode(tmp_path, image, mask, mask_profile={"crs": own, "transform": NORTH_UP}).mask.tolist() == mask.tolist()
    )
    with pytest.raises(DataError, match="shows other ground"):
        decode(tmp_path, image, mask, mask_profile={"crs": own, "transform": far})
