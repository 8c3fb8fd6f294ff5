"""What a run leaves in /opt/ml/model and /opt/ml/checkpoints, each file whole or not there."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from robosat_pink import checkpoint, machine, metrics
from robosat_pink.checkpoint import ResumePoint, Writer
from robosat_pink.config import Config, class_values, to_tree
from robosat_pink.container import Container
from robosat_pink.datasets import TilePairs
from robosat_pink.errors import CheckpointError
from robosat_pink.files import write_atomically
from robosat_pink.loop import State
from robosat_pink.tiles import Split

log = logging.getLogger(__name__)

FREE_TO_CHANGE = (  # between stop and resume
    *("model.epochs", "runtime."),
    *("dataset.cache.", "dataset.aws_profile", "dataset.verify_md5", "dataset.if_changed"),
)


def with_scales_settled(config: Config, content: Mapping[str, Any] | None) -> Config:
    """The experiment with every channel's `scale` spelt out, given the content of what it starts from, if anything.

    Digital numbers as they were is what weights without our metadata have learnt from; those with it say.
    """
    metadata = checkpoint.metadata_of(content) if content is not None else {}
    known: list[Any] = metadata.get("scale", [])
    channels = []
    for number, channel in enumerate(config.channels):
        scale = channel.scale
        if scale is None and content is not None and not metadata:
            scale = "raw"
            log.warning(
                "warning: %s does not say how its images were scaled: feeding digital numbers as they are, without "
                "mean and std, as planet-snowcover did; set channels.%d.scale to have it otherwise",
                *(config.checkpoint.path, number),
            )
        elif scale is None:
            scale = known[number] if number < len(known) else "auto"
        elif number < len(known) and scale != known[number]:
            log.warning(
                "warning: channels.%d.scale = %s, but the weights to start from learnt with %s",
                number,
                scale,
                known[number],
            )
        channels.append(dataclasses.replace(channel, scale=scale))
    return dataclasses.replace(config, channels=tuple(channels))


class Results:
    def __init__(
        self, container: Container, config: Config, tiles: TilePairs, split: Split, version: str, writer: Writer
    ) -> None:
        self.writer = writer
        self.model, self.checkpoints = container.model, container.checkpoints
        self.config, self.tiles, self.split = config, tiles, split
        self.metadata = {
            "version": version,
            "config": to_tree(config),
            "bands": [band for channel in config.channels for band in channel.bands],
            "scale": [channel.scale for channel in config.channels],
            "classes": [
                {"name": each.name, "color": each.color, "values": list(values)}
                for each, values in zip(config.classes, class_values(config.classes), strict=True)
            ],
            "data_digest": tiles.digest(),
        }

    def resume(self, state: State, point: ResumePoint) -> None:
        """Continue from a resume point; CheckpointError if it is of another experiment."""
        path, content = point
        before, now = _flat(content["metadata"]["config"]), _flat(self.metadata["config"])
        differing = [
            f"{key} = {json.dumps(now.get(key))}, there {json.dumps(before.get(key))}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not key.startswith(FREE_TO_CHANGE)
        ]
        if differing:
            raise CheckpointError(
                f"{path} is of another experiment: {'; '.join(differing)}. Restore these keys to continue it, or give "
                "this run an empty checkpoints folder"
            )
        if content["epoch"] > self.config.model.epochs:
            raise CheckpointError(
                f"{path} has {content['epoch']} epochs behind it, model.epochs = {self.config.model.epochs}; ask for "
                "as many or more, or give this run an empty checkpoints folder"
            )
        # What a folder tells of its files changes with every copy.
        is_remote = self.tiles.image_location.bucket is not None
        state.restore(content)
        if is_remote and content["metadata"]["data_digest"] != self.metadata["data_digest"]:
            log.warning("warning: the tiles have changed since %s was written; continuing with today's", path.name)
            state.begin_epoch_anew()
        log.info("continuing from %s: %d epochs and %d steps are done", path, state.epoch, state.step)

    def begin(self, state: State) -> None:
        """What is known before the first step. Raises ContractError where there is no room for what will follow."""
        self._check_room(state)
        self._write_names()
        self._write("config.yml", yaml.safe_dump(to_tree(self.config), sort_keys=False, allow_unicode=True))

    def list_anew(self, tiles: TilePairs, split: Split) -> None:
        """The tiles are others from here on."""
        self.writer.wait()
        self.tiles, self.split = tiles, split
        self.metadata["data_digest"] = tiles.digest()
        self._write_names()

    def _write_names(self) -> None:
        parts = {
            "train_ids.txt": self.split.train,
            "test_ids.txt": self.split.val,
            "holdout_ids.txt": self.split.holdout,
        }
        for name, rows in parts.items():
            if len(rows) or name != "holdout_ids.txt":
                self._write(name, "".join(f"{self.tiles.id(row)}\n" for row in rows))
            else:
                (self.model / name).unlink(missing_ok=True)  # an earlier run's

    def _check_room(self, state: State) -> None:
        """A checkpoint is three times the weights, Adam's means with them; a resume point holds the best ones too."""
        weights = sum(each.nbytes for each in state.model.state_dict().values())
        machine.check_disk(self.model, 7 * weights, "the last checkpoint, the next one and the best model")
        if self.checkpoints:
            machine.check_disk(self.checkpoints, 12 * weights, "two resume points and the next one")

    def save_epoch(self, state: State, is_best: bool) -> None:
        """After each epoch: the last weights, the best if these are, the numbers, and a resume point last of all.

        In the background: training goes on meanwhile.
        """
        then = dataclasses.replace(state, history=list(state.history))
        content = checkpoint.snapshot(state.to_content())

        def write() -> None:
            checkpoint.save_epoch(self.model, then.epoch, self.config.model.epochs, self._weights(content))
            if is_best:
                self._save_best(then)
            self._write_numbers(then, holdout=None)
            self._save_resume_point(content)

        self.writer.begin(write)

    def save_stopped(self, state: State) -> None:
        """When a stop was requested: a resume point; and a model to look at, if no epoch has left one yet."""
        self.writer.wait()
        content = state.to_content()
        if state.epoch == 0 and state.step:
            checkpoint.save_epoch(self.model, 0, self.config.model.epochs, self._weights(content))
            checkpoint.save(self.model / "best.pth", self._weights(content))
        is_fitted = state.epoch >= self.config.model.epochs  # then the last epoch's point serves
        if (state.epoch or state.step) and not is_fitted:
            self._save_resume_point(content)
        log.info("stopped by a signal after %d epochs and %d steps", state.epoch, state.step)

    def _save_resume_point(self, content: Mapping[str, Any]) -> None:
        if self.checkpoints:
            whole = {**content, "metadata": self.metadata}
            checkpoint.save_resume_point(self.checkpoints, content["epoch"], content["step"], whole)

    def complete(self, state: State) -> None:
        """After the last epoch: a resume with nothing left to train finds an empty model folder, and fills it."""
        self.writer.wait()
        if not (self.model / "best.pth").exists():
            self._save_best(state)
        if not any(checkpoint.EPOCH_FILE.fullmatch(path.name) for path in self.model.iterdir()):
            checkpoint.save_epoch(self.model, state.epoch, self.config.model.epochs, self._weights(state.to_content()))

    def finish(self, state: State, holdout: dict[str, Any] | None) -> None:
        """The numbers of the whole run."""
        self._write_numbers(state, holdout)

    def _weights(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Of a state's content, what a checkpoint holds."""
        return {name: content[name] for name in ("epoch", "state_dict", "optimizer")} | {"metadata": self.metadata}

    def _save_best(self, state: State) -> None:
        content = {"epoch": state.best_epoch, "state_dict": state.best_weights, "metadata": self.metadata}
        checkpoint.save(self.model / "best.pth", content)

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


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values."""
    entries = enumerate(tree) if isinstance(tree, list) else tree.items() if isinstance(tree, dict) else None
    if entries is None:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for name, value in entries:
        flat |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return flat
