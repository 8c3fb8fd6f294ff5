"""What saving costs a run, and how soon a run that was killed trains again.

    python tests/benchmarks/saving.py [--encoder resnet50] [--size 256] [--pairs 28] [KEY=VALUE ...]

A run of AlbuNet writes resume points as often as it can, and is killed after some of them; the same command resumes.
The share of time is what one save keeps the loop waiting, by the log's last line, in the 10 minutes to the next one;
the writing itself happens beside the network. From restart to the first new step, and to the start of training, by
the clock outside. Asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import yaml
from machine import describe_machine
from noise_tiles import BANDS, write_pairs


def begin(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "robosat_pink.train", *arguments]
    environment = os.environ | {"SAGEMAKER_BASE_DIR": str(folder)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def resume_points(folder: Path) -> set[str]:
    return {path.name for path in (folder / "checkpoints").iterdir() if path.suffix == ".pth"}


def kill_after_two_points(run: subprocess.Popen[str], folder: Path) -> int:
    """Bytes of the largest point."""
    while len(resume_points(folder)) < 2:
        time.sleep(0.05)
    run.kill()
    run.wait()
    return max(path.stat().st_size for path in (folder / "checkpoints").iterdir())


class Restart(NamedTuple):
    training_s: float
    saved_s: float
    log: str


def time_restart(folder: Path, *overrides: str) -> Restart:
    """To the start of training and to the first new resume point, which has the first new step behind it."""
    earlier, started = resume_points(folder), time.monotonic()
    training_s = saved_s = 0.0
    run = begin(folder, "model.epochs=1", *overrides)
    assert run.stdout is not None
    log = ""
    for line in run.stdout:
        log += line
        if line.startswith("training on"):
            training_s = time.monotonic() - started
            wait_for_new_point(run, folder, earlier)
            saved_s = time.monotonic() - started
    assert run.wait() == 0, log
    return Restart(training_s, saved_s, log)


def wait_for_new_point(run: subprocess.Popen[str], folder: Path, earlier: set[str]) -> None:
    while not resume_points(folder) - earlier and run.poll() is None:
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description="What saving and resuming cost.")
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=28)
    options, overrides = parser.parse_known_args()
    experiment = {
        "dataset": {"image_bucket": "channel:imagery", "mask_bucket": "channel:mask"},
        "classes": [{"name": "noise"}],
        "channels": [{"bands": list(range(1, BANDS + 1))}],
        "model": {"name": "albunet", "encoder": options.encoder, "batch_size": 2, "tile_size": options.size},
        "checkpoint": {"every_minutes": 0.0001},
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_pairs(folder / "input/data", options.pairs, options.size)
        for name in ("input/data/config", "checkpoints"):
            (folder / name).mkdir()
        (folder / "input/data/config/experiment.yml").write_text(yaml.safe_dump(experiment))
        size = kill_after_two_points(begin(folder, "model.epochs=9", *overrides), folder)
        restart = time_restart(folder, *overrides)
    ((waited, count),) = re.findall(r"training waited ([0-9.]+) s for (\d+) saves", restart.log)
    save_s = float(waited) / int(count)
    print(
        f"from restart to the start of training {restart.training_s:.1f} s, to the first new resume point "
        f"{restart.saved_s:.1f} s\n"
        f"a resume point of {size / 1e6:.0f} MB keeps the loop waiting for {save_s:.2f} s, {save_s / 600:.3%} of 10 "
        f"minutes\n{describe_machine()}; albunet {options.encoder}"
    )


if __name__ == "__main__":
    main()
