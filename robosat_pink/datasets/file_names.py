"""Recognises tiles and sidecars of tiles by file name, and explains why a name is neither. No I/O.

Called by `sides`, `scans`, `tiles` and `tile_file`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np
import xxhash

TILE_FORMATS = ("tif", "tiff", "png", "jpg", "jpeg", "webp")
# Suffixes of tiles, in every mixture of lower and upper case, and also after @2x, which marks tiles with more pixels.
SUFFIXES = tuple(
    scale + "".join(letters)
    for scale in (".", "@2x.")
    for suffix in TILE_FORMATS
    for letters in itertools.product(*((letter, letter.upper()) for letter in suffix))
)
# Suffixes of the files that GDAL reads with a tile: its nodata mask, and metadata that its format cannot store.
SIDECARS = (".msk", ".aux.xml", ".MSK", ".AUX.XML")
NUMBER = "(0|[1-9][0-9]{0,8})"  # no leading zeros, so that paths can be rebuilt; 9 digits fit an int32
TILE_PATH = re.compile(
    rf"{NUMBER}/{NUMBER}/{NUMBER}({'|'.join(map(re.escape, SUFFIXES))})({'|'.join(map(re.escape, SIDECARS))})?"
)
PLAIN_NAME = rf"{NUMBER}/{NUMBER}/{NUMBER}\.tif".replace("(", "(?:")
LARGEST = 2**32 - 1  # also stands for every larger size
FILE = np.dtype(
    [
        ("zxy", np.int32, 3),
        ("suffix", np.uint8),  # index into SUFFIXES
        ("sidecar", np.uint8),  # bit n for SIDECARS[n]; 0 for a tile
        ("version", np.uint64),  # `version_of` the content
        ("size", np.uint32),  # bytes
        ("modified", np.uint32),  # seconds since 1970
    ]
)


def version_of(etag: str, size: int, modified: int) -> int:
    """64 bits that identify the content of a file by its size and ETag; by size and time if there is no ETag."""
    return xxhash.xxh3_64_intdigest((etag or str(modified)).encode(), size)


def parse_names(
    prefix: str,
    paths: Sequence[str],
    sizes: Sequence[int],
    etags: Sequence[str],
    modified: Sequence[int],
) -> np.ndarray:
    """The tiles and sidecars, (N,) of dtype FILE, among the files of one directory. All `paths` begin with `prefix`.

    If all files are z/x/y.tif, as they mostly are, a million are parsed per second.
    """
    text = "\n" + "\n".join(paths)
    if re.fullmatch(rf"(?:\n{re.escape(prefix)}{PLAIN_NAME})+", text) and text.count("\n") == len(paths):
        numbers = text.replace(f"\n{prefix}", "/").replace(".tif", "")
        table = np.zeros(len(paths), dtype=FILE)
        table["zxy"] = np.fromstring(numbers[1:], dtype=np.int64, sep="/").reshape(-1, 3)
        table["suffix"] = SUFFIXES.index(".tif")
        table["version"] = list(map(version_of, etags, sizes, modified))
        table["size"] = np.minimum(sizes, LARGEST)
        table["modified"] = np.asarray(modified, dtype=np.int64) & LARGEST  # 32 bits, even if a clock was wrong
        return table
    rows: list[tuple[tuple[int, ...], int, int, int, int, int]] = []
    for path, etag, size, when in zip(paths, etags, sizes, modified, strict=True):
        if match := TILE_PATH.fullmatch(path, len(prefix)):
            *zxy, suffix, sidecar = match.groups()
            bit = 1 << SIDECARS.index(sidecar) if sidecar else 0
            contents = version_of(etag, size, when), min(size, LARGEST), when & LARGEST
            rows.append((tuple(map(int, zxy)), SUFFIXES.index(suffix), bit, *contents))
    return np.array(rows, dtype=FILE)


def sidecar_paths(path: str, bits: int) -> list[str]:
    """The paths of the tile's sidecars whose bits are set in `bits`."""
    return [path + suffix for number, suffix in enumerate(SIDECARS) if bits >> number & 1]


def likeliest(paths: Sequence[str]) -> str | None:
    """The path that was most likely meant for a tile, among paths that are no tiles."""
    numbered = (path for path in paths if re.search(r"\d/\d+/[^/]*\d[^/]*$", path))
    return next(numbered, paths[0] if paths else None)


def misfit(path: str) -> str:
    """Why the end of a path is no z/x/y.tif, in words."""
    *folders, name = path.split("/")
    number, rest = re.fullmatch(r"(\d*)(.*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    if len(folders) < 2 or not all(re.fullmatch(NUMBER, folder) for folder in folders[-2:]):
        return "its folders are not ZOOM/X, numbers of up to 9 digits without leading zeros"
    if not re.fullmatch(NUMBER, number):
        return "its name does not begin with Y, a number of up to 9 digits without leading zeros"
    accepted = ", ".join(f".{suffix}" for suffix in TILE_FORMATS)
    return f"what follows Y, {rest!r}, is none of {accepted}, with or without @2x"
