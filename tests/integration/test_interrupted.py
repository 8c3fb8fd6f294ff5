"""A run that is killed again and again, and started again by the same command, ends as if it had not been."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import write_job
from robosat_pink.checkpoint import RESUME_FILE
from test_processes import EXPERIMENT, assert_identical, children, clear, results, train, until

SETTINGS = ("runtime.processes=1", "checkpoint.every_minutes=0.0001")
UNET = ("model.name=unet", "model.encoder=null", "model.num_filters=null", "model.pixel_steps=50")
MOMENTS = int(os.environ.get("ROBOSAT_PINK_MOMENTS", 0))  # to try more of them than there is time for each time


@pytest.fixture
def job(opt_ml: Path) -> Path:
    return write_job(opt_ml, EXPERIMENT, tiles=6)


def begin(*settings: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "robosat_pink.train", *SETTINGS, *settings]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def newest(job: Path) -> Path | None:
    return max((path for path in (job / "checkpoints").iterdir() if RESUME_FILE.fullmatch(path.name)), default=None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "processes", "moments", "recipe"),
    [
        (signal.SIGKILL, 1, 10, ("model.recipe=strong", "sampling.tiles_per_epoch=8")),
        (signal.SIGTERM, 1, 3, ()),
        (signal.SIGKILL, 2, 3, ()),
        (signal.SIGTERM, 2, 3, ("model.recipe=strong", "sampling.tiles_per_epoch=8", *UNET)),
    ],
)
def test_run_that_is_interrupted_at_random_moments_ends_to_the_last_bit_as_if_it_had_not_been(
    job: Path, how: signal.Signals, processes: int, moments: int, recipe: tuple[str, ...]
) -> None:
    """In a listing, in a step, in a save, in an evaluation: the moments are drawn over all of the run."""
    moments = MOMENTS or moments
    settings = (f"runtime.processes={processes}", *recipe)
    train(*SETTINGS, *settings)
    whole = results(job)
    clear(job)
    drawn = random.Random(f"{how} {processes}")
    points = [newest(job)]
    for number in range(moments):
        run = begin(*settings)
        if number % 5 == 0:  # before there is a tile
            until(run, "experiment:")
            time.sleep(drawn.uniform(0, 0.1))
        else:  # at any moment, of every other attempt after it has got on
            until(run, "training on")
            deadline = time.monotonic() + 60
            while number % 2 and newest(job) == points[-1] and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(drawn.uniform(0, 0.5))
        trained = children(run.pid) if processes > 1 else []
        run.send_signal(how)
        out, _ = run.communicate(timeout=120)
        assert run.returncode == (-how if how == signal.SIGKILL else 0), out
        while any(Path(f"/proc/{each}").exists() for each in trained):  # they end with the one that started them
            time.sleep(0.05)
        points.append(newest(job))
    names = [point.name if point else "" for point in points]
    assert names == sorted(names)
    assert len(set(names)) > moments // 3
    assert not (job / "model/checkpoint-00003-of-00003.pth").exists(), "nothing was interrupted in the end"
    assert "continuing from" in train(*SETTINGS, *settings)
    assert_identical(results(job), whole)


@pytest.mark.slow
def test_truncated_newest_resume_point_costs_no_bit_of_the_result(job: Path) -> None:
    train(*SETTINGS)
    whole = results(job)
    clear(job)
    run = begin()
    until(run, "phase=val epoch=2")
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 0
    point = newest(job)
    assert point is not None
    point.write_bytes(point.read_bytes()[: point.stat().st_size // 2])
    out = train(*SETTINGS)
    assert f"{point}: not a checkpoint that can be loaded" in out
    assert "continuing from" in out
    assert_identical(results(job), whole)


@pytest.mark.slow
def test_full_disk_during_a_save_is_an_error_and_the_point_before_stays(job: Path) -> None:
    """A small file system of its own for the resume points."""
    if os.geteuid():
        pytest.skip("mounting a file system takes root")
    folder = job / "checkpoints"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1300m", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let a file system be mounted")
    try:
        run = begin()
        until(run, "phase=val epoch=1")
        filler = folder / "filler"
        with filler.open("wb") as file, contextlib.suppress(OSError):
            while True:  # the run writes, too
                file.write(bytes(1_000_000))
                file.flush()
        out, _ = run.communicate(timeout=120)
        assert run.returncode == 5, out
        assert "No space left on device; make room there" in (job / "output/failure").read_text()
        filler.unlink()
        point = newest(job)
        assert point is not None
        assert "continuing from" in train(*SETTINGS)
    finally:
        subprocess.run(["umount", folder], check=True)
