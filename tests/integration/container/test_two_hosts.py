"""Two containers on a network of their own, as the platform lays out a job of two hosts: they train as one."""

import csv
import json
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from container.engine import docker

pytestmark = pytest.mark.docker

HOSTS = ("algo-1", "algo-2")
EXPERIMENT: dict[str, Any] = {
    "dataset": {
        "image_bucket": "/data/imagery",
        "mask_bucket": "/data/mask",
        "imagery_directory_regex": "l7_everest_glacier$",
        "mask_directory_regex": "l7_everest_glacier$",
        "train_percent": 0.9,
    },
    "classes": [{"name": "glacier"}],
    "channels": [{"bands": [1, 2, 3, 4], "mean": [0.711, 0.674, 0.696, 0.561], "std": [0.281, 0.300, 0.295, 0.308]}],
    "model": {"name": "albunet", "encoder": "resnet18", "num_filters": 16, "tile_size": 64, "batch_size": 4},
    "runtime": {"workers": 0, "precision": "fp32", "peer_timeout_s": 30},
}


class Hosts:
    """The containers of a job, each with an /opt/ml of its own and the same experiment."""

    def __init__(self, image: str, data: Path, folder: Path) -> None:
        self.image, self.data, self.folder = image, data, folder
        self.network = f"robosat-pink-{uuid.uuid4().hex[:8]}"
        assert docker("network", "create", self.network).returncode == 0

    def base(self, host: str) -> Path:
        return self.folder / host

    def start(self, *arguments: str, hosts: tuple[str, ...] = HOSTS, **model: Any) -> None:
        experiment = EXPERIMENT | {"model": EXPERIMENT["model"] | model}
        for host in hosts:
            base = self.base(host)
            for name in ("input/config", "input/data/config"):
                (base / name).mkdir(parents=True, exist_ok=True)
            (base / "input/data/config/experiment.yml").write_text(yaml.safe_dump(experiment))
            resource = {"current_host": host, "hosts": list(hosts), "network_interface_name": "eth0"}
            (base / "input/config/resourceconfig.json").write_text(json.dumps(resource))
            started = docker(
                *("run", "--detach", "--name", self.container(host), "--hostname", host, "--network", self.network),
                *("--network-alias", host, "--volume", f"{base}:/opt/ml", "--volume", f"{self.data}:/data:ro"),
                *(self.image, "train", *arguments),
            )
            assert started.returncode == 0, started.stderr

    def container(self, host: str) -> str:
        return f"{self.network}-{host}"

    def log(self, host: str) -> str:
        found = docker("logs", self.container(host))
        return found.stdout + found.stderr

    def until(self, host: str, says: str) -> None:
        deadline = time.monotonic() + 120
        while says not in (log := self.log(host)):
            assert time.monotonic() < deadline, log
            time.sleep(0.2)

    def end(self, hosts: tuple[str, ...] = HOSTS) -> list[int]:
        """Wait for them: their exit codes, and the network is free of them."""
        codes = []
        for host in hosts:
            docker("wait", self.container(host))
            codes.append(int(docker("inspect", "--format", "{{.State.ExitCode}}", self.container(host)).stdout))
        return codes

    def remove(self) -> None:
        for host in HOSTS:
            docker("rm", "--force", self.container(host))

    def close(self) -> None:
        self.remove()
        docker("network", "rm", self.network)

    def history(self, host: str = "algo-1") -> list[dict[str, str]]:
        with (self.base(host) / "model/history.csv").open() as file:
            return list(csv.DictReader(file))


@pytest.fixture
def hosts(image: str, shared: Path, tmp_path: Path) -> Iterator[Hosts]:
    found = Hosts(image, shared / "data", tmp_path)
    yield found
    found.close()


def test_two_hosts_have_the_losses_of_one_with_the_same_batches(hosts: Hosts) -> None:
    """An epoch is one step of all its tiles, and so its loss is that step's."""
    settings = {"batch_norm": "frozen", "batch_size": 64, "epochs": 20}
    hosts.start(**settings)
    assert hosts.end() == [0, 0], hosts.log("algo-1")
    two = hosts.history()
    assert not (hosts.base("algo-2") / "model/best.pth").exists()  # one writes
    assert "phase=" not in hosts.log("algo-2")
    hosts.remove()
    shutil.rmtree(hosts.base("algo-1"))
    hosts.start(hosts=("algo-1",), **settings)
    assert hosts.end(("algo-1",)) == [0], hosts.log("algo-1")
    one = hosts.history()
    assert len(one) == len(two) == 20
    assert float(one[-1]["train_loss"]) < float(one[0]["train_loss"])
    for first, second in zip(one, two, strict=True):
        assert first["train_tiles"] == second["train_tiles"]
        assert float(second["train_loss"]) == pytest.approx(float(first["train_loss"]), abs=1e-4)


def test_when_one_host_vanishes_the_other_fails_within_the_timeout_and_names_it(hosts: Hosts) -> None:
    hosts.start(epochs=1000)
    hosts.until("algo-1", "phase=val epoch=1 ")
    started = time.monotonic()
    docker("kill", hosts.container("algo-2"))
    assert hosts.end(("algo-1",)) == [1], hosts.log("algo-1")
    assert time.monotonic() - started < 45
    failure = (hosts.base("algo-1") / "output/failure").read_text()
    assert failure.startswith("host algo-2 has vanished")


def test_when_the_first_host_vanishes_the_other_names_it_too(hosts: Hosts) -> None:
    hosts.start(epochs=1000)
    hosts.until("algo-1", "phase=val epoch=1 ")
    docker("kill", hosts.container("algo-1"))
    assert hosts.end(("algo-2",)) == [1], hosts.log("algo-2")
    assert (hosts.base("algo-2") / "output/failure").read_text().startswith("host algo-1 has vanished")


def test_both_hosts_that_are_stopped_exit_with_0_and_leave_one_resume_point(hosts: Hosts) -> None:
    for host in HOSTS:
        (hosts.base(host) / "checkpoints").mkdir(parents=True)
    hosts.start(epochs=1000)
    hosts.until("algo-1", "training on")
    time.sleep(1)
    for host in HOSTS:
        docker("kill", "--signal", "SIGTERM", hosts.container(host))
    assert hosts.end() == [0, 0], hosts.log("algo-1") + hosts.log("algo-2")
    points = [path.name for host in HOSTS for path in (hosts.base(host) / "checkpoints").iterdir()]
    assert len(points) == 1, points
    assert not any((hosts.base(host) / "output/failure").exists() for host in HOSTS)


def test_host_that_does_not_come_is_an_error_in_words(hosts: Hosts) -> None:
    hosts.start("runtime.peer_timeout_s=3", hosts=HOSTS)
    docker("rm", "--force", hosts.container("algo-2"))
    assert hosts.end(("algo-1",)) == [5], hosts.log("algo-1")
    assert "algo-2" in (hosts.base("algo-1") / "output/failure").read_text()
