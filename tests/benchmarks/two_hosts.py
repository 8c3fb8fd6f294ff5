"""What l7_everest_glacier teaches one host, and two in containers on a Docker network: val IoU and time, in one run.

    python tests/benchmarks/two_hosts.py [KEY=VALUE ...]

The training of accuracy.py, with ordinary batch norm, in the image robosat_pink:test, which it builds. Needs a Docker
engine and the folder of real tiles (../shared/data).
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import accuracy

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from container.engine import IMAGE, NETWORK, ROOT
from container.hosts import HOSTS, Hosts

SCENE = "l7_everest_glacier"


def main(*overrides: str) -> None:
    subprocess.run(["docker", "build", "--quiet", *NETWORK, "--tag", IMAGE, ROOT], check=True)
    settings = accuracy.SCENES[SCENE]
    experiment = accuracy.experiment(SCENE, settings)
    experiment["dataset"] |= {
        "image_bucket": "/data/imagery",
        "mask_bucket": "/data/mask",
        "split": {"from": "/opt/ml/input/data/ids/test_ids.txt"},
    }
    for hosts in (HOSTS[:1], HOSTS):
        with tempfile.TemporaryDirectory() as folder:
            job = Hosts(IMAGE, accuracy.SHARED, Path(folder))
            try:
                for host in hosts:
                    ids = job.base(host) / "input/data/ids/test_ids.txt"
                    ids.parent.mkdir(parents=True)
                    ids.write_text("".join(accuracy.val_ids(SCENE, bucket="_data_imagery")))
                started = time.monotonic()
                job.start(experiment, *overrides, hosts=hosts)
                codes = job.end(hosts)
                seconds = time.monotonic() - started
                print(job.log(HOSTS[0]), flush=True)
                if any(codes):
                    sys.exit(f"the hosts ended with {codes}")
                numbers = json.loads((job.base(HOSTS[0]) / "model/metrics.json").read_text())
            finally:
                job.close()
        print(f"{len(hosts)} hosts: last epoch's val IoU {numbers['val']['iou']:.4f} after {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
