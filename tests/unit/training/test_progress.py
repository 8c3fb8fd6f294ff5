"""How far a run is: the bar, the lines, and when it will have ended."""

import logging
import re
from collections.abc import Iterator
from itertools import repeat
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from robosat_pink.datasets.batch import NO_TILES
from robosat_pink.distributed.process_group import World
from robosat_pink.training import metrics, progress
from robosat_pink.training.phase_metrics import PhaseMetrics


def row(epoch: int, iou: float, seconds: float = 30.0) -> dict[str, Any]:
    return {"epoch": epoch, "train": {"seconds": seconds - 10}, "val": {"seconds": 10.0, "iou": iou}}


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(progress.time, "time", lambda: 1_800_000_000 + self.now)  # 2027-01-15 08:00 UTC


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_new_best_is_marked_and_the_end_estimated_from_the_epochs_so_far(clock: Clock) -> None:
    history = [row(1, 0.5), row(2, 0.6, seconds=40), row(3, 0.7, seconds=3000)]
    assert (
        progress.epoch_line(history, 12, 3)
        == "epoch 3 of 12: new best, val IoU 0.7000; 6 min 00 s left, until 08:06 UTC"
    )
    history.append(row(4, 0.65))
    told = progress.epoch_line(history, 12, 3)
    assert told.startswith("epoch 4 of 12: best so far, val IoU 0.7000 of epoch 3; ")
    assert progress.epoch_line(history, 4, 3) == "epoch 4 of 4: best so far, val IoU 0.7000 of epoch 3"


def test_line_of_an_epoch_is_taken_for_no_metric(clock: Clock) -> None:
    told = progress.epoch_line([row(1, 0.5)], 2, 1)
    assert [each["Name"] for each in metrics.definitions() if re.search(each["Regex"], told)] == []


def test_long_phase_tells_once_a_minute_where_it_is(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for _ in progress.lines(iter("abcdefghij"), 10, "epoch 1 train"):
        clock.now += 25
    assert caplog.messages == [
        "epoch 1 train: 3 of 10 batches, 2 min 55 s left, until 08:04 UTC",
        "epoch 1 train: 6 of 10 batches, 1 min 40 s left, until 08:04 UTC",
        "epoch 1 train: 9 of 10 batches, 25.0 s left, until 08:04 UTC",
    ]


def test_resumed_phase_counts_earlier_batches_and_its_own_time_only(
    clock: Clock, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    for show in (progress.lines, progress.bar):
        for _ in show(iter(["tile"] * 10), 100, "epoch 1 train", first=90):
            clock.now += 30
    assert caplog.messages == [
        "epoch 1 train: 92 of 100 batches, 4 min 00 s left, until 08:05 UTC",
        "epoch 1 train: 94 of 100 batches, 3 min 00 s left, until 08:05 UTC",
        "epoch 1 train: 96 of 100 batches, 2 min 00 s left, until 08:05 UTC",
        "epoch 1 train: 98 of 100 batches, 1 min 00 s left, until 08:05 UTC",
    ]
    assert "90%|" in capsys.readouterr().err


class Metrics:
    """Of a phase whose first steps compile for some seconds."""

    def __init__(self, compiled: int = 0) -> None:
        self.compiled, self.is_compiling = compiled, False

    def timed(self, batches: int) -> Iterator[list[int]]:
        for number in range(batches):
            self.is_compiling = number < self.compiled
            yield [1] * 8

    def current(self) -> tuple[float, float]:
        return 0.25, 0.75


def test_bar_shows_loss_iou_tiles_and_time_left_and_passes_everything_on(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    metrics = Metrics()
    for batch in progress.bar(metrics.timed(5), 5, "epoch 1 train", metrics):
        seen.append(len(batch))
        clock.now += 30
    assert seen == [8] * 5
    shown = capsys.readouterr().err
    assert "epoch 1 train" in shown
    assert "1/5, loss=0.2500, IoU=0.7500, tiles/s=0.3, 2 min 00 s left" in shown


def test_bar_says_that_it_compiles_and_counts_no_such_step(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics(compiled=2)
    shown = []
    for _ in progress.bar(metrics.timed(6), 6, "epoch 1 train", metrics):
        shown.append(capsys.readouterr().err.rpartition("\r")[2].rstrip())
        clock.now += 500 if metrics.is_compiling else 2
    assert [line.partition(" ")[2].partition(", ")[2] for line in shown] == [
        "compiling the network",
        "compiling the network",
        "",
        *(f"loss=0.2500, IoU=0.7500, tiles/s=4.0, {left}.0 s left" for left in (6, 4, 2)),
    ]


def test_lines_say_how_long_compiling_took_and_estimate_without_it(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    metrics = Metrics(compiled=1)
    for _ in progress.lines(metrics.timed(6), 6, "epoch 1 train", metrics):
        clock.now += 185 if metrics.is_compiling else 30
    assert caplog.messages == [
        "epoch 1 train: the step that compiled the network took 3 min 05 s, with the wait for its tiles",
        "epoch 1 train: 3 of 6 batches, 1 min 30 s left, until 08:05 UTC",
        "epoch 1 train: 5 of 6 batches, 30.0 s left, until 08:05 UTC",
    ]


def test_end_of_the_run_is_estimated_without_the_time_of_compiling(clock: Clock) -> None:
    compiled = row(1, 0.5, seconds=130)
    compiled["train"]["compile_s"] = 100.0
    assert progress.epoch_line([compiled], 3, 1).endswith("; 1 min 00 s left, until 08:01 UTC")


def test_seconds_of_steps_that_compile_are_kept_with_the_metrics_and_not_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock(monkeypatch)  # of `phase_metrics`, too: both have the one module `time`
    config = SimpleNamespace(num_classes=1, classes=[SimpleNamespace(name="snow")], model=SimpleNamespace(epochs=1))
    kept = []
    for compiled in (0, 2):
        phase_metrics = PhaseMetrics(config, torch.device("cpu"), "val", 1, 4)  # type: ignore[arg-type]
        compiles = [True] * compiled + [False] * 4
        for _ in phase_metrics.timed(repeat(NO_TILES, 4), lambda batch, left=compiles: left.pop(0)):
            clock.now += 100 if phase_metrics.is_compiling else 1
            phase_metrics.sums += torch.tensor([0.5, 1.0])
        kept.append(phase_metrics.finish(World()))
    assert "compile_s" not in kept[0]
    assert kept[1]["compile_s"] == 200
    assert "compile" not in caplog.text
