"""Drafts where images and masks are, which directories, and how they pair. Called by `draft`."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from robosat_pink.container.some_names import some_names
from robosat_pink.datasets.pairing import Pairs, pair, seeming_cause
from robosat_pink.datasets.tiles import TileFiles
from robosat_pink.drafting.layout import Directory, tile_files
from robosat_pink.drafting.text import Entry, quoted
from robosat_pink.errors import DataError

SPECIAL = re.compile(r"([.^$*+?{}\[\]\\|()])")
SHORTEST = 3  # characters of a beginning or an end of names that serves as an expression
# Named groups by which several images of one tile may pair with their own masks, and what they hold, in words.
GROUPS = {
    "(?P<scene>.*)$": "the same directory name",
    r".*?(?<!\d)(?P<day>\d{8})(?!\d)": "the day in the directory's name",
    r".*?(?<!\d)(?P<day>\d{4}-\d{2}-\d{2})(?!\d)": "the day in the directory's name",
    r".*?(?<!\d)(?P<day>\d{7})(?!\d)": "the year and day in the directory's name",
}


class Where(NamedTuple):
    """The pairs that an experiment with these entries finds."""

    entries: tuple[Entry, ...]
    pairs: Pairs
    has_group: bool


def where(images: Sequence[Directory], masks: Sequence[Directory], others: Sequence[Directory]) -> Where:
    """`images` have one parent, and so have `masks`; `others` are the directories of tiles that are neither.

    Raises DataError if they do not pair.
    """
    image_files, mask_files = tile_files(images), tile_files(masks)
    group, pairs = _paired(image_files, mask_files)
    if not len(pairs):
        raise DataError(
            f"no image has a mask of the same z/x/y: images are in {_shown(images)}, such as {image_files.path(0)}; "
            f"masks are in {_shown(masks)}, such as {mask_files.path(0)}"
            f"{seeming_cause(image_files.zxy, mask_files.zxy)}"
        )
    entries = [
        *_side("image_bucket", "imagery_directory_regex", images, [*masks, *others], group),
        *_side("mask_bucket", "mask_directory_regex", masks, [*images, *others], group),
    ]
    if group:
        entries[1] = entries[1]._replace(why=f"{entries[1].why}; images and masks pair by {GROUPS[group]}")
    elif _has_repeated_tiles(image_files):
        todo = (
            "some tiles have images in several directories, and each pairs with the only mask of its z/x/y. If a mask "
            "is of one day alone, name a group in both expressions, such as (?P<day>\\d{8})"
        )
        entries[0] = entries[0]._replace(todo=todo)
    if pairs.unpaired_images or pairs.unpaired_masks:
        without = f"{pairs.unpaired_images} images and {pairs.unpaired_masks} masks have no partner, and are left out"
        entries[0] = entries[0]._replace(todo="; ".join(text for text in (entries[0].todo, without) if text))
    return Where(tuple(entries), pairs, bool(group))


def _paired(images: TileFiles, masks: TileFiles) -> tuple[str, Pairs]:
    """The one of GROUPS by which most images and masks pair if a tile occurs more than once; otherwise no group."""
    if _has_repeated_tiles(images) or _has_repeated_tiles(masks):
        by_group: list[tuple[str, Pairs]] = []
        for group in GROUPS:
            values = [_group_values(group, files.directories) for files in (images, masks)]
            try:
                pairs = pair(images, masks, *values) if all(map(len, values)) else None
            except DataError:
                continue
            if pairs:
                by_group.append((group, pairs))
        if by_group:
            return max(by_group, key=lambda each: len(each[1]))  # the first of those with as many
    try:
        return "", pair(images, masks, [()] * len(images.directories), [()] * len(masks.directories))
    except DataError as error:
        raise DataError(f"{error}. Or name the one directory to take, by --images FOLDER and --masks FOLDER") from error


def _group_values(group: str, names: Sequence[str]) -> list[Hashable]:
    """What the group matches in each name; empty if there is a name that it does not match."""
    matches = [re.match(group, name) for name in names]
    return [match.groups() for match in matches if match] if all(matches) else []


def _has_repeated_tiles(files: TileFiles) -> bool:
    return len(np.unique(files.zxy, axis=0)) < len(files)


def _side(
    bucket_key: str, expression_key: str, side: Sequence[Directory], others: Sequence[Directory], group: str
) -> list[Entry]:
    parent = side[0].parent
    siblings = [other.name for other in others if other.parent == parent]
    is_above = not side[0].below  # above the folder that the user named may be more than is wanted
    expression = _expression([directory.name for directory in side], siblings, is_above)
    count = sum(int((directory.table["sidecar"] == 0).sum()) for directory in side)
    what = "images" if bucket_key == "image_bucket" else "masks"
    relative = "; ./ is the folder in which a command is started" if parent.startswith(".") else ""
    if group:
        expression = f"(?={expression}){group}" if expression else group
    if not expression:
        where_to = f"{count} {what} in all directories there, {_shown(side)}; {expression_key} could choose some"
        return [Entry(f"{bucket_key}: {quoted(parent)}", where_to + relative)]
    return [
        Entry(f"{bucket_key}: {quoted(parent)}", f"{count} {what}{relative}"),
        Entry(f"{expression_key}: {quoted(expression)}", f"the directories there: {_shown(side)}"),
    ]


def _expression(names: Sequence[str], siblings: Sequence[str], is_exact: bool) -> str:
    """A regular expression for these directories and none of their siblings; empty if it need not tell any apart."""
    if not siblings and not is_exact:
        return ""
    beginning = _beginning(names)
    end = _beginning([name[::-1] for name in names])[::-1]
    if len(names) > 1 and not is_exact:
        if len(end) >= SHORTEST and not any(sibling.endswith(end) for sibling in siblings):
            return f".*{_escaped(end)}$"
        if len(beginning) >= SHORTEST and not any(sibling.startswith(beginning) for sibling in siblings):
            return f"{_escaped(beginning)}.*"
    alternatives = "|".join(map(_escaped, names))
    return f"({alternatives})$" if len(names) > 1 else f"{alternatives}$"


def _beginning(names: Sequence[str]) -> str:
    """The longest text with which all names begin."""
    first, last = min(names), max(names)
    return first[: next((number for number, letter in enumerate(first) if letter != last[number : number + 1]), None)]


def _escaped(name: str) -> str:
    return SPECIAL.sub(r"\\\1", name)


def _shown(side: Sequence[Directory]) -> str:
    return some_names([directory.name for directory in side], 3)
