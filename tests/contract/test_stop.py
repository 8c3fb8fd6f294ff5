"""SIGTERM: the step ends, what is needed to go on is saved, exit 0; and what process 1 does besides."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import SMALL_DATASET, SMALL_MODEL, write_job
from robosat_pink import checkpoint
from robosat_pink.container.contract import Container
from robosat_pink.train import main, resumes
from robosat_pink.trained import load_model
from robosat_pink.training import loop

EXPERIMENT: dict[str, Any] = {
    "dataset": SMALL_DATASET,
    "classes": [{"name": "snow"}],
    "channels": [{"bands": [1, 2], "scale": 10000}],
    "model": SMALL_MODEL | {"batch_size": 2, "epochs": 3},
    "runtime": {"workers": 0},
}


@pytest.fixture
def job(opt_ml: Path) -> Path:
    return write_job(opt_ml, EXPERIMENT, tiles=4)


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int], None]]:
    """Have a real SIGTERM arrive while the n-th batch of a phase is counted."""
    add = loop.PhaseMetrics.add

    def arrange(phase: str, number: int) -> None:
        met = []

        def counted(phase_metrics: loop.PhaseMetrics, *arguments: Any) -> None:
            add(phase_metrics, *arguments)
            if phase_metrics.phase == phase:
                met.append(phase_metrics.epoch)
                if len(met) == number:
                    os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(loop.PhaseMetrics, "add", counted)

    yield arrange
    monkeypatch.setattr(loop.PhaseMetrics, "add", add)


def results(job: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Any, list[str]]:
    """Last weights, best weights, metrics and history without its clocks."""
    rows = [line.split(",") for line in (job / "model/history.csv").read_text().splitlines()]
    kept = [column for column, name in enumerate(rows[0]) if "seconds" not in name]
    return (
        checkpoint.load(job / "model/checkpoint-00003-of-00003.pth")["state_dict"],
        checkpoint.load(job / "model/best.pth")["state_dict"],
        json.loads((job / "model/metrics.json").read_text()),
        [",".join(row[column] for column in kept) for row in rows],
    )


def assert_identical(first: Any, second: Any) -> None:
    for one, other in zip(first[:2], second[:2], strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert first[2:] == second[2:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "batch"), [("train", 1), ("train", 5), ("train", 7), ("val", 2), ("train", 15), ("val", 9)]
)
def test_run_that_was_stopped_anywhere_ends_as_if_it_had_not_been(
    job: Path, stop_at: Callable[[str, int], None], monkeypatch: pytest.MonkeyPatch, phase: str, batch: int
) -> None:
    assert main([]) == 0
    whole = results(job)
    for folder in ("model", "checkpoints"):
        for path in (job / folder).iterdir():
            path.unlink()

    stop_at(phase, batch)
    assert main([]) == 0
    assert not (job / "output/failure").exists()
    assert not (job / "model/checkpoint-00003-of-00003.pth").exists()
    monkeypatch.undo()
    os.environ["SAGEMAKER_BASE_DIR"] = str(job)
    try:
        assert main([]) == 0
        assert_identical(results(job), whole)
    finally:
        del os.environ["SAGEMAKER_BASE_DIR"]


@pytest.mark.slow
def test_signal_that_reaches_the_workers_too_is_a_stop_like_any_other(job: Path) -> None:
    """As timeout, systemd and Slurm send it."""
    command = [sys.executable, "-m", "robosat_pink.train", "runtime.workers=1", "model.epochs=1000"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    assert run.stdout is not None
    before = []
    for line in run.stdout:
        before.append(line)
        if line.startswith("phase=val"):
            break
    os.killpg(run.pid, signal.SIGTERM)
    after = run.communicate(timeout=60)[0]
    assert run.returncode == 0, "".join(before) + after
    assert "stopped by a signal after 1 epoch " in after
    assert not (job / "output/failure").exists()


def test_stop_in_the_first_epoch_leaves_a_model_that_loads(
    job: Path, stop_at: Callable[[str, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stop_at("train", 2)
    assert main([]) == 0
    said = capsys.readouterr().out
    assert "stopped by a signal after 0 epochs and 2 steps" in said
    assert "no epoch was evaluated: best.pth has the weights at the stop" in said
    assert f"stopped by a signal; the same command resumes from {job / 'checkpoints'}\n" in said
    assert [path.name for path in (job / "checkpoints").iterdir()] == ["resume-00000-000002.pth"]
    for name in ("checkpoint-00000-of-00003.pth", "best.pth"):
        assert checkpoint.load(job / "model" / name)["epoch"] == 0
        load_model(job / "model" / name)
        assert f"/{name}: its run was stopped in the first epoch" in capsys.readouterr().out


def test_stop_before_the_first_step_leaves_config_and_ids_only(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from robosat_pink.datasets import TilePairs

    split = TilePairs.split

    def stopped(tiles: TilePairs) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
        return split(tiles)

    monkeypatch.setattr(TilePairs, "split", stopped)
    assert main([]) == 0
    assert "stopped by a signal" in capsys.readouterr().out
    assert list((job / "model").glob("*.pth")) == []
    assert not (job / "output/failure").exists()


def test_after_a_stop_the_log_says_whether_the_run_resumes(opt_ml: Path) -> None:
    folder = opt_ml / "checkpoints"
    assert resumes(Container(opt_ml)) == f"there is no folder {folder} for resume points: the same command starts again"
    folder.mkdir()
    assert resumes(Container(opt_ml)) == "the same command starts again"
    (folder / "resume-00001-000000.pth").touch()
    assert resumes(Container(opt_ml)) == f"the same command resumes from {folder}"


@pytest.mark.parametrize("module", ["numpy", "torch", "rasterio"])
def test_stop_in_the_middle_of_an_import_waits_for_its_end(job: Path, module: str) -> None:
    script = f"""
