"""Shows a run elsewhere while it trains, as `runtime.loggers` asks: each epoch's numbers, the experiment, worst tiles.

Called by `outputs` and, after the report, by `train`; on rank 0 only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from PIL import Image

from robosat_pink.container.atomic_write import check_writable, make_folder
from robosat_pink.container.contract import Container
from robosat_pink.container.failure_file import user_message
from robosat_pink.errors import ContractError
from robosat_pink.training.earlier_results import EVENTS
from robosat_pink.training.state import State

log = logging.getLogger(__name__)

NOT_SHOWN = ("per_class", "waited_s", "compile_s")  # entries of a phase's metrics that are no number of its log line


class Logger(Protocol):
    """What a logger implements. A new one also takes a line in LOGGERS, its name in `config/sections.py`, and an extra.

    The methods are called between epochs, while training waits. They may raise any Exception: the logger is then left
    out for the rest of the run. A remote service thus needs a limit for its own waits.
    """

    package: ClassVar[str]  # what has to be installed: the package, and the extra of pyproject.toml

    def __init__(self, container: Container, is_resumed: bool) -> None:
        """Import the package and open the log.

        A resumed run logs all epochs of its history again, so that what an earlier process logged is to be dropped.
        """

    def experiment(self, text: str) -> None:
        """The experiment as YAML, without secrets."""

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        """Numbers by names such as `val/iou`; undefined ones are left out."""

    def picture(self, name: str, pixels: np.ndarray, epoch: int) -> None:
        """Pixels (H, W, 3) uint8."""

    def close(self) -> None: ...


class TensorBoard:
    """Writes event files to /opt/ml/output/tensorboard. The steps of its charts are epochs."""

    package: ClassVar[str] = "tensorboard"

    def __init__(self, container: Container, is_resumed: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second, and only those who ask for it have it

        make_folder(container.tensorboard)
        check_writable(container.tensorboard)  # SummaryWriter's thread would print a traceback
        earlier_files = list(container.tensorboard.glob(EVENTS)) if is_resumed else []
        # A TensorBoard that runs, or reads copies of the earlier files, drops their steps by `purge_step`.
        self._writer = SummaryWriter(str(container.tensorboard), purge_step=0 if is_resumed else None)
        for path in earlier_files:
            path.unlink()  # with --load_fast=false, TensorBoard would show the steps of both files

    def experiment(self, text: str) -> None:
        indented = "".join(f"    {line}\n" for line in text.splitlines())  # a block of code in Markdown
        self._writer.add_text("experiment", indented, 0)
        self._writer.flush()

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def picture(self, name: str, pixels: np.ndarray, epoch: int) -> None:
        self._writer.add_image(name, pixels, epoch, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard}


def check_installed(names: Sequence[str]) -> None:
    """Raises ContractError if a logger's package is missing."""
    for name in names:
        package = LOGGERS[name].package
        if importlib.util.find_spec(package) is None:
            raise ContractError(
                f'runtime.loggers = ["{name}"]: the package {package} is missing; leave it out, install it (in a '
                f"clone: .venv/bin/pip install {package}), or build the image with --build-arg EXTRAS={package}"
            )


class Loggers:
    """The loggers of a run, those that `names` names. One that fails is left out from then on, with a warning."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._names = names
        self._open: dict[str, Logger] = {}

    def begin(self, container: Container, state: State, experiment: str) -> None:
        """Open the loggers; log the experiment, and the epochs that a resumed run has behind it."""
        for name in self._names:
            with self._left_out_if_it_fails(name):
                self._open[name] = LOGGERS[name](container, state.is_resumed)
        self._each(lambda logger: logger.experiment(experiment))
        for row in state.history:
            self.epoch(row)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Log a row of the history: the learning rate, and the metrics of `train` and `val`."""
        self._each(lambda logger: logger.scalars(scalars_of_epoch(row), row["epoch"]))

    def phase(self, name: str, values: Mapping[str, Any], epoch: int) -> None:
        """Log the metrics of a phase after the last epoch."""
        self._each(lambda logger: logger.scalars(scalars_of(name, values), epoch))

    def worst_tiles(self, folder: Path, epoch: int) -> None:
        """Log the pictures of the worst tiles, which the report has written to `folder`."""
        paths = sorted(folder.glob("worst-*.png"))
        self._each(lambda logger: _show(logger, paths, epoch))

    def close(self) -> None:
        still_open, self._open = self._open, {}
        for name, logger in still_open.items():
            with self._left_out_if_it_fails(name):
                logger.close()

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._open.items()):
            with self._left_out_if_it_fails(name):
                call(logger)

    @contextlib.contextmanager
    def _left_out_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            failed = self._open.pop(name, None)
            if failed:
                with contextlib.suppress(Exception):
                    failed.close()
            message = user_message(error)
            log.warning("warning: runtime.loggers: %s failed, and logs no more of this run: %s", name, message)


def _show(logger: Logger, paths: Sequence[Path], epoch: int) -> None:
    for path in paths:
        logger.picture(f"tiles/{path.stem}", np.asarray(Image.open(path).convert("RGB")), epoch)


def scalars_of_epoch(row: Mapping[str, Any]) -> dict[str, float]:
    return {"train/lr": row["lr"]} | scalars_of("train", row["train"]) | scalars_of("val", row["val"])


def scalars_of(phase: str, values: Mapping[str, Any]) -> dict[str, float]:
    """A phase's numbers as in its log line, and those of each class among several; without undefined ones."""
    numbers = {f"{phase}/{name}": value for name, value in values.items() if name not in NOT_SHOWN}
    by_class = values["per_class"]
    if len(by_class) > 1:
        numbers |= {
            f"{phase}/{name}/{class_name}": value
            for class_name, scores in by_class.items()
            for name, value in scores.items()
        }
    return {name: float(value) for name, value in numbers.items() if not math.isnan(value)}
