"""Tells the directories of images from those of masks: by content, then by name. Called by `draft`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from robosat_pink.container.some_names import some_names
from robosat_pink.drafting import samples
from robosat_pink.drafting.layout import Directory
from robosat_pink.drafting.samples import Kind
from robosat_pink.errors import ConfigError, DataError

MASK_NAME = re.compile(r"(?<![a-z])(mask|label|annotation|ground[_-]?truth)", re.IGNORECASE)
MOST_LOOKED_AT = 64  # directories of one parent; if these are alike, the others are taken for the same
FEW_DIRECTORIES, FEW_TILES = 32, 3  # with few directories, several tiles of each are read
SHOWN = 6  # directories named in an error


class Known(NamedTuple):
    """A directory, and what its tiles may be."""

    directory: Directory
    kind: Kind

    @property
    def is_named_mask(self) -> bool:
        return bool(MASK_NAME.search(self.directory.below))

    def __str__(self) -> str:
        return f"{self.directory} ({len(self.directory.table)} tiles, {self.kind})"


class Sides(NamedTuple):
    images: list[Known]
    masks: list[Known]


def look(directories: Sequence[Directory]) -> list[Known]:
    """Read some tiles of the directories. Raises DataError for a tile that cannot be read."""
    by_parent: dict[str, list[Directory]] = {}
    for directory in directories:
        by_parent.setdefault(directory.parent, []).append(directory)
    return [known for siblings in by_parent.values() for known in _look_at_siblings(siblings)]


def tell_apart(known: Sequence[Known]) -> Sides:
    """Images and masks; either may be empty. Raises ConfigError, which names the arguments that decide, if both fit."""
    by_content = {number for number, one in enumerate(known) if one.kind.may_be_mask}
    by_name = {number for number, one in enumerate(known) if one.is_named_mask}
    if len(by_name) == len(known):  # the names do not tell anything apart
        by_name = set()
    if by_name and (by_content <= by_name or by_name <= by_content):
        masks = by_name
    elif by_name:
        raise _undecided("by their content other directories are masks than by their names", known)
    elif len(by_content) == len(known) > 1:
        raise _undecided("all may be masks by their content, and no name says mask, label or annotation", known)
    else:
        masks = by_content
    return Sides(
        [one for number, one in enumerate(known) if number not in masks],
        [one for number, one in enumerate(known) if number in masks],
    )


def check(sides: Sides) -> None:
    """Raises DataError if a side is empty, ConfigError if it has more than an experiment can name or train on."""
    for side, others, name in ((sides.images, sides.masks, "images"), (sides.masks, sides.images, "masks")):
        if not side:
            raise DataError(
                f"found no {name}, only {_shown(others)}; to train, an experiment needs both: name the other folder, "
                f"such as --{name} ./{name}"
            )
    for side, name in ((sides.images, "images"), (sides.masks, "masks")):
        if len({one.directory.parent for one in side}) > 1:
            raise _undecided(f"the {name} lie in several folders", side, (name,))
    if len({one.kind.bands for one in sides.images}) > 1:
        raise _undecided("the images differ in their number of bands", sides.images, ("images",))


def _look_at_siblings(siblings: Sequence[Directory]) -> list[Known]:
    chosen = [siblings[number] for number in samples.spread(len(siblings), MOST_LOOKED_AT)]
    tiles = FEW_TILES if len(siblings) <= FEW_DIRECTORIES else 1
    kinds = {directory.name: _kind(directory, tiles) for directory in chosen}
    if len(chosen) == len(siblings):
        return [Known(directory, kinds[directory.name]) for directory in siblings]
    if len({(kind.bands, kind.may_be_mask) for kind in kinds.values()}) > 1:
        raise _undecided(
            f"{siblings[0].parent} has {len(siblings)} directories, and those looked at differ",
            [Known(directory, kinds[directory.name]) for directory in chosen],
        )
    return [Known(directory, next(iter(kinds.values()))) for directory in siblings]


def _kind(directory: Directory, tiles: int) -> Kind:
    files = directory.files
    kinds = samples.read(directory.location, files, samples.spread(len(files), tiles), samples.kind_of)
    return kinds[0]._replace(may_be_mask=all(kind.may_be_mask for kind in kinds))


def _undecided(why: str, known: Sequence[Known], names: Sequence[str] = ("images", "masks")) -> ConfigError:
    example = " ".join(f"--{name} {one.directory}" for name, one in zip(names, known, strict=False))
    return ConfigError(
        f"command line: it cannot be told which are {' and which '.join(names)}: {why}: {_shown(known)}; say it by "
        f"{' and '.join(f'--{name} FOLDER' for name in names)}, such as {example}"
    )


def _shown(known: Sequence[Known]) -> str:
    return some_names([str(one) for one in known], SHOWN, separator="; ")
