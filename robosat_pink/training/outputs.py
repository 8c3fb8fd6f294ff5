"""Writes a run's files in /opt/ml/model and /opt/ml/checkpoints, each atomically. Called by `run`."""

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

import numpy as np
import yaml

from robosat_pink import checkpoint
from robosat_pink.checkpoint import ResumePoints
from robosat_pink.config import Config, class_values, to_tree
from robosat_pink.container import hardware
from robosat_pink.container.atomic_write import write_atomically
from robosat_pink.container.contract import Container
from robosat_pink.container.quantities import count, duration
from robosat_pink.container.redaction import redacted_tree
from robosat_pink.datasets import TilePairs
from robosat_pink.datasets.earlier_split import HOLDOUT_IDS, TRAIN_IDS, VAL_IDS
from robosat_pink.datasets.split import Split
from robosat_pink.training import earlier_results, metrics, tile_ids
from robosat_pink.training.background_writer import BackgroundWriter, snapshot
from robosat_pink.training.loggers import Loggers
from robosat_pink.training.state import State
from robosat_pink.training.thresholds import Threshold

log = logging.getLogger(__name__)

ID_FILES = {"train": TRAIN_IDS, "val": VAL_IDS, "holdout": HOLDOUT_IDS}


class NoOutputs:
    """The outputs of ranks other than 0, which write nothing."""

    loggers = Loggers()

    def begin(self, state: State) -> None: ...

    def replace_tiles(self, tiles: TilePairs, split: Split) -> None: ...

    def save(self, state: State) -> None: ...

    def save_epoch(self, state: State) -> None: ...

    def save_stopped(self, state: State, reason: str) -> None: ...

    def fill_model_folder(self, state: State) -> None: ...

    def write_final_metrics(self, state: State, val: dict[str, Any] | None, holdout: dict[str, Any] | None) -> None: ...


