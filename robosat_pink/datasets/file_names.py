"""File names: which are tiles, which are sidecars of a tile, and why a name is no tile's. No I/O.

Called by `sides`, `scans`, `tiles` and `tile_file`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np
import xxhash

FORMATS = ("tif", "tiff", "png", "jpg", "jpeg", "webp")
# Of tiles: in every mixture of small and capital letters, and after @2x, as tiles of twice as many pixels are called.
SUFFIXES = tuple(
    scale + "".join(letters)
    for scale in (".", "@2x.")
    for suffix in FORMATS
    for letters in itertools.product(*((letter, letter.upper()) for letter in suffix))
)
# Files beside a tile that GDAL reads with it: its mask, and what its format has no room for. Bit n stands for the n-th.
SIDECARS = (".msk", ".aux.xml", ".MSK", ".AUX.XML")
NUMBER = "(0|[1-9][0-9]{0,8})"  # as it is written back, and within 32 bits
TILE_PATH = re.compile(
    rf"{NUMBER}/{NUMBER}/{NUMBER}({'|'.join(map(re.escape, SUFFIXES))})({'|'.join(map(re.escape, SIDECARS))})?"
)
PLAIN_NAME = rf"{NUMBER}/{NUMBER}/{NUMBER}\.tif".replace("(", "(?:")
LARGEST = 2**32 - 1  # stands for any size from there
FILE = np.dtype(
    [
        ("zxy", np.int32, 3),
        ("suffix", np.uint8),  # into SUFFIXES
        ("sidecar", np.uint8),  # a bit if it is a tile's sidecar; 0: a tile
        ("version", np.uint64),  # `version_of` the content
        ("size", np.uint32),  # bytes
        ("modified", np.uint32),  # seconds since 1970
    ]
)


def version_of(etag: str, size: int, modified: int) -> int:
    """64 bits that differ where contents differ, as far as the store tells them apart: by ETag, else by time."""
    return xxhash.xxh3_64_intdigest((etag or str(modified)).encode(), size)


def parse_names(
    prefix: str,
    paths: Sequence[str],
    sizes: Sequence[int],
    etags: Sequence[str],
    modified: Sequence[int],
) -> np.ndarray:
    """The tiles and sidecars (N,) of type FILE among files of one directory, by their paths, which begin with prefix.

    Mostly they are all z/x/y.tif, and then a million are parsed in a second.
    """
    text = "\n" + "\n".join(paths)
    if re.fullmatch(rf"(?:\n{re.escape(prefix)}{PLAIN_NAME})+", text) and text.count("\n") == len(paths):
        numbers = text.replace(f"\n{prefix}", "/").replace(".tif", "")
        table = np.zeros(len(paths), dtype=FILE)
        table["zxy"] = np.fromstring(numbers[1:], dtype=np.int64, sep="/").reshape(-1, 3)
        table["suffix"] = SUFFIXES.index(".tif")
        table["version"] = list(map(version_of, etags, sizes, modified))
        table["size"] = np.minimum(sizes, LARGEST)
        table["modified"] = np.asarray(modified, dtype=np.int64) & LARGEST  # whatever a clock has said
        return table
    rows: list[tuple[tuple[int, ...], int, int, int, int, int]] = []
    for path, etag, size, when in zip(paths, etags, sizes, modified, strict=True):
        if match := TILE_PATH.fullmatch(path, len(prefix)):
            *zxy, suffix, sidecar = match.groups()
            bit = 1 << SIDECARS.index(sidecar) if sidecar else 0
            contents = version_of(etag, size, when), min(size, LARGEST), when & LARGEST
            rows.append((tuple(map(int, zxy)), SUFFIXES.index(suffix), bit, *contents))
    return np.array(rows, dtype=FILE)


def sidecar_names(path: str, bits: int) -> list[str]:
    """The paths of the sidecars of the tile at that path."""
    return [path + suffix for number, suffix in enumerate(SIDECARS) if bits >> number & 1]


def likeliest(paths: Sequence[str]) -> str | None:
    """Of names that are no tiles, one that may have been meant for one."""
    numbered = (path for path in paths if re.search(r"\d/\d+/[^/]*\d[^/]*$", path))
    return next(numbered, paths[0] if paths else None)


def misfit(path: str) -> str:
    """Why a file at the right depth is no tile, in words."""
    *folders, name = path.split("/")
    number, rest = re.fullmatch(r"(\d*)(.*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    if len(folders) < 2 or not all(re.fullmatch(NUMBER, folder) for folder in folders[-2:]):
        return "it does not lie in folders named for zoom and column, numbers without leading zeros"
    if not re.fullmatch(NUMBER, number):
        return "its name does not begin with its row, a number without leading zeros"
    accepted = ", ".join(f".{suffix}" for suffix in FORMATS)
    return f"what follows its row, {rest!r}, is none of {accepted}, or @2x before those"
