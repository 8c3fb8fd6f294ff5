"""What an earlier run has left where a new one begins, and what might be taken for the new one's. Called by `results`.

Only what has a name that `results` or `report` gives is put aside, and nothing that the experiment itself names.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
from pathlib import Path

from robosat_pink.checkpoint import EPOCH_FILE
from robosat_pink.config import Config
from robosat_pink.container.contract import Container
from robosat_pink.errors import ContractError

log = logging.getLogger(__name__)

IN_MODEL = ("best.pth", "metrics.json", "history.csv", "MODEL_CARD.md")
ABOUT_THE_MODEL = ("config.yml", "train_ids.txt", "test_ids.txt", "holdout_ids.txt")  # not worth keeping alone
IN_OUTPUT = ("report.html", "scenes.csv", "curves.png", "precision_recall.png")
TILE = re.compile(r"(best|median|worst)-\d+-.+\.png")  # in the folder tiles


def put_aside(container: Container, config: Config) -> None:
    """Move the results of an earlier run into folders earlier-N: they may be a day's work, but are not this run's."""
    files = (config.checkpoint.path, config.checkpoint.resume, config.dataset.split.from_, config.model.pretrained)
    named = {os.path.realpath(each.removeprefix("file://")) for each in files if isinstance(each, str)}
    model, output = container.model, container.output_data
    found: dict[Path, list[Path]] = {
        model: [path for path in model.iterdir() if path.name in IN_MODEL or EPOCH_FILE.fullmatch(path.name)],
        output: [path for path in output.iterdir() if path.name in IN_OUTPUT]
        + [path for path in (output / "tiles").glob("*.png") if TILE.fullmatch(path.name)],
    }
    if found[model]:
        found[model] += [model / each for each in ABOUT_THE_MODEL if (model / each).exists()]
    names = (f"earlier-{number}" for number in itertools.count(1))
    name = next(each for each in names if not any(os.path.lexists(folder / each) for folder in found))
    for folder, paths in found.items():
        old = [path for path in paths if os.path.realpath(path) not in named]  # also of a link to itself
        for path in old:
            place = folder / name / path.relative_to(folder)
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                path.rename(place)
            except OSError as error:
                raise ContractError(
                    f"{path}, of an earlier run, cannot be moved to {place.parent}: {error.strerror}; check the folder "
                    "and who may write to it"
                ) from error
        if old:
            log.info("moved %d files that an earlier run had left in %s to %s", len(old), folder, folder / name)
    with contextlib.suppress(OSError):  # it is not there, or something else is in it
        (output / "tiles").rmdir()
