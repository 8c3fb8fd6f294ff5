"""What an earlier run has left where a new one begins, and what might be taken for the new one's. Called by `results`.

Only what has a name that `results` or `report` gives is removed, and nothing that the experiment itself names.
"""

from __future__ import annotations

import contextlib
import logging
import re
from pathlib import Path

from robosat_pink.checkpoint import EPOCH_FILE
from robosat_pink.config import Config
from robosat_pink.container import Container

log = logging.getLogger(__name__)

IN_MODEL = ("best.pth", "metrics.json", "history.csv", "MODEL_CARD.md")
IN_OUTPUT = ("report.html", "scenes.csv", "curves.png", "precision_recall.png")
TILE = re.compile(r"(best|median|worst)-\d+-.+\.png")  # in the folder tiles


def remove(container: Container, config: Config) -> None:
    """Remove the results of an earlier run, but for what a new one writes before its first step in any case."""
    files = (config.checkpoint.path, config.checkpoint.resume, config.dataset.split.from_, config.model.pretrained)
    named = {Path(each.removeprefix("file://")).resolve() for each in files if isinstance(each, str)}
    model, output, tiles = container.model, container.output_data, container.output_data / "tiles"
    found = [
        *(path for path in model.iterdir() if path.name in IN_MODEL or EPOCH_FILE.fullmatch(path.name)),
        *(path for path in output.iterdir() if path.name in IN_OUTPUT),
        *(path for path in tiles.glob("*.png") if TILE.fullmatch(path.name)),
    ]
    old = [path for path in found if path.resolve() not in named]
    for path in old:
        path.unlink()
    if old:
        with contextlib.suppress(OSError):  # something else is in it
            tiles.rmdir()
        log.info("removed %d files that an earlier run had left in %s and %s", len(old), model, output)
