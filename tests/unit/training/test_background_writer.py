"""Writes in the background are of a snapshot, one at a time, and their failures are raised."""

import threading
import time

import pytest
import torch

from robosat_pink.errors import ContractError
from robosat_pink.training.background_writer import BackgroundWriter, snapshot


def test_snapshot_does_not_change_with_the_original() -> None:
    weight = torch.ones(2)
    content = {"state": {0: {"exp_avg": weight}}, "rows": [{"loss": weight}], "name": "adam"}
    copy = snapshot(content)
    weight.zero_()
    content["rows"].append({})  # type: ignore[attr-defined]
    assert copy["state"][0]["exp_avg"].tolist() == copy["rows"][0]["loss"].tolist() == [1, 1]
    assert len(copy["rows"]) == 1
    assert copy["name"] == "adam"


def test_writer_runs_one_write_at_a_time_and_the_latest_of_those_that_wait() -> None:
    begun, may_end, order = threading.Event(), threading.Event(), []

    def slow() -> None:
        begun.set()
        assert may_end.wait(60)
        order.append("slow")

    with BackgroundWriter() as writer:
        writer.submit(slow)
        assert begun.wait(60)
        writer.submit(lambda: order.append("overtaken"))
        writer.submit(lambda: order.append("latest"))
        writer.raise_failure()
        assert writer.is_busy()
        assert order == []
        may_end.set()
        writer.wait()
        assert order == ["slow", "latest"]
        assert not writer.is_busy()
        writer.submit(lambda: order.append("after"))
    assert order == ["slow", "latest", "after"]


@pytest.mark.parametrize("ask", ["raise_failure", "submit", "wait", "end"])
def test_write_that_fails_is_an_error_at_the_next_call(ask: str) -> None:
    def fail() -> None:
        raise ContractError("the disk is full")

    def write_and_ask() -> None:
        with BackgroundWriter() as writer:
            writer.submit(fail)
            if ask == "submit":
                while writer.is_busy():
                    time.sleep(0.01)
                writer.submit(lambda: None)
            elif ask == "wait":
                writer.wait()
            elif ask == "raise_failure":
                while True:
                    writer.raise_failure()
                    time.sleep(0.01)

    with pytest.raises(ContractError, match="the disk is full"):
        write_and_ask()


def test_write_that_fails_does_not_hide_what_went_wrong_before(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ContractError("the disk is full")

    def write_and_break() -> None:
        with BackgroundWriter() as writer:
            writer.submit(fail)
            raise ValueError("the network")

    with pytest.raises(ValueError, match="the network"):
        write_and_break()
    assert "the disk is full" in caplog.text
