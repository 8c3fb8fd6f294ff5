"""The hosts of a job as containers on a network of their own, as the platform lays them out."""

import csv
import json
import time
import uuid
from pathlib import Path
from typing import Any

import yaml

from container.engine import SHARING, docker

HOSTS = ("algo-1", "algo-2")


class Hosts:
    """The containers of a job, each with an /opt/ml of its own and the same experiment."""

    def __init__(self, image: str, data: Path, folder: Path) -> None:
        self.image, self.data, self.folder = image, data, folder
        self.network = f"robosat-pink-{uuid.uuid4().hex[:8]}"
        assert docker("network", "create", self.network).returncode == 0

    def base(self, host: str) -> Path:
        return self.folder / host

    def start(self, experiment: dict[str, Any], *arguments: str, hosts: tuple[str, ...] = HOSTS) -> None:
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
                *(*SHARING, self.image, "train", *arguments),
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
