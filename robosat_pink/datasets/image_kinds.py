"""The kind of an image: the band metadata of its file. If kinds differ, equal numbers may mean different things.

Called by `images` for training and prediction, and by `coverage` before it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

log = logging.getLogger(__name__)

NO_SCALE = "no scale of its own"
MOST_KINDS = 8  # kinds that a run warns of


class ImageKinds:
    """A tile's row for each kind (`Notes.kind`) of the images read so far."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}

    def add_reported(self, kinds: Mapping[str, int]) -> None:
        """Add kinds that need no warning, because they have been reported already."""
        for kind, row in kinds.items():
            self.rows.setdefault(kind, row)

    def warn_of_new(self, kinds: Mapping[str, int], tile_id: Callable[[int], str]) -> None:
        """Warn of each new kind but the first; `tile_id` names the tile of a row."""
        for kind, row in kinds.items():
            if kind in self.rows:
                continue
            if self.rows and len(self.rows) <= MOST_KINDS:
                first_kind, first_row = next(iter(self.rows.items()))
                log.warning(
                    'warning: the images of this run differ: %s has "%s"; %s has "%s". %s',
                    tile_id(row),
                    kind,
                    tile_id(first_row),
                    first_kind,
                    ways_to_agree((kind, first_kind)),
                )
                if len(self.rows) == MOST_KINDS:
                    log.warning("warning: further images that differ are not named")
            self.rows[kind] = row


def ways_to_agree(kinds: Sequence[str]) -> str:
    """Advice on images that differ in their kinds (`Notes.kind`)."""
    parts = Counter(part for kind in kinds for part in kind.split("; "))
    differing = "; ".join(part for part, count in parts.items() if count < len(kinds))
    ways = []
    if "scale " in differing and "of its own" not in differing:
        ways.append("set channels[].scale: tags, which applies each file's own scale and offset")
    if " named " in differing:
        ways.append("name the bands by their descriptions in channels[].bands")
    ways.append("narrow dataset.imagery_directory_regex to images that are alike")
    return f"If their pixel values differ in meaning, {', or '.join(ways)}"
