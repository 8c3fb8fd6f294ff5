"""Finds the directories of tiles below a folder or bucket, however deep z/x/y lies. Called by `draft`."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from robosat_pink.config.constraints import bucket_location
from robosat_pink.datasets.file_names import likeliest, misfit
from robosat_pink.datasets.scans import scan_layout
from robosat_pink.datasets.tiles import TileFiles
from robosat_pink.errors import ConfigError, DataError
from robosat_pink.storage import Location
from robosat_pink.storage.refused_keys import MAX_DEPTH, can_be_read

log = logging.getLogger(__name__)


class Directory(NamedTuple):
    """The tiles z/x/y of one directory. An experiment names its parent as a bucket, and itself by an expression."""

    parent: str  # as an experiment file spells it: s3://… or a folder
    name: str
    below: str  # its path below the folder that the user named; "" for that folder itself
    table: np.ndarray  # (N,) of dtype FILE: tiles and sidecars

    def __str__(self) -> str:
        return joined(self.parent, self.name)

    @property
    def location(self) -> Location:
        return Location.parse(self.parent)

    @property
    def identity(self) -> tuple[str | None, str]:
        """Equal for all spellings of one directory."""
        location = self.location
        return location.bucket, f"{location.path}/{self.name}"

    @property
    def files(self) -> TileFiles:
        return TileFiles.from_tables({self.name: [self.table]})


def find(text: str) -> list[Directory]:
    """The directories of tiles in and below a folder or s3://bucket/prefix, sorted. Raises DataError if there is none.

    Folders are searched MAX_DEPTH levels deep.
    """
    spelt = _spelt(text)
    location = Location.parse(spelt)
    log.info("looking for tiles in %s", spelt)
    scans = scan_layout(location)
    directories = [
        Directory(*_parent_and_name(spelt, below), below, scan.table)
        for below, scan in sorted(scans.items())
        if (scan.table["sidecar"] == 0).any() and all(map(can_be_read, below.split("/") if below else []))
    ]
    if not directories:
        raise DataError(_why_none(spelt, likeliest([scan.stray for scan in scans.values() if scan.stray])))
    return directories


def tile_files(directories: Sequence[Directory]) -> TileFiles:
    """The tiles of directories with one parent."""
    return TileFiles.from_tables({directory.name: [directory.table] for directory in directories})


def joined(parent: str, name: str) -> str:
    return f"{parent.rstrip('/')}/{name}" if name else parent


def _spelt(text: str) -> str:
    """The folder or bucket as an experiment file spells it. Raises ConfigError or DataError if it can be neither."""
    if text.startswith("s3://"):
        if fault := bucket_location.fault(text):
            raise ConfigError(f"command line: s3://***: {fault}")
        return text.rstrip("/")
    folder = text.removeprefix("file://")
    if not os.path.isdir(folder):
        is_what = "is a file" if os.path.exists(folder) else "no such folder"
        raise DataError(f"{text}: {is_what}; accepted: a folder of tiles, or s3://BUCKET/PREFIX")
    return _as_folder(folder)


def _as_folder(path: str) -> str:
    normal = os.path.normpath(path)
    return normal if normal.startswith(("/", "../")) or normal in (".", "..") else f"./{normal}"


def _parent_and_name(spelt: str, below: str) -> tuple[str, str]:
    if below:
        parent, _, name = below.rpartition("/")
        return joined(spelt, parent), name
    if spelt.startswith("s3://"):
        parent, _, name = spelt.rpartition("/")
        if parent == "s3:/":
            raise DataError(
                f"{spelt}: the tiles lie directly below the bucket, as ZOOM/X/Y; an experiment needs a directory "
                f"above: aws s3 cp --recursive {spelt}/ {spelt}/scene/"
            )
        return parent, name
    return _as_folder(os.path.join(spelt, "..")), os.path.basename(os.path.abspath(spelt))


def _why_none(spelt: str, stray: str | None) -> str:
    expected = "expected ZOOM/X/Y.tif, as in imagery/SCENE/13/2373/3167.tif"
    if stray is None:
        depth = "" if spelt.startswith("s3://") else f", as far as {MAX_DEPTH} folders deep"
        return f"{spelt}: no file lies there{depth}; {expected}"
    return f"{spelt}: no tile lies there: found {stray}, {expected}: {misfit(stray)}; cut scenes into such tiles first"
