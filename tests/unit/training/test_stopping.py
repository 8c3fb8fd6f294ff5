"""When a run stops and when it saves."""

import time
from typing import Any

import pytest

from robosat_pink.container.stop_request import Stopped, StopRequest
from robosat_pink.distributed.process_group import World
from robosat_pink.training import stopping
from robosat_pink.training.background_writer import Writer
from robosat_pink.training.stopping import Due, Watch


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(stopping, "time", self)

    def monotonic(self) -> float:
        return self.now


class Others(World):
    """Another process that asks for these."""

    def __init__(self, stops: int, saves: int) -> None:
        super().__init__()
        self.asked = stops, 0, saves

    def total(self, *numbers: int) -> tuple[int, ...]:
        return tuple(number + other for number, other in zip(numbers, self.asked, strict=True))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def watching(world: World | None = None, **settings: Any) -> tuple[Watch, StopRequest]:
    stop = StopRequest()
    return Watch(world or World(), stop, Writer(), settings.get("every"), settings.get("most")), stop


def test_a_save_is_due_again_and_again_after_the_interval(clock: Clock) -> None:
    ask, _ = watching(every=600.0)
    found = []
    for clock.now in (1000, 1599, 1600, 1601, 2199, 2201):
        found.append(ask().save)
    assert found == [False, False, True, False, False, True]


def test_without_a_folder_for_resume_points_no_save_is_due(clock: Clock) -> None:
    ask, _ = watching()
    clock.now += 1e6
    assert ask() == Due(None, save=False)


def test_no_save_is_due_while_the_one_before_is_written(clock: Clock) -> None:
    ask, _ = watching(every=10.0)
    writer = ask._writer
    writer.begin(lambda: time.sleep(0.3))
    clock.now += 11
    assert not ask().save
    writer.wait()
    assert ask().save


def test_time_that_is_over_stops_the_run_and_says_so(clock: Clock) -> None:
    ask, _ = watching(most=30.0)
    clock.now += 29
    assert ask().stop is None
    clock.now += 1
    assert ask().stop == "because runtime.max_seconds = 30 are over"


def test_signal_stops_the_run(clock: Clock) -> None:
    ask, stop = watching()
    stop.requested = True
    assert ask().stop == "by a signal"
    with pytest.raises(Stopped):
        ask.interrupt()


def test_what_one_process_wants_all_do(clock: Clock) -> None:
    assert watching(Others(1, 0))[0]() == Due("by a signal", save=False)
    assert watching(Others(0, 1))[0]() == Due(None, save=True)


def test_what_went_wrong_in_the_background_is_raised(clock: Clock) -> None:
    ask, _ = watching()

    def fail() -> None:
        raise ValueError("the disk")

    ask._writer.begin(fail)
    while ask._writer.is_busy():
        time.sleep(0.01)
    with pytest.raises(ValueError, match="the disk"):
        ask()
