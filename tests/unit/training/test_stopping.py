"""When a run stops and when it saves."""

import time
from typing import Any

import pytest

from robosat_pink.container.stop_request import Stopped, StopRequest
from robosat_pink.distributed.process_group import World
from robosat_pink.training import stopping
from robosat_pink.training.background_writer import BackgroundWriter
from robosat_pink.training.stopping import Decision, LoopControl


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(stopping, "time", self)

    def monotonic(self) -> float:
        return self.now


class TwoRanks(World):
    """With another rank that asks for these."""

    def __init__(self, stops: int, saves: int) -> None:
        super().__init__()
        self.asked = stops, 0, saves

    def sum_over_ranks(self, *numbers: int) -> tuple[int, ...]:
        return tuple(number + other for number, other in zip(numbers, self.asked, strict=True))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def control_of(world: World | None = None, **settings: Any) -> tuple[LoopControl, StopRequest]:
    stop = StopRequest()
    return LoopControl(world or World(), stop, BackgroundWriter(), settings.get("every"), settings.get("most")), stop


def test_a_save_is_due_again_and_again_after_the_interval(clock: Clock) -> None:
    control, _ = control_of(every=600.0)
    found = []
    for clock.now in (1000, 1599, 1600, 1601, 2199, 2201):
        found.append(control.after_step().should_save)
    assert found == [False, False, True, False, False, True]


def test_without_a_folder_for_resume_points_no_save_is_due(clock: Clock) -> None:
    control, _ = control_of()
    clock.now += 1e6
    assert control.after_step() == Decision(None, should_save=False)


def test_no_save_is_due_while_the_one_before_is_written(clock: Clock) -> None:
    control, _ = control_of(every=10.0)
    writer = control._writer
    writer.submit(lambda: time.sleep(0.3))
    clock.now += 11
    assert not control.after_step().should_save
    writer.wait()
    assert control.after_step().should_save


def test_time_that_is_over_stops_the_run_and_says_so(clock: Clock) -> None:
    control, _ = control_of(most=30.0)
    clock.now += 29
    assert control.after_step().stop_reason is None
    clock.now += 1
    assert control.after_step().stop_reason == "at runtime.max_seconds = 30"


def test_signal_stops_the_run(clock: Clock) -> None:
    control, stop = control_of()
    stop.requested = True
    assert control.after_step().stop_reason == "by a signal"
    with pytest.raises(Stopped):
        control.interrupt()


def test_all_ranks_do_what_one_asks_for(clock: Clock) -> None:
    assert control_of(TwoRanks(1, 0))[0].after_step() == Decision("by a signal", should_save=False)
    assert control_of(TwoRanks(0, 1))[0].after_step() == Decision(None, should_save=True)


def test_failure_in_the_background_is_raised(clock: Clock) -> None:
    control, _ = control_of()

    def fail() -> None:
        raise ValueError("the disk")

    control._writer.submit(fail)
    while control._writer.is_busy():
        time.sleep(0.01)
    with pytest.raises(ValueError, match="the disk"):
        control.after_step()
