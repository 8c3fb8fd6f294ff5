"""Two processes of one thread beside one of two threads, and what crosses the network in a step.

    python tests/benchmarks/scaling.py [--encoder resnet50] [--size 256] [--batch 4] [--steps 6] [--rounds 3]

The same training in turn, of AlbuNet on tiles in a folder, by runtime.processes = 1 and 2; tiles a second are those of
the log's last epoch of training. The bytes are those of the loopback device, of a long run less those of a
short one, for a part of them does not grow with the steps. Asserts nothing.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from machine import describe_machine
from noise_tiles import BANDS, write_pairs

from robosat_pink.models import build_model


def loopback_bytes() -> int:
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.strip().startswith("lo:"))


def train(folder: Path, processes: int, epochs: int) -> tuple[float, int]:
    """Tiles a second, and bytes on the loopback device."""
    for name in ("model", "output"):
        subprocess.run(["rm", "-rf", folder / name], check=True)
    before = loopback_bytes()
    command = [sys.executable, "-m", "robosat_pink.train", f"runtime.processes={processes}", f"model.epochs={epochs}"]
    environment = os.environ | {"SAGEMAKER_BASE_DIR": str(folder)}
    log = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    speed = re.findall(r"phase=train .* tiles_per_s=([0-9.]+)", log)[-1]
    return float(speed), loopback_bytes() - before


def main() -> None:
    parser = argparse.ArgumentParser(description="Two processes beside one.")
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4, help="of all processes together")
    parser.add_argument("--steps", type=int, default=6, help="an epoch")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    count = options.steps * options.batch
    experiment = {
        "dataset": {"image_bucket": "channel:imagery", "mask_bucket": "channel:mask", "train_percent": 0.99},
        "classes": [{"name": "noise"}],
        "channels": [{"bands": list(range(1, BANDS + 1))}],
        "model": {
            "name": "albunet",
            "encoder": options.encoder,
            "batch_size": options.batch,
            "tile_size": options.size,
        },
        "runtime": {"workers": 0, "precision": "fp32"},
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_pairs(folder / "input/data", count + 2, options.size)
        (folder / "input/data/config").mkdir()
        (folder / "input/data/config/experiment.yml").write_text(yaml.safe_dump(experiment))
        speeds: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(options.rounds):
            for processes, rounds in speeds.items():
                rounds.append(train(folder, processes, 2)[0])
        sent = [train(folder, 2, epochs)[1] for epochs in (1, 3)]
    steps = 2 * math.ceil((count + 1) / options.batch)
    model = build_model("albunet", num_classes=1, num_channels=BANDS, encoder=options.encoder)
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    one, two = (statistics.median(rounds) for rounds in speeds.values())
    crossing = (sent[1] - sent[0]) / steps
    print(
        f"one process, 2 threads: {one:.2f} tiles/s; two processes, 1 thread each: {two:.2f}, {two / one:.2f} x\n"
        f"on the network in a step, both directions: {crossing / 1e6:.1f} MB, {crossing / parameters:.2f} x the "
        f"parameters' {parameters / 1e6:.1f} MB\n{describe_machine()}; albunet {options.encoder}, {options.size} x "
        f"{options.size}, batch {options.batch}, float32, medians of {options.rounds} rounds"
    )


if __name__ == "__main__":
    main()
