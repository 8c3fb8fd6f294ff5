"""The process group of a run: ranks, world size, collectives, on one host or several. Called by `train`.

Every rank has the whole model and reads its share of each batch; DistributedDataParallel averages gradients. Counts and
decisions are exchanged over gloo on the CPU, without waiting for a GPU.
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
RESOLVE_EVERY_S = 1.0  # while the name of a host does not resolve yet


@dataclass
class World:
    """The ranks of a run, seen from one of them. With one rank, collectives return at once."""

    process: ProcessRank = SINGLE_PROCESS
    _group: Any = field(default=None, repr=False)  # the gloo group, for tensors on the CPU
    _heartbeat: Heartbeat | None = field(default=None, repr=False)

    @property
    def rank(self) -> int:
        return self.process.rank

    @property
    def size(self) -> int:
        return self.process.size

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes the outputs."""
        return self.rank == 0

    def sum_over_ranks(self, *numbers: int) -> tuple[int, ...]:
        """Each number summed over all ranks."""
        if self.size == 1:
            return numbers
        sums = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(sums, group=self._group)
        return tuple(sums.tolist())

    def all_reduce_sum(self, *tensors: torch.Tensor) -> None:
        """Sum each tensor over all ranks, in place, on its device."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor, group=self._group_of(tensor))

    def all_gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """The result of work() on rank 0, broadcast to all; a RobosatError of rank 0 is raised on all."""
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

    def ranks_on_this_machine(self) -> int:
        """The number of ranks in all containers of this machine, this rank included."""
        boot_ids = self.all_gather(hardware.boot_id())
        return boot_ids.count(boot_ids[self.rank]) if boot_ids[self.rank] else self.process.local_size

    def data_parallel(self, model: nn.Module, device: torch.device, micro_batches: int) -> nn.Module:
        """The model wrapped in DistributedDataParallel, if there are several ranks."""
        if self.size == 1:
            return model
        return DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            static_graph=micro_batches == 1,  # torch 2.10 fails if no_sync meets a static graph
        )

    def no_sync(self, wrapped_model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """A context for a backward pass that accumulates gradients on this rank, without averaging them yet."""
        if isinstance(wrapped_model, DistributedDataParallel):
            return wrapped_model.no_sync()
        return contextlib.nullcontext()

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Broadcast rank 0's batch norm statistics, which checkpoints contain, to all ranks."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0, group=self._group_of(buffer))

    def release(self) -> None:
        """Leave the process group after the last collective. Rank 0 may still write files."""
        if self._heartbeat:
            self._heartbeat.release()
            dist.destroy_process_group()

    def _group_of(self, tensor: torch.Tensor) -> Any:
        return self._group if tensor.device.type == "cpu" else None  # None: the default group, NCCL on a GPU


@contextlib.contextmanager
def joined(container: Container, process: ProcessRank, timeout_s: float, stop: StopRequest) -> Iterator[World]:
    """A context with the world of this process. If a rank fails, all ranks end and report the cause.

    Raises ContractError if the ranks do not find each other within `timeout_s`, RankFailed if another rank fails.
    """
    if process.size == 1:
        yield World(process)
        return
    hosts, current = container.hosts()
    _use_interface(container.network_interface())
    if len(hosts) > 1:
        os.environ.setdefault("NCCL_HOSTID", current)  # containers may share a host name
        for host in hosts:
            _wait_for_name(host, timeout_s)
    store, group = interruptibly(lambda: _init_process_group(process, timeout_s))
    host = current if len(hosts) > 1 else socket.gethostname()
    heartbeat = interruptibly(lambda: Heartbeat(store, process, host, timeout_s, container))
    error: BaseException | None = None
    try:
        yield World(process, group, heartbeat)
    except BaseException as raised:  # destroying the group could wait for a rank that is gone
        error = raised
    ending = heartbeat.end(error, stop)
    if ending is not None and ending is not error:
        raise ending from error
    if error is not None:
        raise error


def _init_process_group(process: ProcessRank, timeout_s: float) -> tuple[Any, Any]:
    """The store of rank 0, and a gloo group."""
    os.environ.update(process.environment())
    # Otherwise NCCL aborts the process without the cause, which `heartbeat` knows.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    timeout = timedelta(seconds=timeout_s)
    try:
        store, rank, size = next(rendezvous("env://", timeout=timeout))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=PrefixStore("group", store), rank=rank, world_size=size, timeout=timeout)
        return store, dist.new_group(backend="gloo", timeout=timeout)
    except (dist.DistError, RuntimeError) as error:
        raise ContractError(
            f"the {process.size} ranks did not find each other at {process.address}:{process.port} within "
            f"{timeout_s:g} s (this is rank {process.rank}): {error}. Hosts must reach each other on all ports; "
            "runtime.peer_timeout_s is how long they wait"
        ) from error


def _use_interface(name: str | None) -> None:
    """Let gloo and NCCL use the interface that the platform names, if this machine has it."""
    if name and os.path.exists(INTERFACES / name):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def _wait_for_name(host: str, timeout_s: float) -> None:
    """Wait until a host's name resolves, because the hosts of a job do not start at the same time."""
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
            time.sleep(RESOLVE_EVERY_S)
        else:
            return
