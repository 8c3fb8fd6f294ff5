"""What a run leaves in /opt/ml/model and /opt/ml/checkpoints, each file whole or not there."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from robosat_pink import checkpoint
from robosat_pink.checkpoint import ResumePoints
from robosat_pink.config import Config, class_values, to_tree
from robosat_pink.container import hardware
from robosat_pink.container.atomic_write import write_atomically
from robosat_pink.container.contract import Container
from robosat_pink.container.redaction import redacted_tree
from robosat_pink.datasets import TilePairs
from robosat_pink.datasets.split import Split
from robosat_pink.training import leftovers, metrics
from robosat_pink.training.background_writer import Writer, snapshot
from robosat_pink.training.resume import ids_of, packed_ids
from robosat_pink.training.state import State

log = logging.getLogger(__name__)


class NoResults:
    """Of a process that leaves none, for the first one leaves them."""

    def begin(self, state: State) -> None: ...

    def relist(self, tiles: TilePairs, split: Split) -> None: ...

    def save(self, state: State) -> None: ...

    def save_epoch(self, state: State) -> None: ...

    def save_stopped(self, state: State, reason: str) -> None: ...

    def complete(self, state: State) -> None: ...

    def finish(self, state: State, holdout: dict[str, Any] | None) -> None: ...


class Results:
    def __init__(
        self,
        container: Container,
        config: Config,
        tiles: TilePairs,
        split: Split,
        writer: Writer,
        points: ResumePoints | None,
        upsampling: str | int,
    ) -> None:
        """`points` is where resume points go, `upsampling` the form of convolutions that the run goes on with."""
        self.writer = writer
        self.container, self.model, self.checkpoints = container, container.model, container.checkpoints
        self.config, self.tiles, self.split = config, tiles, split
        self._points, self._upsampling = points, upsampling
        self._best_written = 0  # of which epoch
        self._is_complete = False
        self._copied_s, self._copies = 0.0, 0
        self.metadata = {
            "version": version("robosat_pink"),
            "config": redacted_tree(to_tree(config)),
            "bands": [band for channel in config.channels for band in channel.bands],
            "scale": [channel.scale for channel in config.channels],
            "classes": [
                {"name": each.name, "color": each.color, "values": list(values)}
                for each, values in zip(config.classes, class_values(config.classes), strict=True)
            ],
            "data_digest": tiles.digest(),
        }

    def begin(self, state: State) -> None:
        """What is known before the first step, without an earlier run's results, unless this one goes on with it.

        Raises ContractError where there is no room for what will follow.
        """
        self._check_room(state)
        if not state.is_resumed:
            leftovers.put_aside(self.container, self.config)
        self._write_names()
        self._write("config.yml", yaml.safe_dump(self.metadata["config"], sort_keys=False, allow_unicode=True))

    def relist(self, tiles: TilePairs, split: Split) -> None:
        """The tiles are others from here on."""
        self.writer.wait()
        self.tiles, self.split = tiles, split
        self.metadata["data_digest"] = tiles.digest()
        self._write_names()

    def _write_names(self) -> None:
        ids = ids_of(self.tiles, self.split)
        self._ids = packed_ids(ids)
        files = {"train": "train_ids.txt", "val": "test_ids.txt", "holdout": "holdout_ids.txt"}
        for part, lines in ids.items():
            if lines or part != "holdout":
                self._write(files[part], "".join(f"{line}\n" for line in lines))
            else:
                (self.model / files[part]).unlink(missing_ok=True)  # an earlier run's

    def _check_room(self, state: State) -> None:
        """A checkpoint is three times the weights, Adam's means with them; a resume point holds the best ones too."""
        weights = sum(each.nbytes for each in state.model.state_dict().values())
        hardware.check_disk(self.model, 7 * weights, "the last checkpoint, the next one and the best model")
        if self.checkpoints:
            hardware.check_disk(self.checkpoints, 12 * weights, "two resume points and the next one")

    def save_epoch(self, state: State) -> None:
        """After each epoch: the last weights, the best if they are new, the numbers, and a resume point last of all.

        In the background: training goes on meanwhile.
        """
        then = dataclasses.replace(state, history=list(state.history))
        content = self._snapshot(state)

        def write() -> None:
            checkpoint.save_epoch(self.model, then.epoch, self.config.model.epochs, self._weights(content))
            if then.best_epoch != self._best_written:
                self._save_best(then)
            self._write_numbers(then, holdout=None)
            self._save_resume_point(content)

        self.writer.begin(write)

    def save(self, state: State) -> None:
        """Within an epoch: a resume point, in the background."""
        content = self._snapshot(state)
        self.writer.begin(lambda: self._save_resume_point(content))

    def save_stopped(self, state: State, reason: str) -> None:
        """When the run is stopped: a resume point; and a model to look at, if the folder has none."""
        self.writer.wait()
        if (state.epoch or state.step) and not self._is_complete:  # then the last epoch's point serves
            self._save_resume_point(state.to_content())
        if state.epoch or state.step:
            self._fill_model(state)
        log.info("stopped %s after %d epochs and %d steps", reason, state.epoch, state.step)

    def _snapshot(self, state: State) -> dict[str, Any]:
        """The state as it is now. Copying it is all that a save costs the loop."""
        started = time.monotonic()
        content = state.to_content()
        best = content.pop("best_state_dict")  # replaced, never changed
        copy: dict[str, Any] = snapshot(content)
        self._copied_s += time.monotonic() - started
        self._copies += 1
        return copy | {"best_state_dict": best}

    def _save_resume_point(self, content: Mapping[str, Any]) -> None:
        if self._points:
            whole = {**content, "metadata": self.metadata, "ids": self._ids, "upsampling": self._upsampling}
            self._points.save(content["epoch"], content["step"], whole)

    def complete(self, state: State) -> None:
        """After the last epoch: a resume with nothing left to train finds an empty model folder, and fills it."""
        self.writer.wait()
        self._is_complete = True
        self._fill_model(state)
        epochs = self.config.model.epochs
        if not (self.model / checkpoint.epoch_name(state.epoch, epochs)).exists():  # of a run that was to be longer
            checkpoint.save_epoch(self.model, state.epoch, epochs, self._weights(state.to_content()))

    def _fill_model(self, state: State) -> None:
        """What an earlier attempt has left in another container's folder, or has not come to."""
        content = self._weights(state.to_content())
        if not (self.model / "best.pth").exists():
            if state.best_weights:
                self._save_best(state)
            else:
                checkpoint.save(self.model / "best.pth", content)
        if not any(checkpoint.EPOCH_FILE.fullmatch(path.name) for path in self.model.iterdir()):
            checkpoint.save_epoch(self.model, state.epoch, self.config.model.epochs, content)
        if state.history and not (self.model / "metrics.json").exists():
            self._write_numbers(state, holdout=None)

    def finish(self, state: State, holdout: dict[str, Any] | None) -> None:
        """The numbers of the whole run."""
        self._write_numbers(state, holdout)
        log.info("saving has kept the training waiting for %.2f s in %d saves", self._copied_s, self._copies)

    def _weights(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Of a state's content, what a checkpoint holds."""
        return {name: content[name] for name in ("epoch", "state_dict", "optimizer")} | {"metadata": self.metadata}

    def _save_best(self, state: State) -> None:
        content = {"epoch": state.best_epoch, "state_dict": state.best_weights, "metadata": self.metadata}
        checkpoint.save(self.model / "best.pth", content)
        self._best_written = state.best_epoch

    def _write_numbers(self, state: State, holdout: dict[str, Any] | None) -> None:
        last = state.history[-1]
        summary = {
            "epoch": state.epoch,
            "best_epoch": state.best_epoch,
            "train": _scores(last["train"]),
            "val": _scores(last["val"]),
            "holdout": _scores(holdout) if holdout else None,
        }
        self._write("metrics.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
        table = io.StringIO()
        rows = [_row(row) for row in state.history]
        writer = csv.DictWriter(table, fieldnames=rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._write("history.csv", table.getvalue())

    def _write(self, name: str, text: str) -> None:
        write_atomically(Path(self.model / name), lambda file: file.write(text.encode()))


def _scores(values: Mapping[str, Any]) -> dict[str, Any]:
    return metrics.as_json({name: values[name] for name in (*metrics.NAMES, "per_class")})


def _row(epoch: Mapping[str, Any]) -> dict[str, Any]:
    """A line of history.csv: epoch, lr, then each phase's metrics, tiles and seconds."""
    row = {"epoch": epoch["epoch"], "lr": epoch["lr"]}
    for phase in ("train", "val"):
        row |= {f"{phase}_{name}": epoch[phase][name] for name in (*metrics.NAMES, "tiles", "empty", "seconds")}
    return row
