"""How far a run is: the bar, the lines, and when it will have ended."""

import logging
import re
from typing import Any

import pytest

from robosat_pink.training import metrics, progress


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


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.42, "0.4 s"),
        (59.9, "59.9 s"),
        (60, "1 min 00 s"),
        (605, "10 min 05 s"),
        (5399, "1 h 29 min"),
        (36000, "10 h 00 min"),
    ],
)
def test_duration_has_two_units(seconds: float, words: str) -> None:
    assert progress.duration(seconds) == words


def test_end_on_another_day_has_its_date(clock: Clock) -> None:
    assert progress.clock(3600) == "09:00 UTC"
    assert progress.clock(20 * 3600) == "2027-01-16 04:00 UTC"


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


def test_bar_shows_loss_iou_and_tiles_and_passes_everything_on(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    class PhaseMetrics:
        def current(self) -> tuple[float, float]:
            return 0.25, 0.75

    seen = []
    for batch in progress.bar(iter([[1] * 8] * 5), 5, "epoch 1 train", PhaseMetrics()):
        seen.append(len(batch))
        clock.now += 2
    assert seen == [8] * 5
    shown = capsys.readouterr().err
    assert "epoch 1 train" in shown
    assert "loss=0.2500, IoU=0.7500, tiles/s=4.0" in shown
