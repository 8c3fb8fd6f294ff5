"""Draws tiles as pictures: image, mask, prediction, errors. Called by `build`; needs only NumPy and Pillow.

Color-blind people can tell the colors apart (Okabe and Ito, "Color Universal Design", 2008).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor

from robosat_pink.losses import IGNORE

RIGHT, WRONG, MISSED = "#8f959d", "#d55e00", "#0072b2"  # true positive, false positive, false negative
NOTHING = "#eceef0"  # true negative
DARK, LIGHT = "#2b3038", "#e6e8eb"  # colors of the background class, next to a bright or a dark class color
HATCH, HATCH_GROUND = "#9aa0a8", "#f7f7f8"
CYCLE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")
STRETCH = (2, 98)  # percentiles of valid pixels
GAP = 8  # pixels between the panels of a strip
PAGE_PIXELS = 384  # the longest side of a panel in the page


class Panel(NamedTuple):
    name: str
    picture: Image.Image


class Rendering(NamedTuple):
    """The bands to show, as positions among the C selected bands: red, green and blue, or a single one in grey."""

    positions: tuple[int, ...]
    words: str


def rendering(bands: Sequence[int | str], dtype: np.dtype) -> Rendering:
    """Choose the bands to show: those described as red, green and blue, if all three are selected.

    Otherwise they are chosen by number: satellite images have blue before red (Planet, Sentinel-2, Landsat 8), 8-bit
    photographs have red first.
    """
    positions = {band: bands.index(band) for band in bands}
    described = {band.lower(): band for band in bands if isinstance(band, str)}
    is_photograph = dtype == np.uint8 and all(band in (1, 2, 3) for band in bands)
    order: tuple[int | str, ...]
    if {"red", "green", "blue"} <= described.keys():
        order = (described["red"], described["green"], described["blue"])
    elif {1, 2, 3} <= positions.keys():
        order = (1, 2, 3) if is_photograph else (3, 2, 1)
    elif len(bands) >= 3:
        order = (bands[0], bands[1], bands[2])
    else:
        return Rendering((0,), f"band {bands[0]} in grey")
    names = zip(("red", "green", "blue"), order, strict=True)
    return Rendering(
        tuple(positions[band] for band in order), ", ".join(f"{name} = band {band}" for name, band in names)
    )


def stretched(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Map image (C, H, W) of any dtype to (H, W, 3) uint8: the STRETCH percentiles of valid pixels become 0 and 255."""
    stretch = np.zeros((*valid.shape, len(image)), dtype=np.uint8)
    for channel, band in enumerate(image):
        values = band[valid].astype(np.float64)
        if len(values):
            low, high = np.percentile(values, STRETCH)
            spread = np.full(band.shape, 0.5) if high <= low else (band.astype(np.float64) - low) / (high - low)
            stretch[..., channel] = np.rint(255 * np.clip(spread, 0, 1))
    return np.broadcast_to(stretch, (*valid.shape, 3)) if len(image) == 1 else stretch


def class_colors(colors: Sequence[str]) -> list[str]:
    """One color for each class number, background included: the experiment's if all differ, otherwise CYCLE's."""
    if len(colors) == 1:
        red, green, blue = ImageColor.getrgb(colors[0])[:3]
        is_bright = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 110
        return [DARK if is_bright else LIGHT, colors[0]]
    if len({ImageColor.getrgb(color)[:3] for color in colors}) == len(colors):
        return list(colors)
    return [CYCLE[number % len(CYCLE)] for number in range(len(colors))]


def panels(
    image: np.ndarray, mask: np.ndarray, predicted: np.ndarray, bands: Sequence[int | str], colors: Sequence[str]
) -> list[Panel]:
    """Four pictures of one tile: image (C, H, W), mask and predicted (H, W) uint8; `colors` are the experiment's.

    Ignored pixels are hatched; in the image, only those without data.
    """
    valid = mask != IGNORE
    has_data = valid | (image != 0).any(axis=0)
    palette = class_colors(colors)
    bands_shown = image[list(rendering(bands, image.dtype).positions)]
    picture = stretched(bands_shown, valid if valid.any() else has_data)
    errors = _painted(np.zeros_like(mask), [NOTHING])
    if len(colors) == 1:
        _paint(errors, (mask == 1) & (predicted == 1), RIGHT)
        _paint(errors, (mask == 0) & (predicted == 1), WRONG)
        _paint(errors, (mask == 1) & (predicted == 0), MISSED)
    else:
        _paint(errors, predicted != mask, WRONG)
    return [
        Panel("image", _hatched(picture, ~has_data)),
        Panel("mask", _hatched(_painted(mask, palette), ~valid)),
        Panel("prediction", _hatched(_painted(predicted, palette), ~valid)),
        Panel("errors", _hatched(errors, ~valid)),
    ]


def strip(tile_panels: Sequence[Panel]) -> Image.Image:
    """The panels side by side."""
    width, height = tile_panels[0].picture.size
    picture = Image.new("RGB", (len(tile_panels) * (width + GAP) - GAP, height), "white")
    for number, panel in enumerate(tile_panels):
        picture.paste(panel.picture, (number * (width + GAP), 0))
    return picture


def as_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=4)
    return file.getvalue()


def data_uri(panel: Panel) -> str:
    """The panel for the page, as small as possible: a large image as JPEG, all others as PNG."""
    picture, file = panel.picture, io.BytesIO()
    longest = max(picture.size)
    is_image = panel.name == "image"
    format_ = "jpeg" if is_image and longest >= 128 else "png"
    if longest > PAGE_PIXELS:
        size = [max(1, round(side * PAGE_PIXELS / longest)) for side in picture.size]
        picture = picture.resize((size[0], size[1]), Image.Resampling.BOX if is_image else Image.Resampling.NEAREST)
    if format_ == "jpeg":
        picture.save(file, "JPEG", quality=88)
    elif is_image:
        picture.save(file, "PNG")
    else:
        picture.quantize(256).save(file, "PNG", optimize=True)
    return f"data:image/{format_};base64,{base64.b64encode(file.getvalue()).decode()}"


def _painted(mask: np.ndarray, colors: Sequence[str]) -> np.ndarray:
    table = np.zeros((256, 3), dtype=np.uint8)
    for number, color in enumerate(colors):
        table[number] = ImageColor.getrgb(color)[:3]
    return table[mask]


def _paint(picture: np.ndarray, is_inside: np.ndarray, color: str) -> None:
    picture[is_inside] = ImageColor.getrgb(color)[:3]


def _hatched(picture: np.ndarray, is_inside: np.ndarray) -> Image.Image:
    picture = picture.copy()
    height, width = is_inside.shape
    row, column = np.ogrid[:height, :width]
    period = max(6, height // 28)
    _paint(picture, is_inside, HATCH_GROUND)
    _paint(picture, is_inside & ((row + column) % period < max(1, period // 5)), HATCH)
    return Image.fromarray(picture)
