"""Two containers on a network of their own, as the platform lays out a job of two hosts: they train as one."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from container.engine import docker
from container.hosts import HOSTS, Hosts
from robosat_pink.sample import write_tiles

pytestmark = pytest.mark.docker

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


def experiment(**model: Any) -> dict[str, Any]:
    return EXPERIMENT | {"model": EXPERIMENT["model"] | model}


@pytest.fixture
def hosts(image: str, shared: Path, tmp_path: Path) -> Iterator[Hosts]:
    found = Hosts(image, shared / "data", tmp_path)
    yield found
    found.close()


def test_two_hosts_with_a_copy_of_the_tiles_each_train(image: str, tmp_path: Path) -> None:
    """As channels in File mode are: on each host the same names and content, and other times and inodes."""
    hosts = Hosts(image, tmp_path, tmp_path)
    for day, host in enumerate(HOSTS):
        write_tiles(hosts.base(host) / "input/data", tiles=2, size=64)
        for path in (hosts.base(host) / "input/data").rglob("*.tif"):
            os.utime(path, (86400 * day, 86400 * day))
    dataset = {"image_bucket": "channel:imagery", "mask_bucket": "channel:mask", "train_percent": 0.5}
    channels = [{"bands": [1, 2, 3, 4], "scale": 10000}]
    try:
        hosts.start(experiment(epochs=2) | {"dataset": dataset, "channels": channels})
        assert hosts.end() == [0, 0], hosts.log("algo-1") + hosts.log("algo-2")
        assert [row["train_tiles"] for row in hosts.history()] == ["2", "2"]
    finally:
        hosts.close()


def test_two_hosts_have_the_losses_of_one_with_the_same_batches(hosts: Hosts) -> None:
    """An epoch is one step of all its tiles, and so its loss is that step's.

    With other numbers of threads float32 is summed in another order, which by epoch 20 has grown to 3e-4.
    """
    frozen = experiment(batch_norm="frozen", batch_size=64, epochs=6)
    hosts.start(frozen)
    assert hosts.end() == [0, 0], hosts.log("algo-1")
    two = hosts.history()
    assert not (hosts.base("algo-2") / "model/best.pth").exists()  # one writes
    assert "phase=" not in hosts.log("algo-2")
    hosts.remove()
    shutil.rmtree(hosts.base("algo-1"))
    hosts.start(frozen, hosts=("algo-1",))
    assert hosts.end(("algo-1",)) == [0], hosts.log("algo-1")
    one = hosts.history()
    assert len(one) == len(two) == 6
    assert float(one[-1]["train_loss"]) < float(one[0]["train_loss"])
    for first, second in zip(one, two, strict=True):
        assert first["train_tiles"] == second["train_tiles"]
        assert float(second["train_loss"]) == pytest.approx(float(first["train_loss"]), abs=1e-5)


def test_when_one_host_vanishes_the_other_fails_within_the_timeout_and_names_it(hosts: Hosts) -> None:
    hosts.start(experiment(epochs=1000))
    hosts.until("algo-1", "phase=val epoch=1 ")
    started = time.monotonic()
    docker("kill", hosts.container("algo-2"))
    assert hosts.end(("algo-1",)) == [1], hosts.log("algo-1")
    assert time.monotonic() - started < 45
    failure = (hosts.base("algo-1") / "output/failure").read_text()
    assert failure.startswith("host algo-2 has vanished")


def test_when_the_first_host_vanishes_the_other_names_it_too(hosts: Hosts) -> None:
    hosts.start(experiment(epochs=1000))
    hosts.until("algo-1", "phase=val epoch=1 ")
    docker("kill", hosts.container("algo-1"))
    assert hosts.end(("algo-2",)) == [1], hosts.log("algo-2")
    assert (hosts.base("algo-2") / "output/failure").read_text().startswith("host algo-1 has vanished")


def test_both_hosts_that_are_stopped_exit_with_0_and_leave_one_resume_point(hosts: Hosts) -> None:
    for host in HOSTS:
        (hosts.base(host) / "checkpoints").mkdir(parents=True)
    hosts.start(experiment(epochs=1000))
    hosts.until("algo-1", "training on")
    time.sleep(1)
    for host in HOSTS:
        docker("kill", "--signal", "SIGTERM", hosts.container(host))
    assert hosts.end() == [0, 0], hosts.log("algo-1") + hosts.log("algo-2")
    points = [path.name for host in HOSTS for path in (hosts.base(host) / "checkpoints").iterdir()]
    assert len(points) == 1, points
    assert not any((hosts.base(host) / "output/failure").exists() for host in HOSTS)


def test_host_that_does_not_come_is_an_error_in_words(hosts: Hosts) -> None:
    hosts.start(experiment(), "runtime.peer_timeout_s=3")
    docker("rm", "--force", hosts.container("algo-2"))
    assert hosts.end(("algo-1",)) == [5], hosts.log("algo-1")
    assert "algo-2" in (hosts.base("algo-1") / "output/failure").read_text()
