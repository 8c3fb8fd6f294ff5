"""Tiles as pictures: image, mask, prediction, errors. Called by `report`; knows arrays and Pillow, and no network.

The colours are told apart without telling red from green (Okabe and Ito, "Color Universal Design", 2008).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor

from robosat_pink.losses import IGNORE

RIGHT, WRONG, MISSED = "#8f959d", "#d55e00", "#0072b2"  # of the class and found; found in excess; overlooked
NOTHING = "#eceef0"  # background, and seen as that
DARK, LIGHT = "#2b3038", "#e6e8eb"  # background beside a class's color
HATCH, HATCH_GROUND = "#9aa0a8", "#f7f7f8"
CYCLE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")
STRETCH = (2, 98)  # percentiles of the valid pixels
GAP = 8  # pixels between the panels of a strip
PAGE_PIXELS = 384  # a side of a panel at most, within the page


class Panel(NamedTuple):
    name: str
    picture: Image.Image


class Rendering(NamedTuple):
    """Which of the selected bands (C,) are shown as red, green and blue, or one as grey; and that in words."""

    places: tuple[int, ...]
    words: str


def rendering(bands: Sequence[int | str], dtype: np.dtype) -> Rendering:
    """Satellite images have blue before red (Planet, Sentinel-2, Landsat 8), photographs red first, in 8 bits.

    Bands with the descriptions red, green and blue are shown as these.
    """
    places = {band: place for place, band in reversed(list(enumerate(bands)))}
    described = {band.lower(): band for band in bands if isinstance(band, str)}
    is_photograph = dtype == np.uint8 and all(band in (1, 2, 3) for band in bands)
    order: tuple[int | str, ...]
    if {"red", "green", "blue"} <= described.keys():
        order = (described["red"], described["green"], described["blue"])
    elif {1, 2, 3} <= places.keys():
        order = (1, 2, 3) if is_photograph else (3, 2, 1)
    elif len(bands) >= 3:
        order = (bands[0], bands[1], bands[2])
    else:
        return Rendering((0,), f"band {bands[0]} in grey")
    names = zip(("red", "green", "blue"), order, strict=True)
    return Rendering(tuple(places[band] for band in order), ", ".join(f"{name} = band {band}" for name, band in names))


def stretched(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """image (C, H, W) of any type to (H, W, 3) uint8, each band from the 2nd to the 98th percentile of valid pixels."""
    shown = np.zeros((*valid.shape, len(image)), dtype=np.uint8)
    for place, band in enumerate(image):
        values = band[valid].astype(np.float64)
        if len(values):
            low, high = np.percentile(values, STRETCH)
            spread = np.full(band.shape, 0.5) if high <= low else (band.astype(np.float64) - low) / (high - low)
            shown[..., place] = np.rint(255 * np.clip(spread, 0, 1))
    return np.broadcast_to(shown, (*valid.shape, 3)) if len(image) == 1 else shown


def class_colors(colors: Sequence[str]) -> list[str]:
    """A color for each number in a mask: the experiment's if they differ, else ones that do. One class has a ground."""
    if len(colors) == 1:
        red, green, blue = ImageColor.getrgb(colors[0])[:3]
        is_bright = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 110
        return [DARK if is_bright else LIGHT, colors[0]]
    known = [ImageColor.getrgb(color)[:3] for color in colors]
    return list(colors) if len(set(known)) == len(known) else [CYCLE[each % len(CYCLE)] for each in range(len(colors))]


def panels(
    image: np.ndarray, mask: np.ndarray, predicted: np.ndarray, bands: Sequence[int | str], colors: Sequence[str]
) -> list[Panel]:
    """Four pictures of one tile: image (C, H, W), mask and predicted (H, W) uint8; `colors` are the experiment's.

    Hatched is what counts nowhere; in the image, what has no data.
    """
    valid = mask != IGNORE
    there = valid | (image != 0).any(axis=0)
    painted = class_colors(colors)
    shown = stretched(image[list(rendering(bands, image.dtype).places)], valid if valid.any() else there)
    errors = _painted(np.zeros_like(mask), [NOTHING])
    if len(colors) == 1:
        _paint(errors, (mask == 1) & (predicted == 1), RIGHT)
        _paint(errors, (mask == 0) & (predicted == 1), WRONG)
        _paint(errors, (mask == 1) & (predicted == 0), MISSED)
    else:
        _paint(errors, predicted != mask, WRONG)
    return [
        Panel("image", _hatched(shown, ~there)),
        Panel("mask", _hatched(_painted(mask, painted), ~valid)),
        Panel("prediction", _hatched(_painted(predicted, painted), ~valid)),
        Panel("errors", _hatched(errors, ~valid)),
    ]


def strip(some: Sequence[Panel]) -> Image.Image:
    """The panels side by side."""
    width, height = some[0].picture.size
    picture = Image.new("RGB", (len(some) * (width + GAP) - GAP, height), "white")
    for number, panel in enumerate(some):
        picture.paste(panel.picture, (number * (width + GAP), 0))
    return picture


def as_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=4)
    return file.getvalue()


def data_uri(panel: Panel) -> str:
    """The panel within a page, small: the image as JPEG, the others, of few colors, as PNG."""
    picture, file = panel.picture, io.BytesIO()
    longest = max(picture.size)
    is_image = panel.name == "image"
    if longest > PAGE_PIXELS:
        size = [max(1, round(side * PAGE_PIXELS / longest)) for side in picture.size]
        picture = picture.resize((size[0], size[1]), Image.Resampling.BOX if is_image else Image.Resampling.NEAREST)
    if is_image and longest >= 128:
        picture.save(file, "JPEG", quality=88)
    else:
        picture.quantize(256).save(file, "PNG", optimize=True) if not is_image else picture.save(file, "PNG")
    kind = "jpeg" if is_image and longest >= 128 else "png"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _painted(numbers: np.ndarray, colors: Sequence[str]) -> np.ndarray:
    table = np.zeros((256, 3), dtype=np.uint8)
    for number, color in enumerate(colors):
        table[number] = ImageColor.getrgb(color)[:3]
    return table[numbers]


def _paint(picture: np.ndarray, where: np.ndarray, color: str) -> None:
    picture[where] = ImageColor.getrgb(color)[:3]


def _hatched(picture: np.ndarray, where: np.ndarray) -> Image.Image:
    picture = picture.copy()
    row, column = np.ogrid[: where.shape[0], : where.shape[1]]
    period = max(6, where.shape[0] // 28)
    _paint(picture, where, HATCH_GROUND)
    _paint(picture, where & ((row + column) % period < max(1, period // 5)), HATCH)
    return Image.fromarray(picture)
