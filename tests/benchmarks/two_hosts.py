"""What l7_everest_glacier teaches one host, and two in containers on a Docker network: val IoU and time, in one run.

    python tests/benchmarks/two_hosts.py [KEY=VALUE ...]

The experiment `original` of accuracy.py, with ordinary batch norm, in the image robosat_pink:test, which it builds;
once for each seed, for a training of one seed differs by 0.04 when as little as its number of threads does. Needs a
Docker engine and the folder of real tiles (../shared/data).
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ours
import real_tiles

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from container.engine import IMAGE, NETWORK, ROOT
from container.hosts import HOSTS, Hosts

SCENE = "l7_everest_glacier"
SEEDS = (0, 1, 2)
EPOCHS = 30
MOUNTED = "/data"  # where the containers have the real tiles


def main(*overrides: str) -> None:
    subprocess.run(["docker", "build", "--quiet", *NETWORK, "--tag", IMAGE, ROOT], check=True)
    experiment = ours.experiment("original", SCENE, "/opt/ml/input/data/ids/test_ids.txt", MOUNTED)
    experiment["model"]["epochs"] = EPOCHS
    scores: dict[int, list[float]] = {1: [], 2: []}
    for seed in SEEDS:
        for hosts in (HOSTS[:1], HOSTS):
            iou, seconds = train(experiment, hosts, f"runtime.seed={seed}", *overrides)
            scores[len(hosts)].append(iou)
            print(
                f"seed {seed}, {len(hosts)} host(s): last epoch's val IoU {iou:.4f} after {seconds:.0f} s", flush=True
            )
    for count, ious in scores.items():
        print(f"{count} host(s): mean {statistics.mean(ious):.4f}")


def train(experiment: dict[str, Any], hosts: tuple[str, ...], *overrides: str) -> tuple[float, float]:
    """The last epoch's val IoU, and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        job = Hosts(IMAGE, real_tiles.FOLDER, Path(folder))
        try:
            for host in hosts:
                ids = job.base(host) / "input/data/ids/test_ids.txt"
                ids.parent.mkdir(parents=True)
                ids.write_text("\n".join(real_tiles.val_ids(SCENE, MOUNTED)))
            started = time.monotonic()
            job.start(experiment, *overrides, hosts=hosts)
            codes = job.end(hosts)
            seconds = time.monotonic() - started
            if any(codes):
                sys.exit(f"{job.log(HOSTS[0])}\nthe hosts ended with {codes}")
            numbers = json.loads((job.base(HOSTS[0]) / "model/metrics.json").read_text())
        finally:
            job.close()
    return numbers["val"]["iou"], seconds


if __name__ == "__main__":
    main(*sys.argv[1:])
