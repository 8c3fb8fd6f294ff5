"""Tiles as pictures: what is stretched, coloured and hatched."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from robosat_pink.report import previews
from robosat_pink.report.previews import class_colors, data_uri, panels, rendering, stretched, strip

UINT16, UINT8 = np.dtype(np.uint16), np.dtype(np.uint8)


@pytest.mark.parametrize(
    ("bands", "dtype", "positions", "words"),
    [
        ([1, 2, 3, 4], UINT16, (2, 1, 0), "red = band 3, green = band 2, blue = band 1"),
        ([4, 3, 2, 1], UINT16, (1, 2, 3), "red = band 3, green = band 2, blue = band 1"),
        ([1, 2, 3, 4], UINT8, (2, 1, 0), "red = band 3, green = band 2, blue = band 1"),
        ([1, 2, 3], UINT8, (0, 1, 2), "red = band 1, green = band 2, blue = band 3"),
        ([7, 5, 4, 2], UINT16, (0, 1, 2), "red = band 7, green = band 5, blue = band 4"),
        ([4, 3], UINT16, (0,), "band 4 in grey"),
    ],
)
def test_bands_are_shown_as_sensors_order_them(
    bands: list[int], dtype: np.dtype, positions: tuple[int, ...], words: str
) -> None:
    assert rendering(bands, dtype) == (positions, words)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_stretch_takes_each_band_from_its_2nd_to_its_98th_percentile(dtype: type) -> None:
    image = np.stack([np.arange(101).reshape(1, 101), np.full((1, 101), 7), np.arange(101)[None, ::-1]]).astype(dtype)
    shown = stretched(image, np.ones((1, 101), dtype=bool))
    assert shown.shape == (1, 101, 3)
    assert shown.dtype == np.uint8
    assert shown[0, [0, 2, 50, 98, 100], 0].tolist() == [0, 0, 128, 255, 255]
    assert set(shown[0, :, 1].tolist()) == {128}  # of a band that is the same all over
    assert shown[0, :, 2].tolist() == shown[0, ::-1, 0].tolist()


def test_stretch_looks_at_valid_pixels_only_and_stands_a_tile_without_any() -> None:
    image = np.array([[[0, 100, 101, 102, 65535]]], dtype=np.uint16)
    valid = np.array([[False, True, True, True, False]])
    assert stretched(image, valid)[0, 1:4, 0].tolist() == [0, 128, 255]
    assert not stretched(image, np.zeros((1, 5), dtype=bool)).any()


def test_class_of_a_bright_color_stands_on_dark_ground_and_of_a_dark_one_on_light() -> None:
    assert class_colors(["white"]) == [previews.DARK, "white"]
    assert class_colors(["navy"]) == [previews.LIGHT, "navy"]


def test_several_classes_keep_their_colors_only_if_all_differ() -> None:
    assert class_colors(["red", "#00ff00"]) == ["red", "#00ff00"]
    assert class_colors(["white", "white", "red"]) == list(previews.CYCLE[:3])


def color(picture: Image.Image, row: int, column: int) -> str:
    pixel = picture.convert("RGB").getpixel((column, row))
    return "#{:02x}{:02x}{:02x}".format(*pixel)  # type: ignore[misc]


def test_errors_have_their_colors_and_what_counts_nowhere_is_hatched() -> None:
    mask = np.array([[0, 0, 1, 1], [255, 255, 255, 255]], dtype=np.uint8).repeat(20, 0)
    predicted = np.array([[0, 1, 0, 1], [0, 1, 0, 1]], dtype=np.uint8).repeat(20, 0)
    image = np.ones((1, 40, 4), dtype=np.uint16)
    image[:, 30:] = 0
    shown = dict(panels(image, mask, predicted, [1], ["white"]))
    assert list(shown) == ["image", "mask", "prediction", "errors"]
    errors = [color(shown["errors"], 0, column) for column in range(4)]
    assert errors == [previews.NOTHING, previews.WRONG, previews.MISSED, previews.RIGHT]
    assert [color(shown["mask"], 0, column) for column in (0, 2)] == [previews.DARK, "#ffffff"]
    for name in ("mask", "prediction", "errors"):
        assert {color(shown[name], row, 0) for row in range(20, 40)} == {previews.HATCH, previews.HATCH_GROUND}
    assert color(shown["image"], 25, 0) not in (previews.HATCH, previews.HATCH_GROUND)  # ignored, but there
    assert {color(shown["image"], row, 0) for row in range(30, 40)} == {previews.HATCH, previews.HATCH_GROUND}


def test_errors_of_two_classes_are_no_excess_of_one() -> None:
    mask, predicted = (np.array([row], dtype=np.uint8) for row in ([0, 1, 1], [1, 0, 1]))
    shown = dict(panels(np.ones((1, 1, 3)), mask, predicted, [1], ["white", "white"]))
    assert [color(shown["errors"], 0, column) for column in range(3)] == [
        *(previews.WRONG, previews.WRONG, previews.NOTHING)
    ]
    assert color(shown["mask"], 0, 0) == previews.CYCLE[0]


def test_errors_of_several_classes_are_right_or_wrong() -> None:
    mask = np.array([[0, 1, 2]], dtype=np.uint8)
    shown = dict(panels(np.ones((2, 1, 3)), mask, np.array([[0, 2, 2]], dtype=np.uint8), [1, 2], previews.CYCLE[:3]))
    assert [color(shown["errors"], 0, column) for column in range(3)] == [
        *(previews.NOTHING, previews.WRONG, previews.NOTHING)
    ]


@pytest.mark.parametrize("side", [16, 64, 512, 1000])
def test_panels_in_the_page_are_small_and_of_the_right_form(side: int) -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 10000, (4, side, side // 2)).astype(np.uint16)
    mask = random.integers(0, 2, (side, side // 2)).astype(np.uint8)
    tile_panels = panels(image, mask, mask, [1, 2, 3, 4], ["white"])
    assert strip(tile_panels).size == (4 * (side // 2) + 3 * previews.GAP, side)
    for panel in tile_panels:
        kind, _, content = data_uri(panel).partition(";base64,")
        assert kind == ("data:image/jpeg" if panel.name == "image" and side >= 128 else "data:image/png")
        shown = Image.open(io.BytesIO(base64.b64decode(content)))
        assert max(shown.size) == min(side, previews.PAGE_PIXELS)
        assert len(content) < 120_000
    exact = Image.open(io.BytesIO(base64.b64decode(data_uri(tile_panels[1]).partition(";base64,")[2]))).convert("RGB")
    assert len(exact.getcolors() or []) <= 2
