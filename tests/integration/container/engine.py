"""Driving a Docker engine from outside, as a shell does."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
IMAGE = "robosat_pink:test"
SMOKE = ROOT / "experiments/smoke.yml"
# Some engines have no network of their own for containers; the build needs one, the runs do not.
NETWORK = ("--network", "host")
# Threads that wait for each other give the core up: other tests run beside these.
SHARING = ("--env", "OMP_WAIT_POLICY=PASSIVE")


def mounted_profile(folder: Path) -> tuple[str, ...]:
    """Options by which a container reads the profiles in a folder, as the README has them."""
    files = {"AWS_CONFIG_FILE": "config", "AWS_SHARED_CREDENTIALS_FILE": "credentials"}
    variables = [word for name, file in files.items() for word in ("--env", f"{name}=/aws/{file}")]
    return ("--volume", f"{folder}:/aws:ro", *variables)


def docker(*arguments: object, timeout_s: int = 900, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shutil.which("docker") or "docker", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        env=os.environ | environment,
    )


def builder() -> dict[str, str]:
    """BuildKit, where the client has it built in; later ones take their plugin if there is one."""
    version = docker("version", "--format", "{{.Client.Version}}").stdout
    return {"DOCKER_BUILDKIT": "1"} if int(version.split(".")[0]) < 23 else {}


class Job:
    """Runs the image on an /opt/ml tree, without a network unless asked, and says how it ended."""

    def __init__(self, image: str, base: Path) -> None:
        self.image, self.base, self.number = image, base, 0

    def start(self, *arguments: object, options: tuple[object, ...] = (), network: str = "none") -> str:
        """A container in the background; returns its name."""
        self.number += 1
        name = f"robosat-pink-test-{os.getpid()}-{id(self)}-{self.number}"
        started = docker(
            "run", "--detach", "--name", name, "--network", network, "--volume", f"{self.base}:/opt/ml", *SHARING,
            *options, self.image, *arguments,
        )  # fmt: skip
        assert started.returncode == 0, started.stderr
        return name

    def wait(self, name: str) -> tuple[int, str]:
        """Exit code and log of a container that has ended by itself or otherwise."""
        docker("wait", name)
        code = int(docker("inspect", "--format", "{{.State.ExitCode}}", name).stdout)
        logs = docker("logs", name)
        docker("rm", name)
        return code, logs.stdout + logs.stderr

    def run(self, *arguments: object, options: tuple[object, ...] = (), network: str = "none") -> tuple[int, str]:
        return self.wait(self.start(*arguments, options=options, network=network))

    def config(self, name: str, content: Any) -> None:
        (self.base / "input/config" / f"{name}.json").write_text(json.dumps(content))

    def experiment(self, **changed: Any) -> None:
        tree = yaml.safe_load(SMOKE.read_text())
        for section, values in changed.items():
            tree[section] = tree.get(section, {}) | values
        (self.base / "input/data/config/smoke.yml").write_text(yaml.safe_dump(tree))

    @property
    def model(self) -> set[str]:
        return {path.name for path in (self.base / "model").iterdir()}

    @property
    def cause(self) -> str:
        return (self.base / "output/failure").read_text().splitlines()[0]