class Outputs(NoOutputs):
    """The outputs of rank 0, which writes all files."""

    def __init__(
        self,
        container: Container,
        config: Config,
        tiles: TilePairs,
        split: Split,
        writer: BackgroundWriter,
        points: ResumePoints | None,
        upsampling: str | int,
    ) -> None:
        """`upsampling` goes into the resume points, so that a resumed run uses the same form."""
        self.writer = writer
        self.container, self.model, self.checkpoints = container, container.model, container.checkpoints
        self.config, self.tiles, self.split = config, tiles, split
        self.loggers = Loggers(config.runtime.loggers)
        self._points, self._upsampling = points, upsampling
        self._epoch_of_best_file = 0
        self._is_complete = False
        self._copied_s, self._copies = 0.0, 0
        self.metadata = {
            "version": version("robosat_pink"),
            "config": redacted_tree(to_tree(config)),
            "bands": [band for channel in config.channels for band in channel.bands],
            "scale": [channel.scale for channel in config.channels],
            "classes": [
                {"name": class_.name, "color": class_.color, "values": list(values)}
                for class_, values in zip(config.classes, class_values(config.classes), strict=True)
            ],
            "zooms": np.unique(tiles.pairs.images.zxy[:, 0]).tolist(),
            "data_digest": tiles.digest(),
        }

    def begin(self, state: State) -> None:
        """Write tile ids and config.yml, open the loggers. Unless the run resumes, first move earlier results away.

        Raises ContractError if the disk has no room for the files to come.
        """
        self._check_disk(state)
        if not state.is_resumed:
            earlier_results.move_away(self.container, self.config)
        self._write_ids()
        self._write("config.yml", as_yaml(self.config))
        self.loggers.begin(self.container, state, as_yaml(self.config))

    def replace_tiles(self, tiles: TilePairs, split: Split) -> None:
        """Use the tiles and split of a new listing from now on."""
        self.writer.wait()
        self.tiles, self.split = tiles, split
        self.metadata["data_digest"] = tiles.digest()
        self._write_ids()

    def save_epoch(self, state: State) -> None:
        """After each epoch, log it, then write last and best weights, metrics and a resume point in the background."""
        self.loggers.epoch(state.history[-1])  # before the resume point: what that has, the loggers have
        state_now = dataclasses.replace(state, history=list(state.history))
        content = self._snapshot(state)

        def write() -> None:
            checkpoint.save_epoch(self.model, state_now.epoch, self.config.model.epochs, self._weights(content))
            if state_now.best_epoch != self._epoch_of_best_file:
                self._save_best(state_now)
            self._write_metrics(state_now, holdout=None)
            self._save_resume_point(content)

        self.writer.submit(write)

    def save(self, state: State) -> None:
        """Within an epoch, write a resume point in the background."""
        content = self._snapshot(state)
        self.writer.submit(lambda: self._save_resume_point(content))

    def save_stopped(self, state: State, reason: str) -> None:
        """When the run is stopped, write a resume point, and a model if the folder has none."""
        self.writer.wait()
        has_trained = bool(state.epoch or state.step)
        if has_trained and not self._is_complete:  # a complete run has the last epoch's point
            self._save_resume_point(state.to_content())
        if has_trained:
            self._fill_model_folder(state)
        log.info("stopped %s after %s and %s", reason, count(state.epoch, "epoch"), count(state.step, "step"))

    def fill_model_folder(self, state: State) -> None:
        """After the last epoch, fill the model folder: it is empty if the run resumed with no epoch left."""
        self.writer.wait()
        self._is_complete = True
        if state.best_weights and self._epoch_of_best_file != state.best_epoch:
            self._save_best(state)  # an earlier run's file may say model.symmetries otherwise
        self._fill_model_folder(state)
        epochs = self.config.model.epochs
        if not (self.model / checkpoint.epoch_name(state.epoch, epochs)).exists():  # model.epochs was larger before
            checkpoint.save_epoch(self.model, state.epoch, epochs, self._weights(state.to_content()))

    def write_final_metrics(self, state: State, val: dict[str, Any] | None, holdout: dict[str, Any] | None) -> None:
        """Write the metrics of the run. `val`: those with model.symmetries, `holdout`: those of held-out tiles."""
        self._write_metrics(state, holdout, val)
        if val:
            self.loggers.phase("val_symmetries", val, state.epoch)
        if holdout:
            self.loggers.phase("holdout", holdout, state.best_epoch)
        log.info("training waited %s for %s", duration(self._copied_s), count(self._copies, "save"))

    def _check_disk(self, state: State) -> None:
        """Raises ContractError if space is missing.

        A checkpoint with Adam's moments takes three times the weights, and once more with their average; a resume point
        also contains the best weights.
        """
        weights = sum(tensor.nbytes for tensor in state.model.state_dict().values())
        epoch = 4 if state.average else 3
        hardware.check_disk(
            self.model, (2 * epoch + 1) * weights, "the last checkpoint, the next one and the best model"
        )
        if self.checkpoints:
            hardware.check_disk(self.checkpoints, 3 * (epoch + 1) * weights, "two resume points and the next one")

    def _snapshot(self, state: State) -> dict[str, Any]:
        """A copy of the state's content: the only part of a save that training waits for."""
        started = time.monotonic()
        content = state.to_content()
        best_weights = content.pop("best_state_dict")  # replaced after an epoch, but never modified: needs no copy
        copied: dict[str, Any] = snapshot(content)
        self._copied_s += time.monotonic() - started
        self._copies += 1
        return copied | {"best_state_dict": best_weights}

    def _save_resume_point(self, content: Mapping[str, Any]) -> None:
        if self._points:
            extra = {"metadata": self.metadata, "ids": self._ids, "upsampling": self._upsampling}
            self._points.save(content["epoch"], content["step"], {**content, **extra})

    def _fill_model_folder(self, state: State) -> None:
        """Write the files that are missing, because the container is new or no epoch has finished yet."""
        content = self._weights(state.to_content())
        if not (self.model / "best.pth").exists():
            if state.best_weights:
                self._save_best(state)
            else:
                checkpoint.save(self.model / "best.pth", content)
                log.info("no epoch was evaluated: best.pth has the weights at the stop, of which nothing is known")
        if not any(checkpoint.EPOCH_FILE.fullmatch(path.name) for path in self.model.iterdir()):
            checkpoint.save_epoch(self.model, state.epoch, self.config.model.epochs, content)
        if state.history and not (self.model / "metrics.json").exists():
            self._write_metrics(state, holdout=None)

    def _weights(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """The content of a checkpoint with optimizer, from a state's content."""
        names = ("epoch", "state_dict", "optimizer", "trained_state_dict", "updates")
        return {name: content[name] for name in names if name in content} | {"metadata": self.metadata}

    def _save_best(self, state: State) -> None:
        content = {"epoch": state.best_epoch, "state_dict": state.best_weights, "metadata": self.metadata}
        checkpoint.save(self.model / "best.pth", content)
        self._epoch_of_best_file = state.best_epoch

    def _write_ids(self) -> None:
        ids_by_split = tile_ids.tile_ids(self.tiles, self.split)
        self._ids = tile_ids.compress(ids_by_split)
        for split, ids in ids_by_split.items():
            if ids or split != "holdout":
                self._write(ID_FILES[split], "".join(f"{id_}\n" for id_ in ids))
            else:
                (self.model / ID_FILES[split]).unlink(missing_ok=True)  # an earlier run's

    def _write_metrics(self, state: State, holdout: dict[str, Any] | None, val: dict[str, Any] | None = None) -> None:
        last = state.history[-1]
        summary = {
            "epoch": state.epoch,
            "best_epoch": state.best_epoch,
            "train": _scores(last["train"]),
            "val": _scores(val or last["val"]),
            "holdout": _scores(holdout) if holdout else None,
            "best": None,  # `add_best` fills it in
        }
        self._write("metrics.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
        table = io.StringIO()
        rows = [_csv_row(row) for row in state.history]
        writer = csv.DictWriter(table, fieldnames=rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._write("history.csv", table.getvalue())

    def _write(self, name: str, text: str) -> None:
        write_atomically(self.model / name, lambda file: file.write(text.encode()))


def as_yaml(config: Config) -> str:
    """The experiment as config.yml has it, without secrets."""
    text: str = yaml.safe_dump(redacted_tree(to_tree(config)), sort_keys=False, allow_unicode=True)
    return text


def add_best(model: Path, epoch: int, threshold: Threshold | None, numbers: Mapping[str, Any]) -> None:
    """Add the numbers of the best weights, by split, to metrics.json, and their threshold to best.pth, too."""
    chosen = None
    if threshold:
        chosen = {"value": threshold.value, "val_iou": threshold.iou, "val_iou_at_0.5": threshold.iou_at_half}
        checkpoint.save(model / "best.pth", checkpoint.load(model / "best.pth") | {"threshold": chosen})
    summary = json.loads((model / "metrics.json").read_text())
    by_split = {split: metrics.as_json(numbers[split]) if split in numbers else None for split in ("val", "holdout")}
    summary["best"] = {"epoch": epoch, "threshold": chosen} | by_split
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    write_atomically(model / "metrics.json", lambda file: file.write(text.encode()))


def _scores(values: Mapping[str, Any]) -> dict[str, Any]:
    return metrics.as_json({name: values[name] for name in (*metrics.NAMES, "per_class")})


def _csv_row(epoch: Mapping[str, Any]) -> dict[str, Any]:
    """A row of history.csv: epoch, lr, then each phase's metrics, tiles and seconds."""
    row = {"epoch": epoch["epoch"], "lr": epoch["lr"]}
    for phase in ("train", "val"):
        row |= {f"{phase}_{name}": epoch[phase][name] for name in (*metrics.NAMES, "tiles", "empty", "seconds")}
    return row
