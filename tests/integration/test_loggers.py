"""A run with a logger: its events are the numbers of history.csv. Without one, nothing of the extra is needed."""

import contextlib
import csv
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import SMALL_DATASET, write_job
from robosat_pink.train import main
from robosat_pink.training import metrics

EXPERIMENT: dict[str, Any] = {
    "dataset": SMALL_DATASET | {"split": {"test_percent": 0.2}},
    "classes": [{"name": "snow", "color": "white"}],
    "channels": [{"bands": [4, 3, 1], "scale": 10000}],
    "model": {"name": "unet", "num_filters": 2, "pixel_steps": 0, "tile_size": 64, "lr": 0.01, "epochs": 1},
    "runtime": {"workers": 0},
}
WITH_LOGGER = 'runtime.loggers=["tensorboard"]'


@contextlib.contextmanager
def without_extra() -> Iterator[None]:
    """As if the package were not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorboard", None)
        for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
            patch.delitem(sys.modules, name)
        yield


def logged(reader: EventAccumulator, tag: str) -> dict[int, float]:
    """The values of a tag by epoch; each epoch is logged once."""
    events = reader.Scalars(tag) if tag in reader.Tags()["scalars"] else []
    assert len({event.step for event in events}) == len(events)
    return {event.step: event.value for event in events}


def defined(values: dict[int, float | None]) -> dict[int, float]:
    return {epoch: value for epoch, value in values.items() if value is not None and not math.isnan(value)}


@pytest.fixture
def job(opt_ml: Path) -> Path:
    return write_job(opt_ml, EXPERIMENT, tiles=4)


def test_missing_extra_is_told_before_anything_is_read(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = str(job / "input/data/config/experiment.yml")
    for arguments in ([WITH_LOGGER], ["--check", experiment, WITH_LOGGER]):
        with without_extra():
            assert main(arguments) == 5
        log = capsys.readouterr().out
        assert 'error: runtime.loggers = ["tensorboard"]: the package tensorboard is missing; leave it out, ' in log
        assert "pairs: " not in log


def test_run_without_a_logger_misses_nothing_and_one_that_resumes_it_with_tensorboard_has_its_epochs(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with without_extra():
        assert main([]) == 0
        assert "torch.utils.tensorboard" not in sys.modules
    assert "runtime.loggers:" not in capsys.readouterr().out
    assert not (job / "output/tensorboard").exists()

    assert main([WITH_LOGGER, "model.epochs=2"]) == 0
    reader = EventAccumulator(str(job / "output/tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    with (job / "model/history.csv").open() as file:
        rows = list(csv.DictReader(file))
    numbers = json.loads((job / "model/metrics.json").read_text())
    tags = reader.Tags()["scalars"]
    for name in metrics.NAMES:
        for phase in ("train", "val"):
            written = {int(row["epoch"]): float(row[f"{phase}_{name}"]) for row in rows}
            assert logged(reader, f"{phase}/{name}") == pytest.approx(defined(written), rel=1e-6)
        held_out = {numbers["best_epoch"]: numbers["holdout"][name]}
        assert logged(reader, f"holdout/{name}") == pytest.approx(defined(held_out), rel=1e-6)
    in_log = {"lr", "tiles", "empty", "seconds", "tiles_per_s", "waited", "requests", "retries", "megabytes", "cached"}
    assert {tag.removeprefix("train/") for tag in tags if tag.startswith("train/")} == {*metrics.NAMES, *in_log}
    [text] = reader.Tensors("experiment/text_summary")
    assert yaml.safe_load(text.tensor_proto.string_val[0])["runtime"]["loggers"] == ["tensorboard"]
    pictures = {path.stem for path in (job / "output/data/tiles").glob("worst-*.png")}
    assert pictures
    assert set(reader.Tags()["images"]) == {f"tiles/{name}" for name in pictures}
