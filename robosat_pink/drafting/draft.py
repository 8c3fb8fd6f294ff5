"""Drafts an experiment file for what lies in a folder or bucket. Called by `init`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from robosat_pink.container.quantities import count
from robosat_pink.datasets import coverage
from robosat_pink.drafting import channels, classes, layout, network, samples, sides, split, text, where
from robosat_pink.drafting.layout import Directory
from robosat_pink.drafting.sides import Sides
from robosat_pink.drafting.text import TODO, Section

log = logging.getLogger(__name__)

IMAGES_READ, MASKS_READ = 32, 128
SCHEMA = Path(__file__).parents[2] / "experiments" / "experiment.schema.json"


class Draft(NamedTuple):
    text: str  # of the experiment file
    todos: tuple[str, ...]  # what could not be told, by section


def draft(folder: str | None, images: str | None = None, masks: str | None = None) -> Draft:
    """The experiment for the tiles in `folder`; those of one side are in `images` or `masks`, if these are given.

    Raises DataError or ConfigError, in words, if the tiles cannot be trained on or a choice is the user's.
    """
    found, others = _sides(folder, images, masks)
    sides.check(found)
    image_directories, mask_directories = ([known.directory for known in side] for side in found)
    for name, side in (("images", found.images), ("masks", found.masks)):
        tiles = sum(len(known.directory.files) for known in side)
        log.info(
            "%s: %s in %s (directories: %d), %s",
            name,
            count(tiles, "tile"),
            side[0].directory.parent,
            len(side),
            side[0].kind,
        )
    located = where.where(image_directories, mask_directories, others)
    pairs = located.pairs
    rows = samples.spread(len(pairs), IMAGES_READ)
    image_looks = samples.look_at_images(image_directories[0].location, pairs.images, rows)
    divided = split.split(pairs, located.has_group)
    # The check reads some training tiles, and must meet no value there that has not been seen.
    mask_rows = sorted({*samples.spread(len(pairs), MASKS_READ), *coverage.chosen(divided.train)})
    mask_looks = samples.read(mask_directories[0].location, pairs.masks, mask_rows, samples.look_at_mask)
    labels = classes.classes(mask_looks, len(pairs))
    dataset = (
        *located.entries,
        *divided.entries,
        *channels.missing(image_looks),
        *labels.ignored,
    )
    pixels = max(max(look.size) for look in image_looks)
    sections = (
        Section("dataset", dataset),
        labels.section,
        channels.channels(image_looks),
        network.model(len(pairs), pixels),
    )
    head = (
        f"Drafted by init for {len(pairs)} pairs of image and mask. What it could not tell begins with {TODO}. Every "
        "key is described in experiments/README.md."
    )
    directive = f"yaml-language-server: $schema={SCHEMA}" if SCHEMA.exists() else ""
    todos = tuple(todo for section in sections for todo in section.todos)
    return Draft(text.document(directive, head, sections), todos)


def _sides(folder: str | None, images: str | None, masks: str | None) -> tuple[Sides, list[Directory]]:
    """Images and masks, and the directories of tiles that are neither."""
    given_images, given_masks = (layout.find(name) if name else [] for name in (images, masks))
    given = {directory.identity for directory in (*given_images, *given_masks)}
    others = [directory for directory in (layout.find(folder) if folder else []) if directory.identity not in given]
    if images and masks:
        return Sides(sides.look(given_images), sides.look(given_masks)), others
    known = sides.look(others)
    is_one_side = bool(images or masks) and all(one.kind.may_be_mask for one in known)
    told = Sides(known, known) if is_one_side else sides.tell_apart(known)
    if images:
        left = [] if is_one_side else [one.directory for one in told.images]
        return Sides(sides.look(given_images), told.masks), left
    if masks:
        left = [] if is_one_side else [one.directory for one in told.masks]
        return Sides(told.images, sides.look(given_masks)), left
    return told, []
