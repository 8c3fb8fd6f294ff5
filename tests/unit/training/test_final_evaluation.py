"""What the evaluation of the best weights adds to a run's files, and what is said if it is stopped."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robosat_pink import checkpoint, train
from robosat_pink.container.stop_request import Stopped
from robosat_pink.training import final_evaluation, metrics, outputs
from robosat_pink.training.thresholds import Threshold


def files(folder: Path) -> Path:
    checkpoint.save(folder / "best.pth", {"epoch": 2, "state_dict": {"a": torch.ones(1)}, "metadata": {}})
    (folder / "metrics.json").write_text(json.dumps({"epoch": 3, "val": {"iou": 1 / 3}, "best": None}))
    return folder


def test_numbers_are_added_to_the_files_and_nothing_else_changes(tmp_path: Path) -> None:
    numbers = {"val": metrics.scores(np.array([[5, 0], [5, 0]]), ["snow"], 0.5) | {"intervals": {"iou": None}}}
    outputs.add_best(files(tmp_path), 2, Threshold(0.25, 0.75, 0.5), numbers)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert {name: written[name] for name in ("epoch", "val")} == {"epoch": 3, "val": {"iou": 1 / 3}}
    best = written["best"]
    assert (best["epoch"], best["holdout"]) == (2, None)
    assert best["threshold"] == {"value": 0.25, "val_iou": 0.75, "val_iou_at_0.5": 0.5}
    assert (best["val"]["precision"], best["val"]["recall"], best["val"]["intervals"]) == (None, 0.0, {"iou": None})
    content = checkpoint.load(tmp_path / "best.pth")
    assert content == {"epoch": 2, "state_dict": {"a": torch.ones(1)}, "metadata": {}, "threshold": best["threshold"]}


def test_without_a_threshold_the_checkpoint_stays_as_it_is(tmp_path: Path) -> None:
    before = (files(tmp_path) / "best.pth").read_bytes()
    outputs.add_best(tmp_path, 2, None, {"val": {"loss": math.nan}})
    assert (tmp_path / "best.pth").read_bytes() == before
    assert json.loads((tmp_path / "metrics.json").read_text())["best"] == {
        "epoch": 2,
        "threshold": None,
        "val": {"loss": None},
        "holdout": None,
    }


def test_signal_during_the_evaluation_ends_the_run_well(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stopped(*_: object) -> None:
        raise Stopped

    monkeypatch.setattr(final_evaluation, "evaluate_best", stopped)
    nothing: Any = None
    with caplog.at_level(logging.WARNING):
        train.evaluate_and_report(nothing, nothing, nothing)
    assert caplog.messages == [
        "warning: stopped by a signal before the report was made; model and metrics are complete"
    ]
