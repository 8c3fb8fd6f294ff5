"""Moves the results of an earlier run out of the way of a new one, into folders earlier-N.

Called by `outputs` and, for the results of an evaluation, by `prediction.evaluation`.

It moves only files that are named like this package's results, and never an input that the experiment names.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from robosat_pink.checkpoint import EPOCH_FILE
from robosat_pink.config import Config
from robosat_pink.container.contract import Container
from robosat_pink.errors import ContractError

log = logging.getLogger(__name__)

IN_MODEL = ("best.pth", "metrics.json", "history.csv", "MODEL_CARD.md")
BESIDE_A_MODEL = ("config.yml", "train_ids.txt", "test_ids.txt", "holdout_ids.txt")  # moved only with one of IN_MODEL
IN_OUTPUT = ("report.html", "metrics.json", "scenes.csv", "curves.png", "precision_recall.png", "reliability.png")
EVENTS = "events.out.tfevents.*"  # TensorBoard shows the folder they are moved to as a run of its own
TILE_PICTURE = re.compile(r"(best|median|worst)-\d+-.+\.png")  # names in the folder `tiles`


def move_away(container: Container, config: Config) -> None:
    """Move earlier results within the model and output folders. Raises ContractError if a file cannot be moved."""
    inputs = (config.checkpoint.path, config.checkpoint.resume, config.dataset.split.from_, config.model.pretrained)
    input_files = {os.path.realpath(path.removeprefix("file://")) for path in inputs if isinstance(path, str)}
    events = {container.tensorboard: list(container.tensorboard.glob(EVENTS))}
    _move_all({container.model: _in_model(container.model)} | _reports(container) | events, input_files)


def move_reports_away(container: Container) -> None:
    """Move earlier results within the output folder only. Raises ContractError if a file cannot be moved."""
    _move_all(_reports(container), set())


def _move_all(results: Mapping[Path, Sequence[Path]], input_files: Set[str]) -> None:
    """Move the files in each folder to a folder earlier-N in it, of one number, unless they are `input_files`."""
    names = (f"earlier-{number}" for number in itertools.count(1))
    name = next(name for name in names if not any(os.path.lexists(folder / name) for folder in results))
    for folder, paths in results.items():
        # realpath, not resolve: a file may be a link to itself.
        paths = [path for path in paths if os.path.realpath(path) not in input_files]
        for path in paths:
            _move(path, folder / name / path.relative_to(folder))
        if paths:
            log.info("moved %d results of an earlier run from %s to %s", len(paths), folder, folder / name)
        with contextlib.suppress(OSError):  # missing, or not empty
            (folder / "tiles").rmdir()


def _in_model(folder: Path) -> list[Path]:
    paths = [path for path in folder.iterdir() if path.name in IN_MODEL or EPOCH_FILE.fullmatch(path.name)]
    if paths:
        paths += [folder / name for name in BESIDE_A_MODEL if (folder / name).exists()]
    return paths


def _reports(container: Container) -> dict[Path, list[Path]]:
    folder = container.output_data
    pictures = [path for path in (folder / "tiles").glob("*.png") if TILE_PICTURE.fullmatch(path.name)]
    return {folder: [path for path in folder.iterdir() if path.name in IN_OUTPUT] + pictures}


def _move(path: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    except OSError as error:
        raise ContractError(
            f"{path}, of an earlier run, cannot be moved to {target.parent}: {error.strerror}; check the folder "
            "and who may write to it"
        ) from error
