"""The processes that train together, on the GPUs of one host or on several hosts: their ranks, and what they agree on.

Called by `train` and what it is made of. Every process reads its own share of each batch and has all of the network;
gradients are averaged by DistributedDataParallel. Small things are agreed on the CPU, by gloo: they wait for no GPU.
Who ends, and why, the others learn from a store that the first process keeps, so that nobody waits for the dead.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from robosat_pink.container import hardware
from robosat_pink.container.contract import Container
from robosat_pink.container.interruptible import interruptibly
from robosat_pink.container.stop_request import StopRequest
from robosat_pink.distributed.heartbeat import Heartbeat
from robosat_pink.distributed.launcher import SINGLE_PROCESS, ProcessRank
from robosat_pink.errors import ContractError, RobosatError

T = TypeVar("T")
INTERFACES = Path("/sys/class/net")
NAME_PAUSE_S = 1.0  # between two tries to resolve the name of a host


@dataclass
class World:
    """All processes of a run, seen from one of them. Alone, everything agrees at once."""

    process: ProcessRank = SINGLE_PROCESS
    _group: Any = field(default=None, repr=False)  # on the CPU
    _heartbeat: Heartbeat | None = field(default=None, repr=False)

    @property
    def rank(self) -> int:
        return self.process.rank

    @property
    def size(self) -> int:
        return self.process.size

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes what a run leaves."""
        return self.rank == 0

    def sum_over_ranks(self, *numbers: int) -> tuple[int, ...]:
        """The sums of each number over all processes."""
        if self.size == 1:
            return numbers
        sums = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(sums, group=self._group)
        return tuple(sums.tolist())

    def all_reduce_sum(self, *tensors: torch.Tensor) -> None:
        """Each tensor becomes the sum over all processes, where it is: on the device or on the CPU."""
        for each in tensors if self.size > 1 else ():
            dist.all_reduce(each, group=self._group if each.device.type == "cpu" else None)

    def all_gather(self, value: Any) -> list[Any]:
        """Everyone's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """What `work` gives in the first process; what it raises there is raised everywhere."""
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.is_rank_zero:
            try:
                outcome = [work(), None]
            except RobosatError as error:
                outcome = [None, error]
        dist.broadcast_object_list(outcome, src=0, group=self._group, device=torch.device("cpu"))
        value, failure = outcome
        if failure is not None:
            raise failure
        result: T = value
        return result

    def neighbours(self) -> int:
        """How many processes are on this machine, in whatever containers, this one among them."""
        machines = self.all_gather(hardware.boot_id())
        return machines.count(machines[self.rank]) if machines[self.rank] else self.process.local_size

    def data_parallel(self, model: nn.Module, device: torch.device, parts: int) -> nn.Module:
        """The network as training calls it, in so many parts a step: its gradients are those of the whole batch."""
        if self.size == 1:
            return model
        return DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            static_graph=parts == 1,  # torch 2.10 breaks off where that meets no_sync
        )

    def no_sync(self, network: nn.Module, is_wanted: bool) -> contextlib.AbstractContextManager[None]:
        """For a backward whose gradients are added up here until a later one."""
        if is_wanted and isinstance(network, DistributedDataParallel):
            return network.no_sync()
        return contextlib.nullcontext()

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Batch norm's statistics become the first process's, as in the next step of training, and in what is saved."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0, group=self._group if buffer.device.type == "cpu" else None)

    def release(self) -> None:
        """What is computed together is done; the first process may have more to write."""
        if self._heartbeat:
            self._heartbeat.release()
            dist.destroy_process_group()


@contextlib.contextmanager
def joined(container: Container, process: ProcessRank, timeout_s: float, stop: StopRequest) -> Iterator[World]:
    """The world of this process, while it is needed. What ends one process ends all of them, with the reason.

    Raises ContractError where the others do not come within the time, PeerFailed where one of them fails.
    """
    if process.size == 1:
        yield World(process)
        return
    hosts, current = container.hosts()
    _use_interface(container.network_interface())
    if len(hosts) > 1:
        os.environ.setdefault("NCCL_HOSTID", current)  # containers may have one host name
        for host in hosts:
            _wait_for(host, timeout_s)
    store, group = interruptibly(lambda: _meet(process, timeout_s))
    host = current if len(hosts) > 1 else socket.gethostname()
    heartbeat = interruptibly(lambda: Heartbeat(store, process, host, timeout_s, container))
    error: BaseException | None = None
    try:
        yield World(process, group, heartbeat)
    except BaseException as raised:  # the group is left as it is: to end it may wait for the dead
        error = raised
    ending = heartbeat.end(error, stop)
    if ending is not None and ending is not error:
        raise ending from error
    if error is not None:
        raise error


def _meet(process: ProcessRank, timeout_s: float) -> tuple[Any, Any]:
    """The store, and the group on the CPU."""
    os.environ.update(process.environment())
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # it aborts the process; `heartbeat` says why it ends
    timeout = timedelta(seconds=timeout_s)
    try:
        store, rank, size = next(rendezvous("env://", timeout=timeout))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=PrefixStore("group", store), rank=rank, world_size=size, timeout=timeout)
        return store, dist.new_group(backend="gloo", timeout=timeout)
    except (dist.DistError, RuntimeError) as error:
        raise ContractError(
            f"the {process.size} processes did not find each other at {process.address}:{process.port} within "
            f"{timeout_s:g} s (this is process {process.rank}): {error}. Hosts must reach each other on all ports; "
            "runtime.peer_timeout_s is how long they wait"
        ) from error


def _use_interface(name: str | None) -> None:
    """Have gloo and NCCL talk over the interface that the platform names, if this machine has it."""
    if name and os.path.exists(INTERFACES / name):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def _wait_for(host: str, timeout_s: float) -> None:
    """Until the name resolves: the hosts of a job do not start at the same time."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            if time.monotonic() > deadline:
                raise ContractError(
                    f"the name of host {host} does not resolve after {timeout_s:g} s ({error}); resourceconfig.json "
                    "names the hosts, which must know each other's names"
                ) from error
            time.sleep(NAME_PAUSE_S)
        else:
            return
