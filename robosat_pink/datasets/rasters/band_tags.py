"""The band metadata of an image file: descriptions, scales, offsets, colors.

Called by `geotiff`, `gdal_bands` and `pair_decoder`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple
from xml.etree import ElementTree
from xml.sax.saxutils import unescape

import xxhash

QUOTES = {"&quot;": '"', "&apos;": "'"}
LONGEST = 400  # characters of `in_words` before it is shortened


class BandTags(NamedTuple):
    """The metadata of each band, with GDAL's meaning: value = number x scale + offset."""

    names: tuple[str, ...]  # descriptions; "" for a band without one
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    colors: tuple[str, ...] = ()  # red, green, blue, undefined and others; empty from `undeclared`

    @property
    def odd_order(self) -> str:
        """The colors of the bands in words, if their order is not red, green, blue; otherwise empty."""
        positions = [self.colors.index(color) for color in ("red", "green", "blue") if color in self.colors]
        return "" if positions == sorted(positions) else f"bands {', '.join(self.colors)}"


def undeclared(bands: int) -> BandTags:
    """The metadata of a file that declares none."""
    return BandTags(("",) * bands, (1.0,) * bands, (0.0,) * bands)


@functools.lru_cache(maxsize=256)
def from_gdal_metadata(text: str, bands: int) -> BandTags:
    """Parse the text of a GeoTIFF's tag 42112. Raises ParseError or ValueError if it is malformed.

    GDAL's page "GTiff driver" has the format: Item elements with the roles description, scale, offset and colorinterp.
    """
    names, scales, offsets, colors = [""] * bands, [1.0] * bands, [0.0] * bands, ["undefined"] * bands
    if "<!" in text:
        raise ValueError("declares entities, which may grow without limit")
    for item in ElementTree.fromstring(text).iter("Item"):  # noqa: S314 - without entities there is nothing to expand
        sample, role, value = int(item.get("sample", 0)), item.get("role"), unescape(item.text or "", QUOTES)
        if not 0 <= sample < bands:
            continue
        if role == "description":
            names[sample] = value
        elif role == "scale":
            scales[sample] = float(value)
        elif role == "offset":
            offsets[sample] = float(value)
        elif role == "colorinterp":
            colors[sample] = value.lower()
    return BandTags(tuple(names), tuple(scales), tuple(offsets), tuple(colors))


@functools.lru_cache(maxsize=256)
def in_words(tags: BandTags, with_names: bool = True, with_scales: bool = True) -> str:
    """`2 band(s) named B2, B3; scale 0.0001, offset -0.1`: for people, and to tell kinds of files apart."""
    parts = []
    if with_names:
        named = f" named {', '.join(name or '-' for name in tags.names)}" if any(tags.names) else ""
        parts.append(f"{len(tags.names)} band(s){named}")
    if with_scales:
        parts.append(f"scale {_numbers(tags.scales)}, offset {_numbers(tags.offsets)}")
    words = "; ".join(parts)
    return words if len(words) <= LONGEST else f"{words[:LONGEST]}... ({xxhash.xxh32_hexdigest(words.encode())})"


def _numbers(values: Iterable[float]) -> str:
    """The values in words: a single number if all are the same."""
    texts = [f"{value:g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)