import os, signal, sys
class Stopper:
    def find_spec(self, name, *rest):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Stopper())
from robosat_pink.train import main
code = main([])
print(code, hasattr(sys.modules.get({module!r}), "__version__"))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert run.stdout.splitlines()[-1] == "0 True", run.stdout + run.stderr
    assert "stopped by a signal" in run.stdout
    assert not (job / "output/failure").exists()


@pytest.fixture
def silent_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The environment of a store that takes connections and never answers; when it has been asked, the event is set."""
    asked = threading.Event()
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:

        def accept() -> None:
            kept = []
            while True:
                try:
                    kept.append(listener.accept()[0])
                except OSError:
                    return
                if kept[-1].recv(1):
                    asked.set()

        threading.Thread(target=accept, daemon=True).start()
        for name in list(os.environ):
            if name.startswith("AWS_"):
                monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        yield asked
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "arguments",
    [
        ["dataset.image_bucket=s3://silent", "dataset.mask_bucket=s3://silent-masks"],
        ["checkpoint.path=s3://silent/weights.pth"],
        ["dataset.split.from=s3://silent/run/test_ids.txt"],
        ["--check", "dataset.image_bucket=s3://silent"],
    ],
)
def test_signal_ends_a_run_that_waits_for_a_silent_store(
    job: Path, silent_store: threading.Event, arguments: list[str]
) -> None:
    if "--check" in arguments:
        arguments = ["--check", str(job / "input/data/config/experiment.yml"), *arguments[1:]]
    command = [sys.executable, "-m", "robosat_pink.train", *arguments]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert silent_store.wait(120)
    started = time.monotonic()
    run.terminate()
    said = run.communicate(timeout=60)[0]
    assert time.monotonic() - started < 20
    assert run.returncode == 0, said
    assert "stopped by a signal; the same command starts again\n" in said
    assert not (job / "output/failure").exists()


@pytest.mark.slow
def test_signals_are_as_before_once_the_run_is_over(job: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert main(["model.epochs=1"]) == 0
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_second_signal_ends_the_process_at_once(job: Path) -> None:
    script = """
import os, signal
from robosat_pink.container.stop_request import StopRequest
with StopRequest() as stop:
    stop.is_polled = True
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here")
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (run.returncode, run.stdout) == (128 + 15, "")


def as_init(body: str, job: Path) -> subprocess.Popen[str]:
    """Run `body`, the definition of main(), as process 1 of a process namespace of its own."""
    imports = "from robosat_pink.container.pid1 import run_as_init\nimport os, signal, subprocess, sys, time"
    script = f"{imports}\n{body}\nsys.exit(run_as_init(main))"
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", script]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"SAGEMAKER_BASE_DIR": str(job)}
    )


@pytest.fixture
def needs_namespaces() -> None:
    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a process namespace of its own needs root")


@pytest.mark.usefixtures("needs_namespaces")
def test_process_1_passes_the_exit_code_on(job: Path) -> None:
    process = as_init("def main():\n    assert os.getpid() != 1\n    return 3", job)
    process.communicate(timeout=60)
    assert process.returncode == 3


@pytest.mark.usefixtures("needs_namespaces")
@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.2])
def test_process_1_is_stopped_by_what_comes_before_python_listens(job: Path, tmp_path: Path, delay_s: float) -> None:
    if subprocess.run(["env", "--block-signal=TERM", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs env of coreutils 8.31 or later")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "bin/python3").chmod(0o755)
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    start = Path(__file__).parents[2] / "start.sh"
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount-proc", "bash", str(start), "train"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"SAGEMAKER_BASE_DIR": str(job), "PATH": path},
    )
    first = first_process(process.pid)
    time.sleep(delay_s)
    os.kill(first, signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert out.startswith("stopped by a signal")


def first_process(parent: int) -> int:
    """The only child, once start.sh has become what lets signals wait: some milliseconds after its start."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            # Not by the blocked signals in its status: bash blocks SIGTERM for a moment whenever it forks.
            if b"ROBOSAT_PINK_BLOCKED=1" in Path(f"/proc/{child}/environ").read_bytes():
                return int(child)
        time.sleep(0.001)
    raise AssertionError("no process lets SIGTERM wait")


@pytest.mark.usefixtures("needs_namespaces")
def test_process_1_reaps_orphans(job: Path) -> None:
    body = """
def main():
    subprocess.run([sys.executable, "-c", "import subprocess; subprocess.Popen(['sleep', '0.2'])"])
    time.sleep(1)
    states = [open(f"/proc/{each}/stat").read().split()[2] for each in os.listdir("/proc") if each.isdecimal()]
    print("zombies", states.count("Z"))
    return 0"""
    process = as_init(body, job)
    assert process.communicate(timeout=60)[0] == "zombies 0\n"


@pytest.mark.usefixtures("needs_namespaces")
def test_process_1_says_in_the_failure_file_that_the_run_was_killed(job: Path) -> None:
    process = as_init("def main():\n    os.kill(os.getpid(), signal.SIGKILL)", job)
    process.communicate(timeout=60)
    assert process.returncode == 137
    cause = (job / "output/failure").read_text().splitlines()[0]
    assert cause.startswith("the training process was killed by SIGKILL, most likely out of memory; lower")
