"""A training run from S3, from its start to its report: seconds, and the peak memory of all its processes together.

    python tests/benchmarks/peak_memory.py [--pairs 20] [--network albunet] [KEY=VALUE ...]

Tiles of 512 x 512, batches of 7, AlbuNet on ResNet-50 by default; two epochs, the first of which fills the cache, with
the worker that `auto` gives. A collect of planet-snowcover's is --pairs 1500 model.epochs=50. Memory is counted in
proportional set sizes (a page that n processes share counts 1/n in each), summed five times a second; the system's page
cache is not among them. start.sh starts the run, with the Python that it finds; with an empty GLIBC_TUNABLES here,
without what it sets there.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from index_memory import descendants, proportional_bytes
from machine import describe_machine
from noise_tiles import BANDS, write_pairs
from s3_server import S3Server

PAUSE_S = 0.2
START = Path(__file__).parents[2] / "start.sh"  # what an image runs


def experiment(cache: Path, network: str) -> dict[str, object]:
    encoder = {"encoder": "resnet50"} if network == "albunet" else {}
    return {
        "dataset": {
            "image_bucket": "imagery",
            "mask_bucket": "mask",
            "train_percent": 0.7,
            "cache": {"dir": str(cache), "max_gb": 10},
        },
        "classes": [{"name": "noise"}],
        "channels": [{"bands": list(range(1, BANDS + 1))}],
        "model": {"name": network, **encoder, "batch_size": 7, "tile_size": 512, "epochs": 2},
    }


def summed_bytes(process: int) -> int:
    total = 0
    for member in (process, *descendants(process)):
        with contextlib.suppress(OSError, IndexError):  # it has just ended
            total += proportional_bytes(member)
    return total


def watch(run: subprocess.Popen[Any]) -> int:
    """The largest sum until the run has ended."""
    peak = 0
    with contextlib.suppress(OSError):  # as it ends
        while run.poll() is None:
            peak = max(peak, summed_bytes(run.pid))
            time.sleep(PAUSE_S)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of a training run.")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--network", default="albunet")
    options, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_pairs(folder / "buckets", options.pairs)
        config = folder / "job/input/data/config/experiment.yml"
        config.parent.mkdir(parents=True)
        config.write_text(yaml.safe_dump(experiment(folder / "cache", options.network)))
        with S3Server(folder / "buckets") as server:
            environment = os.environ | server.environment() | {"SAGEMAKER_BASE_DIR": str(folder / "job")}
            started = time.monotonic()
            command = ["bash", str(START), "train", *overrides]
            with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as run:
                peak = watch(run)
                assert run.stdout is not None
                log = run.stdout.read()
            seconds = time.monotonic() - started
            if run.returncode:
                sys.exit(log)
    (computed_in,) = [line for line in log.splitlines() if line.startswith("training on")]
    print(f"peak of all processes: {peak / 1e9:.2f} GB, in {seconds:.0f} s; {computed_in}")
    print(describe_machine())


if __name__ == "__main__":
    main()
