"""Which rank waits for which at the end of a run. Here ranks are threads that share a store."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch.distributed as dist

from robosat_pink.container.contract import Container
from robosat_pink.container.stop_request import Stopped, StopRequest
from robosat_pink.distributed import heartbeat
from robosat_pink.distributed.heartbeat import Heartbeat
from robosat_pink.distributed.launcher import ProcessRank
from robosat_pink.errors import RobosatError

HOSTS = ("algo-1", "algo-2")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.1)


@pytest.fixture
def two(opt_ml: Path) -> Iterator[Callable[[float], list[Heartbeat]]]:
    """Two ranks that wait so long for each other."""
    container = Container(opt_ml)
    made: list[Heartbeat] = []
    stores: list[dist.TCPStore] = []

    def make(timeout_s: float) -> list[Heartbeat]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        connect = partial(dist.TCPStore, "127.0.0.1", port, 2, timeout=timedelta(seconds=20), wait_for_workers=False)
        stores.append(connect(is_master=True))
        stores.append(connect(is_master=False))
        with ThreadPoolExecutor(2) as pool:  # each waits for the other's name
            begin = [
                pool.submit(Heartbeat, stores[i], ProcessRank(i, 2), HOSTS[i], timeout_s, container) for i in (0, 1)
            ]
            made.extend(each.result() for each in begin)
        return made

    yield make
    for each in made:
        each.close()


class Ending(threading.Thread):
    """A rank at the end of its run."""

    def __init__(self, process: Heartbeat, error: BaseException | None = None) -> None:
        super().__init__(daemon=True)
        self.process, self.error, self.stop = process, error, StopRequest()
        self.raised: BaseException | None = None
        self.start()

    def run(self) -> None:
        self.raised = self.process.end(self.error, self.stop)

    def has_ended(self, seconds: float) -> bool:
        self.join(seconds)
        return not self.is_alive()


@pytest.mark.parametrize("error", [None, Stopped("because the time is over", is_agreed=True)], ids=["done", "stopped"])
def test_process_waits_for_the_end_of_rank_zero(
    two: Callable[[float], list[Heartbeat]], error: BaseException | None
) -> None:
    first, second = two(60)
    second.release()
    other = Ending(second, error)
    assert not other.has_ended(1)
    first.release()
    assert not other.has_ended(1)
    one = Ending(first, error)
    assert other.has_ended(20)
    assert one.has_ended(20)
    assert (one.raised, other.raised) == (error, error)


def test_stop_request_ends_the_wait_for_rank_zero(two: Callable[[float], list[Heartbeat]]) -> None:
    first, second = two(60)
    other = Ending(second)
    assert not other.has_ended(0.5)
    other.stop.requested = True
    assert other.has_ended(20)
    assert other.raised is None
    assert Ending(first).has_ended(20)


def test_failure_of_rank_zero_ends_the_wait_for_it(two: Callable[[float], list[Heartbeat]]) -> None:
    first, second = two(60)
    other = Ending(second)
    assert not other.has_ended(0.5)
    Ending(first, RobosatError("no room for metrics.json"))
    assert other.has_ended(20)
    assert str(other.raised) == "rank 0 on host algo-1 failed: no room for metrics.json"


def test_rank_zero_is_not_waited_for_beyond_the_timeout(
    two: Callable[[float], list[Heartbeat]], caplog: pytest.LogCaptureFixture
) -> None:
    _, second = two(2)
    began = time.monotonic()
    other = Ending(second)
    assert other.has_ended(30)
    assert time.monotonic() - began > 2
    assert other.raised is None
    assert "rank 0 has not ended within runtime.peer_timeout_s = 2" in caplog.text


@pytest.mark.slow
def test_rank_zero_continues_alone_when_the_others_vanish_after_the_work_is_done(
    two: Callable[[float], list[Heartbeat]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[BaseException] = []
    monkeypatch.setattr(Heartbeat, "_exit", lambda self, error: ended.append(error))
    first, second = two(1)
    first.release()
    second.close()  # without a word
    time.sleep(2)
    assert not ended
    one = Ending(first)
    assert one.has_ended(20)
    assert one.raised is None
