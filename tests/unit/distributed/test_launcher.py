"""Which processes a host has, and where they stand among those of a run."""

import json
import sys
from pathlib import Path

import pytest

from robosat_pink.config import RuntimeConfig
from robosat_pink.container.contract import Container
from robosat_pink.container.stop_request import StopRequest
from robosat_pink.distributed import launcher
from robosat_pink.distributed.launcher import ProcessRank, rank_from_environment, ranks_of_this_host
from robosat_pink.errors import ConfigError


def say(opt_ml: Path, **resource: object) -> Container:
    (opt_ml / "input/config/resourceconfig.json").write_text(json.dumps(resource))
    return Container(opt_ml)


def test_one_host_without_a_gpu_has_one_process(opt_ml: Path) -> None:
    assert ranks_of_this_host(Container(opt_ml), RuntimeConfig()) == [ProcessRank()]


@pytest.mark.parametrize(("current", "first"), [("algo-1", 0), ("algo-10", 2), ("algo-2", 4)])
def test_ranks_follow_the_sorted_names_of_the_hosts(opt_ml: Path, current: str, first: int) -> None:
    container = say(opt_ml, current_host=current, hosts=["algo-1", "algo-2", "algo-10"])
    found = ranks_of_this_host(container, RuntimeConfig(processes=2))
    assert [(each.rank, each.local_rank) for each in found] == [(first, 0), (first + 1, 1)]
    assert {(each.size, each.local_size, each.address, each.port) for each in found} == {(6, 2, "algo-1", 29500)}


def test_names_of_hosts_may_be_any(opt_ml: Path) -> None:
    container = say(opt_ml, current_host="algo-2-x7k2p", hosts=["algo-2-x7k2p", "algo-1-x7k2p"])
    (process,) = ranks_of_this_host(container, RuntimeConfig())
    assert (process.rank, process.size, process.address) == (1, 2, "algo-1-x7k2p")


def test_there_is_a_process_for_each_gpu_unless_the_cpu_is_asked_for(
    opt_ml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "_gpus", lambda: 4)
    found = ranks_of_this_host(Container(opt_ml), RuntimeConfig())
    assert [each.local_rank for each in found] == [0, 1, 2, 3]
    assert len({each.port for each in found}) == 1
    assert len(ranks_of_this_host(Container(opt_ml), RuntimeConfig(device="cpu"))) == 1
    assert len(ranks_of_this_host(Container(opt_ml), RuntimeConfig(processes=2))) == 2


def test_what_a_launcher_says_is_taken_and_passed_on() -> None:
    process = ProcessRank(rank=3, size=8, local_rank=1, local_size=2, address="10.0.0.1", port=1234)
    assert rank_from_environment(process.environment()) == process
    assert rank_from_environment({"HOSTNAME": "algo-1"}) is None
    assert rank_from_environment({"RANK": "0", "WORLD_SIZE": "1"}) == ProcessRank()


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "1"},
        {"WORLD_SIZE": "2"},
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "algo-1"},
        {"RANK": "one", "WORLD_SIZE": "2", "MASTER_ADDR": "algo-1", "MASTER_PORT": "1"},
    ],
)
def test_half_of_what_a_launcher_has_to_say_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT go together"):
        rank_from_environment(environment)


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        ("exit 0", "exit 0", 0),
        ("sleep 0.3; exit 3", "exit 1", 3),  # who noticed ends before whose error it is
        ("exit 1", "sleep 0.3; exit 3", 3),
        ("kill -9 $$", "exit 1", 128 + 9),
        ("exit 1", "sleep 0.3; kill -9 $$", 128 + 9),
        ("exit 2", "exec sleep 600", 2),
    ],
)
def test_exit_code_is_that_of_the_process_with_a_cause_of_its_own(
    opt_ml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str, code: int
) -> None:
    process = tmp_path / "process"
    process.write_text(f'#!/bin/sh\nif [ "$RANK" = 0 ]; then {first}; else {second}; fi\n')
    process.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(process))
    monkeypatch.setattr(launcher, "GRACE_S", 1.0)
    container = Container(opt_ml)
    assert (
        launcher.run_ranks(
            "robosat_pink.train",
            ranks_of_this_host(container, RuntimeConfig(processes=2)),
            [],
            StopRequest(),
            container,
        )
        == code
    )


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({"RANK": "-5"}, "RANK = '-5': accepted: a whole number from 0 to 1"),
        ({"RANK": "2"}, "RANK = '2': accepted: a whole number from 0 to 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE = '0': accepted: a whole number from 1 to 1000000"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE = '999"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK = '-1': accepted: a whole number from 0"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE = '0': accepted: a whole number from 1"),
        ({"MASTER_PORT": "999999"}, "MASTER_PORT = '999999': accepted: a whole number from 1 to 65535"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is missing"),
    ],
)
def test_number_of_a_launcher_that_cannot_be_is_refused(changes: dict[str, str], accepted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rank_from_environment(ProcessRank(rank=1, size=2).environment() | changes)
    assert str(caught.value).startswith(f"environment: {accepted}")
    assert len(str(caught.value)) < 400


def test_parent_that_is_no_process_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^environment: ROBOSAT_PINK_PARENT = 'x': accepted: .*unset it"):
        launcher.end_with_parent({launcher.PARENT: "x"})
