"""A process for each GPU of this host: which there shall be, started here where no launcher has done it.

Called by `train`. Ranks follow the sorted hosts of resourceconfig.json. torchrun and other launchers that set RANK and
WORLD_SIZE are left to their own.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from robosat_pink.config import RuntimeConfig
from robosat_pink.container import hardware
from robosat_pink.container.contract import Container
from robosat_pink.container.stop_request import StopRequest
from robosat_pink.errors import ConfigError, RobosatError

log = logging.getLogger(__name__)

PORT = 29500  # of the first host, for the others to find each other
POLL_S = 0.1
MOST_PROCESSES = 10**6  # of a run
MOST_SHOWN = 100  # characters of a variable
TOGETHER = "RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT go together, as torchrun sets them"
GRACE_S = 60.0  # in which the others end by themselves when one has failed


@dataclass(frozen=True)
class ProcessRank:
    """Where a process stands among those of a run, and where they meet."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of its host
    local_size: int = 1
    address: str = "127.0.0.1"
    port: int = PORT

    def environment(self) -> dict[str, str]:
        """As launchers say it."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


SINGLE_PROCESS = ProcessRank()
PARENT = "ROBOSAT_PINK_PARENT"  # the process that has started this one, in its environment
PR_SET_PDEATHSIG = 1  # prctl.h


def rank_from_environment(environment: Mapping[str, str]) -> ProcessRank | None:
    """What a launcher says, or None where there is none. Raises ConfigError where it says half of it."""
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        return None
    size = _number(environment, "WORLD_SIZE", 1, MOST_PROCESSES)
    if size > 1 and not environment.get("MASTER_ADDR"):
        raise ConfigError(f"environment: MASTER_ADDR is missing; {TOGETHER}")
    return ProcessRank(
        rank=_number(environment, "RANK", 0, size - 1),
        size=size,
        local_rank=_number({"LOCAL_RANK": "0", **environment}, "LOCAL_RANK", 0, MOST_PROCESSES),
        local_size=_number({"LOCAL_WORLD_SIZE": "1", **environment}, "LOCAL_WORLD_SIZE", 1, MOST_PROCESSES),
        address=environment["MASTER_ADDR"] if size > 1 else "127.0.0.1",
        port=_number(environment, "MASTER_PORT", 1, 65_535) if size > 1 else PORT,
    )


def _number(environment: Mapping[str, str], name: str, low: int, high: int, advice: str = TOGETHER) -> int:
    """Raises ConfigError for what is no whole number from `low` to `high`."""
    text = environment.get(name)
    if text is None:
        raise ConfigError(f"environment: {name} is missing; {advice}")
    if not re.fullmatch(r"\s*-?[0-9]{1,10}\s*", text) or not low <= int(text) <= high:
        accepted = f"accepted: a whole number from {low} to {high}"
        raise ConfigError(f"environment: {name} = {text[:MOST_SHOWN]!r}: {accepted}; {advice}")
    return int(text)


def ranks_of_this_host(container: Container, runtime: RuntimeConfig) -> list[ProcessRank]:
    """Of the processes that this host shall have."""
    hosts, current = container.hosts()
    count = runtime.processes if runtime.processes != "auto" else _gpus() if runtime.device != "cpu" else 1
    first = hosts.index(current) * count
    address, port = (hosts[0], PORT) if len(hosts) > 1 else ("127.0.0.1", PORT if count == 1 else _free_port())
    return [ProcessRank(first + each, len(hosts) * count, each, count, address, port) for each in range(count)]


def end_with_parent(environment: Mapping[str, str]) -> None:
    """Have the system end this process with the one that has started it: two runs in one folder would be at odds."""
    if environment.get(PARENT):
        parent = _number(environment, PARENT, 1, 2**31 - 1, "this program sets it; unset it")
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it is gone already
            os._exit(1)


def run(here: Sequence[ProcessRank], arguments: Sequence[str], stop: StopRequest, container: Container) -> int:
    """Start the processes, pass a stop request on, and wait for them: the exit code of the one that failed, or 0.

    Those that are left when one has failed end by themselves, or are ended.
    """
    command = [sys.executable, "-m", "robosat_pink.train", *arguments]
    stop.is_polled = True
    # Sessions of their own: what a terminal sends reaches them once, from here.
    environment = os.environ | {PARENT: str(os.getpid())}
    children = [
        subprocess.Popen(command, env=environment | process.environment(), start_new_session=True)  # noqa: S603
        for process in here
    ]
    failed_at: float | None = None
    is_stopped = False
    while True:
        codes = [child.poll() for child in children]
        # A process that is asked to stop before it can be is ended by the signal.
        failures = [
            (process, code)
            for process, code in zip(here, codes, strict=True)
            if code and not (is_stopped and code == -signal.SIGTERM)
        ]
        if failures and failed_at is None:
            failed_at = time.monotonic()
        if None not in codes or (failed_at is not None and time.monotonic() - failed_at > GRACE_S):
            break
        if stop.requested and not is_stopped:
            is_stopped = True
            for child in children:
                child.send_signal(signal.SIGTERM)
        time.sleep(POLL_S)
    for child in children:
        child.kill()
        child.wait()
    if not failures:
        return 0
    # Who was killed, else who has a cause of its own: who only noticed exits with 1.
    process, code = min(failures, key=lambda each: (each[1] > 0, -each[1]))
    if code < 0:
        advice = (
            "; most likely the memory ran out: lower model.batch_size or runtime.workers, or take a machine with more"
            if code == -signal.SIGKILL
            else ""
        )
        container.write_failure(
            RobosatError(f"process {process.rank} of {process.size} was killed by {signal.Signals(-code).name}{advice}")
        )
    return 128 - code if code < 0 else code


def _gpus() -> int:
    """At least one process; torch is asked only where there is a driver."""
    if not hardware.NVIDIA_DRIVER.exists():
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
