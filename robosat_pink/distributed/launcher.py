"""Starts the training processes of this host, by default one per GPU, each with its rank. Called by `train`.

Hosts get ranks in the sorted order of resourceconfig.json. Under torchrun, or another launcher that sets RANK and
WORLD_SIZE, this module starts nothing.
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
from typing import TYPE_CHECKING

from robosat_pink.container import hardware
from robosat_pink.container.contract import Container
from robosat_pink.container.stop_request import StopRequest
from robosat_pink.errors import ConfigError, RobosatError

if TYPE_CHECKING:
    from robosat_pink.config import RuntimeConfig

log = logging.getLogger(__name__)

PORT = 29500  # the port of rank 0 for the rendezvous
POLL_S = 0.1
MOST_PROCESSES = 10**6  # in a run
MOST_SHOWN = 100  # characters of a variable's value in an error
TOGETHER = "RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT go together, as torchrun sets them"
GRACE_S = 60.0  # time for the other ranks to end by themselves after one has failed


@dataclass(frozen=True)
class ProcessRank:
    """The rank of a process, and the address of rank 0."""

    rank: int = 0
    size: int = 1  # world size
    local_rank: int = 0  # rank among the processes of its host
    local_size: int = 1
    address: str = "127.0.0.1"
    port: int = PORT

    def environment(self) -> dict[str, str]:
        """The environment variables of this rank, as torchrun sets them."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


SINGLE_PROCESS = ProcessRank()
PARENT = "ROBOSAT_PINK_PARENT"  # environment variable with the launcher's process id
PR_SET_PDEATHSIG = 1  # prctl.h


def rank_from_environment(environment: Mapping[str, str]) -> ProcessRank | None:
    """The rank that a launcher has set; None without a launcher.

    Raises ConfigError for missing or impossible variables.
    """
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
    """The value of a variable. Raises ConfigError unless it is a whole number from `low` to `high`."""
    text = environment.get(name)
    if text is None:
        raise ConfigError(f"environment: {name} is missing; {advice}")
    if not re.fullmatch(r"\s*-?[0-9]{1,10}\s*", text) or not low <= int(text) <= high:
        accepted = f"accepted: a whole number from {low} to {high}"
        raise ConfigError(f"environment: {name} = {text[:MOST_SHOWN]!r}: {accepted}; {advice}")
    return int(text)


def ranks_of_this_host(container: Container, runtime: RuntimeConfig) -> list[ProcessRank]:
    """The ranks of this host: `runtime.processes`, or for `auto` one per GPU that the run may use."""
    hosts, current = container.hosts()
    count = runtime.processes
    if count == "auto":
        count = 1 if runtime.device == "cpu" else _gpus()
    first_rank = hosts.index(current) * count
    address, port = "127.0.0.1", PORT
    if len(hosts) > 1:
        address = hosts[0]
    elif count > 1:
        port = _free_port()  # several runs may share the machine
    return [
        ProcessRank(first_rank + local_rank, len(hosts) * count, local_rank, count, address, port)
        for local_rank in range(count)
    ]


def end_with_parent(environment: Mapping[str, str]) -> None:
    """Have the kernel kill this process if the launcher dies: the next run may write to the same folder."""
    if environment.get(PARENT):
        parent = _number(environment, PARENT, 1, 2**31 - 1, "not for users to set; unset it")
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the launcher died before the call
            os._exit(1)


def run_ranks(
    module: str, ranks: Sequence[ProcessRank], arguments: Sequence[str], stop: StopRequest, container: Container
) -> int:
    """Start the ranks of this host, forward a stop request, and wait. Returns the failed rank's exit code, or 0.

    Each is `python -m MODULE ARGUMENT ...`. When a rank has failed, the others end by themselves, or are killed after
    GRACE_S.
    """
    stop.is_polled = True
    children = _start(module, ranks, arguments)
    failed_at: float | None = None
    is_stopped = False
    while True:
        codes = [child.poll() for child in children]
        failures = [
            (process, code)
            for process, code in zip(ranks, codes, strict=True)
            # The SIGTERM of a stop kills a rank that has no signal handler yet: that is no failure.
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
    return _exit_code(failures, container) if failures else 0


def _start(module: str, ranks: Sequence[ProcessRank], arguments: Sequence[str]) -> list[subprocess.Popen[bytes]]:
    """Start each rank in its own session, so that a terminal signals only this process, which forwards signals once."""
    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | {PARENT: str(os.getpid())}
    return [
        subprocess.Popen(command, env=environment | process.environment(), start_new_session=True)  # noqa: S603
        for process in ranks
    ]


def _exit_code(failures: Sequence[tuple[ProcessRank, int]], container: Container) -> int:
    """The exit code of the rank that caused the failure; for a killed one, also writes the failure file.

    A killed rank takes precedence, then the rank with the highest code: ranks that only lost a peer exit with 1.
    """
    process, code = min(failures, key=lambda failure: (failure[1] > 0, -failure[1]))
    if code > 0:
        return code
    advice = f", {hardware.KILLED_ADVICE}" if code == -signal.SIGKILL else ""
    name = signal.Signals(-code).name
    container.write_failure(RobosatError(f"rank {process.rank} of {process.size} was killed by {name}{advice}"))
    return 128 - code


def _gpus() -> int:
    """The number of GPUs, at least 1. Imports torch only if there is an NVIDIA driver."""
    if not hardware.NVIDIA_DRIVER.exists():
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
