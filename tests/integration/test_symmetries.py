"""A run with `model.symmetries`: its last numbers are averages, its epochs' are plain."""

import csv
import json
import re
from pathlib import Path

import pytest

from conftest import SMALL_DATASET, SMALL_MODEL, write_job
from robosat_pink.train import main

EXPERIMENT = {
    "dataset": SMALL_DATASET | {"split": {"test_percent": 0.2}},
    "classes": [{"name": "snow"}],
    "channels": [{"bands": [4, 3, 1], "scale": 10000}],
    "model": SMALL_MODEL | {"batch_size": 4, "epochs": 2},
    "runtime": {"workers": 0, "precision": "fp32"},
}


def history(job: Path) -> list[dict[str, str]]:
    with (job / "model/history.csv").open() as file:
        return [{key: value for key, value in row.items() if "seconds" not in key} for row in csv.DictReader(file)]


def test_epochs_learn_and_are_evaluated_as_without_and_the_end_is_averaged(
    opt_ml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(opt_ml, EXPERIMENT, tiles=4)
    assert main([]) == 0
    plain, plain_rows = json.loads((job / "model/metrics.json").read_text()), history(job)
    assert len(re.findall(r"phase=val", capsys.readouterr().out)) == 2

    assert main(["model.symmetries=true"]) == 0  # the resume point of the last epoch goes on with the key changed
    lines = re.findall(r"phase=val epoch=2 .* val_iou=(\S+)", capsys.readouterr().out)
    averaged = json.loads((job / "model/metrics.json").read_text())
    assert len(lines) == 1
    assert float(lines[0]) == pytest.approx(averaged["val"]["iou"], abs=1e-6)
    assert history(job) == plain_rows
    assert averaged["train"] == plain["train"]
    for split in ("val", "holdout"):
        assert averaged[split]["loss"] != plain[split]["loss"]
        assert averaged[split]["loss"] == pytest.approx(plain[split]["loss"], rel=0.5)
    assert "averages over the eight flips and rotations" in (job / "output/data/report.html").read_text()
