"""Lists the tiles of the sides of an experiment, images and masks, in buckets or folders.

Called by `pairs`, and by `images` for one side alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from robosat_pink.container.log_lines import IN_LOG
from robosat_pink.container.quantities import count
from robosat_pink.container.some_names import some_names
from robosat_pink.datasets.expressions import Groups, Names, matching
from robosat_pink.datasets.file_names import SIDECARS, TILE_PATH, likeliest, misfit
from robosat_pink.datasets.scans import MemoryWatch, Scan, scan_all, side_by_side
from robosat_pink.datasets.tiles import TileFiles
from robosat_pink.errors import DataError
from robosat_pink.storage import Location, Page
from robosat_pink.storage.error_advice import NotFound

log = logging.getLogger(__name__)

DIRECTORIES = 10  # directories of each side that are listed at a time; more would overload two cores
SAMPLES = 5  # tiles named in an error


class Side(NamedTuple):
    """The location of images or masks, and the keys of the experiment file that define it."""

    location: Location
    expression: str
    bucket_key: str
    expression_key: str


class Listed(NamedTuple):
    files: TileFiles
    groups: list[Groups]  # by directory, the texts that the expression's named groups matched


def list_sides(sides: Sequence[Side]) -> list[Listed]:
    """The tiles of each side, in the directories directly below its location whose names match its expression.

    A signal ends the wait for a store that does not answer. Raises DataError if a side has no tile, and ConfigError if
    an expression takes too long.
    """
    memory = MemoryWatch([str(side.location) for side in sides])
    directories = side_by_side(_directories, sides, len(sides), memory.check)
    to_match = [
        Names(side.expression_key, side.expression, names, str(side.location))
        for side, names in zip(sides, directories, strict=True)
    ]
    matches = matching(to_match)
    for side, names, groups_by_name in zip(sides, directories, matches, strict=True):
        if not groups_by_name:
            raise DataError(
                f"{side.expression_key} = {side.expression!r} matches no directory of {side.location}; there are: "
                f"{some_names(names)}"
            )
    matching_directories = [(side.location, name) for side, names in zip(sides, matches, strict=True) for name in names]
    scans = iter(scan_all(matching_directories, DIRECTORIES * len(sides)))
    listed = []
    for side, groups_by_name in zip(sides, matches, strict=True):
        files = _tiles(side, {name: next(scans) for name in groups_by_name})
        listed.append(Listed(files, list(groups_by_name.values())))
    return listed


def described(location: Location, files: TileFiles, expression: str) -> str:
    directories = some_names(files.directories)
    samples = ", ".join(files.path(row) for row in range(min(SAMPLES, len(files))))
    return (
        f"{location}, expression {expression!r}: {len(files)} tiles in the directories {directories}, such as {samples}"
    )


def _directories(side: Side) -> list[str]:
    location = side.location

    try:
        names = location.directories()
        if not names:
            location.pages("", lambda page: _refuse_files(side, page))
    except NotFound as error:
        raise NotFound(f"{side.bucket_key}: {error}") from error
    if not names:
        raise DataError(f"{side.bucket_key}: no directories lie below {location}; check bucket and prefix")
    return names


def _refuse_files(side: Side, page: Page) -> None:
    raise DataError(
        f"{side.bucket_key}: no directories lie below {side.location}, but files: found "
        f"{likeliest(page.paths) or 'none'}; expected DIRECTORY/ZOOM/X/Y.tif for each tile; check bucket and prefix, "
        "or copy the tiles to such names"
    )


def _tiles(side: Side, scans: Mapping[str, Scan]) -> TileFiles:
    files = TileFiles.from_tables({name: [scan.table] for name, scan in scans.items()})
    if not len(files):
        raise DataError(_why_no_tile(side, scans))
    others = sum(scan.files - len(scan.table) for scan in scans.values())
    log.info(
        "listed %s of %s (directories: %s, other files: %s)",
        count(len(files), "tile"),
        side.location,
        count(len(scans)),
        count(others),
        extra=IN_LOG,
    )
    if with_sidecars := int((files.sidecars > 0).sum()):
        log.info("%d of them have a file beside them (%s)", with_sidecars, ", ".join(SIDECARS[:2]), extra=IN_LOG)
    return files


def _why_no_tile(side: Side, scans: Mapping[str, Scan]) -> str:
    where = f"{side.bucket_key}: {side.location} holds no tile in its directories {some_names(list(scans))}"
    stray = likeliest([scan.stray for scan in scans.values() if scan.stray])
    if stray is None:
        return f"{where}, and no other file; check bucket, prefix and {side.expression_key}"
    zxy = "/".join(stray.split("/")[-3:])
    depth = stray.count("/")
    if not TILE_PATH.fullmatch(zxy):
        expected = "DIRECTORY/ZOOM/X/Y.tif"
        way_out = f"{misfit(stray)}; copy the tiles to such names"
    elif depth == 2:
        expected = f"DIRECTORY/{stray}"
        way_out = f"the tiles lie directly below the bucket; {_one_level_up(side, stray)}"
    else:
        directory, _, rest = stray.removesuffix(f"/{zxy}").rpartition("/")
        expected = f"{rest}/{zxy}"
        way_out = f"the tiles lie deeper; give {side.bucket_key}: {_spelt(side.location)}/{directory}"
    return f"{where}: found {stray}, expected {expected}: {way_out}"


def _one_level_up(side: Side, stray: str) -> str:
    location = side.location
    parent, _, directory = _spelt(location).rpartition("/")
    if parent and not parent.endswith("/"):
        return f"give {side.bucket_key}: {parent} and {side.expression_key}: {re.escape(directory)}$"
    zoom = stray.partition("/")[0]
    return f"copy them below a directory: aws s3 cp --recursive s3://{location.name}/{zoom}/ s3://{location.name}/scene/{zoom}/"


def _spelt(location: Location) -> str:
    """The location as it may be written in an experiment file."""
    return f"s3://{location.name}" if location.bucket else location.path
