"""Runs of several processes on one machine: the same as one with the whole batch, and nobody waits for the dead."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import SMALL_DATASET, SMALL_MODEL, write_job
from robosat_pink import checkpoint

EXPERIMENT: dict[str, Any] = {
    "dataset": SMALL_DATASET,
    "classes": [{"name": "snow"}],
    "channels": [{"bands": [1, 2], "scale": 10000}],
    "model": SMALL_MODEL | {"batch_size": 3, "epochs": 3, "lr": 0.0001},
    "runtime": {"workers": 0, "precision": "fp32", "peer_timeout_s": 60},
}


@pytest.fixture
def job(opt_ml: Path) -> Path:
    return write_job(opt_ml, EXPERIMENT, tiles=4)


def begin(*arguments: str, command: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
    line = [*(command or (sys.executable, "-m")), "robosat_pink.train", *arguments]
    return subprocess.Popen(
        line, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def train(*arguments: str, code: int = 0) -> str:
    run = begin(*arguments)
    out, _ = run.communicate(timeout=300)
    assert run.returncode == code, out
    return out


def clear(job: Path) -> None:
    for folder in ("model", "checkpoints"):
        for path in (job / folder).iterdir():
            path.unlink()


def history(job: Path) -> list[dict[str, str]]:
    """Without the clocks."""
    with (job / "model/history.csv").open() as file:
        return [{key: value for key, value in row.items() if "seconds" not in key} for row in csv.DictReader(file)]


def results(job: Path) -> tuple[Any, ...]:
    """Last weights, best weights, metrics, history."""
    return (
        checkpoint.load(job / "model/checkpoint-00003-of-00003.pth")["state_dict"],
        checkpoint.load(job / "model/best.pth")["state_dict"],
        json.loads((job / "model/metrics.json").read_text()),
        history(job),
    )


def assert_identical(first: Any, second: Any) -> None:
    for one, other in zip(first[:2], second[:2], strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert first[2:] == second[2:]


def until(run: subprocess.Popen[str], says: str) -> str:
    """What a run has said when it says this."""
    assert run.stdout is not None
    said = ""
    for line in run.stdout:
        said += line
        if says in line:
            return said
    pytest.fail(f"ended without saying {says!r}: {said}")


def children(process: int) -> list[int]:
    """The processes that train, by rank."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ranks = {}
    for each in found:
        variables = Path(f"/proc/{each}/environ").read_bytes().split(b"\0")
        ranks.update({int(value[5:]): int(each) for value in variables if value.startswith(b"RANK=")})
    return [ranks[rank] for rank in sorted(ranks)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def begin_as_hosts(job: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    """A process as the first host, in the job's tree, and one as the second: its tree has the same input."""
    other = job.parent / "other"
    other.mkdir()
    (other / "input").symlink_to(job / "input")
    run = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        begin(*arguments, RANK=str(rank), SAGEMAKER_BASE_DIR=str(base), **run) for rank, base in enumerate((job, other))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("extra", [(), ("runtime.accumulation=2",), ("runtime.workers=1", "model.batch_size=4")])
def test_two_processes_learn_what_one_does_from_the_whole_batch(job: Path, extra: tuple[str, ...]) -> None:
    """10 tiles in batches of 3: shares of 2 and 1, in the last step of 1 and none."""
    found = []
    for processes in (1, 2):
        clear(job)
        train(f"runtime.processes={processes}", "model.batch_norm=frozen", *extra)
        found.append(history(job))
    for one, two in zip(*found, strict=True):
        assert (one["train_tiles"], one["val_tiles"]) == (two["train_tiles"], two["val_tiles"])
        for name in ("train_loss", "train_iou", "val_loss", "val_iou"):
            assert float(two[name]) == pytest.approx(float(one[name]), abs=1e-4), name


@pytest.mark.slow
def test_synchronised_batch_norm_gives_two_processes_the_statistics_of_the_whole_batch(job: Path) -> None:
    found = []
    for processes, kind in ((1, "batch"), (2, "synchronised"), (2, "batch")):
        clear(job)
        train(f"runtime.processes={processes}", f"model.batch_norm={kind}", "model.epochs=1")
        found.append(float(history(job)[0]["train_loss"]))
    whole, synchronised, apart = found
    assert synchronised == pytest.approx(whole, abs=2e-3)
    assert abs(apart - whole) > 10 * abs(synchronised - whole)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_other_processes_go_on_with_the_same_batches(job: Path, before: int, after: int) -> None:
    settings = ("model.batch_norm=frozen", "checkpoint.every_minutes=0.0001")
    train("runtime.processes=1", *settings)
    whole = history(job)
    clear(job)
    run = begin(f"runtime.processes={before}", *settings)
    until(run, "phase=train epoch=1")
    time.sleep(0.2)
    run.send_signal(signal.SIGTERM)
    out, _ = run.communicate(timeout=120)
    assert run.returncode == 0, out
    assert "continuing from" in train(f"runtime.processes={after}", *settings)
    for one, other in zip(whole, history(job), strict=True):
        assert one["train_tiles"] == other["train_tiles"]
        assert float(other["train_loss"]) == pytest.approx(float(one["train_loss"]), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_process_is_killed_the_others_end_and_the_failure_file_says_so(job: Path, rank: int) -> None:
    run = begin("runtime.processes=2", "model.epochs=1000")
    until(run, "phase=val epoch=1")
    os.kill(children(run.pid)[rank], signal.SIGKILL)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 137, out
    assert f"rank {rank} of 2 was killed by SIGKILL" in (job / "output/failure").read_text()
    assert f"has vanished: rank {rank}" in out


@pytest.mark.slow
def test_process_that_is_silent_but_not_gone_is_not_waited_for(job: Path) -> None:
    """The first, which keeps what the others ask for news: as of a machine that hangs, no connection is closed."""
    run = begin("runtime.processes=2", "model.epochs=1000", "runtime.peer_timeout_s=8")
    until(run, "phase=val epoch=1")
    first = children(run.pid)[0]
    os.kill(first, signal.SIGSTOP)
    until(run, "has vanished: rank 0")
    os.kill(first, signal.SIGKILL)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 137, out


def test_process_is_stopped_while_it_waits_for_another_that_has_not_come(job: Path) -> None:
    port = free_port()
    run = begin(RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    deadline = time.monotonic() + 60
    while not is_open(port) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    run.send_signal(signal.SIGTERM)
    out, _ = run.communicate(timeout=15)
    assert run.returncode == 0, out
    assert "stopped by a signal" in out


@pytest.mark.slow
def test_error_of_one_process_ends_all_with_its_cause(job: Path) -> None:
    """A damaged tile: whichever process reads it."""
    tile = sorted((job / "input/data/imagery").rglob("*.tif"))[0]
    tile.write_bytes(tile.read_bytes()[:200])
    out = train("runtime.processes=2", code=3)
    failure = (job / "output/failure").read_text()
    assert tile.name in failure.splitlines()[0], out
    assert "failed: " in out  # so the other says


@pytest.mark.slow
def test_processes_whose_time_is_over_end_together_and_the_first_leaves_the_report(job: Path) -> None:
    out = train("runtime.processes=2", "model.epochs=10000", "runtime.max_seconds=8")
    assert "stopped at runtime.max_seconds = 8" in out
    assert "report in " in out
    assert (job / "output/data/report.html").exists()
    assert not (job / "output/failure").exists()


@pytest.mark.slow
def test_second_host_ends_after_the_first_has_left_report_and_model_card(job: Path) -> None:
    """Some launchers, such as docker-compose for the SDK's local mode, stop all hosts when one has ended."""
    first, second = begin_as_hosts(job, "model.epochs=1")
    assert second.wait(timeout=300) == 0
    left = [(job / name).exists() for name in ("model/MODEL_CARD.md", "output/data/report.html")]
    out, _ = first.communicate(timeout=300)
    assert first.returncode == 0, out
    assert left == [True, True], out
    assert "2 processes of this run are on one machine: 1 thread(s) each" in out
    assert "TCPStore" not in second.communicate()[0]  # which torch says of a connection that is closed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent_to", "number", "code"), [(1, signal.SIGTERM, 0), (0, signal.SIGKILL, 1)], ids=["stopped", "first killed"]
)
def test_second_host_does_not_wait_for_the_report_when(job: Path, sent_to: int, number: int, code: int) -> None:
    hosts = begin_as_hosts(job, "model.epochs=1")
    until(hosts[0], "model and metrics are in")
    hosts[0].send_signal(signal.SIGSTOP)  # in the middle of it
    time.sleep(1)
    hosts[sent_to].send_signal(number)
    out, _ = hosts[1].communicate(timeout=45)
    assert hosts[1].returncode == code, out
    assert ("has vanished: rank 0" in out) == (code == 1)
    hosts[0].send_signal(signal.SIGCONT)
    hosts[0].communicate(timeout=300)


@pytest.mark.slow
def test_more_processes_than_tiles_of_a_batch_are_refused(job: Path) -> None:
    train("runtime.processes=2", "model.batch_size=1", code=2)
    assert "model.batch_size = 1" in (job / "output/failure").read_text()


@pytest.mark.slow
def test_listing_once_is_enough_for_all(job: Path) -> None:
    out = train("runtime.processes=2", "model.epochs=1")
    assert out.count("listed 16 tiles of channel:imagery") == 1


@pytest.mark.slow
def test_torchrun_starts_it_as_it_is_and_its_signals_are_one_request(job: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
    run = begin("model.epochs=1000", command=torchrun)
    until(run, "phase=val epoch=1")
    workers = children(run.pid)
    assert len(workers) == 2
    for each in workers:
        os.kill(each, signal.SIGINT)  # as a terminal sends it to all, and then torchrun SIGTERM to these
    run.send_signal(signal.SIGTERM)
    out, _ = run.communicate(timeout=120)
    assert "stopped by a signal after" in out
    assert len(list((job / "checkpoints").glob("resume-*.pth"))) in (1, 2)
    assert not (job / "output/failure").exists()
