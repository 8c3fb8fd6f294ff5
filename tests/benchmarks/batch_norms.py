"""Batch norm over two processes: ours, torch.nn.SyncBatchNorm, and one that each process does alone, in turn.

    python tests/benchmarks/batch_norms.py [--encoder resnet50] [--size 512] [--batch 8] [--rounds 5] [--device cuda]

The network is torchvision's plain ResNet, AlbuNet's encoder, in which only the norms differ: forward and backward on
`--batch` images a process, in the precision and layout that `auto` gives, without averaging gradients. On a machine
with one GPU both processes share it, and their messages go through gloo; with two each has its own, and NCCL.
SyncBatchNorm takes tensors on a GPU alone, and is left out on a CPU. Kept bytes are of one process. Asserts nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torchvision
from kept_memory import kept_bytes
from machine import describe_machine
from measured_step import seconds_of
from torch import Tensor, nn

from robosat_pink.container import device as devices
from robosat_pink.container import hardware
from robosat_pink.models.recomputation import batch_norm
from robosat_pink.models.synchronisation import synchronise

PROCESSES = 2
NO_GPU = "a CPU: nn.SyncBatchNorm is left out, for it raises where tensors are not on a GPU"


class Synchronised(nn.BatchNorm2d):
    """Ours, as a module."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        synchronise(self)

    def forward(self, features: Tensor) -> Tensor:
        return batch_norm(features, self)


NORMS: dict[str, type[nn.Module]] = {
    "nn.BatchNorm2d, each process alone": nn.BatchNorm2d,
    "ours, synchronised": Synchronised,
    "nn.SyncBatchNorm": nn.SyncBatchNorm,
}


class Network:
    """An encoder with one kind of norm, and its batch."""

    def __init__(self, norm: type[nn.Module], encoder: str, image: Tensor, precision: torch.dtype | None) -> None:
        torch.manual_seed(0)
        model = torchvision.models.get_model(encoder, weights=None, norm_layer=norm)
        layout = devices.choose_layout(image.device, precision)
        self.model = model.to(image.device).to(memory_format=layout)
        self.image, self.precision = image.to(memory_format=layout), precision
        self.seconds: list[float] = []

    def forward(self) -> Tensor:
        with torch.autocast(self.image.device.type, dtype=self.precision, enabled=self.precision is not None):
            return self.model(self.image).float().square().mean()

    def run(self) -> None:
        self.model.zero_grad(set_to_none=True)
        self.forward().backward()

    def kept_bytes(self) -> int:
        return kept_bytes(self.forward, (*self.model.parameters(), *self.model.buffers(), self.image))


def measure(rank: int, options: argparse.Namespace, store: Path) -> None:
    """A process's life; rank 0 prints the table."""
    gpus = torch.cuda.device_count() if options.device == "cuda" else 0
    backend = "nccl" if gpus >= PROCESSES else "gloo"
    device = torch.device("cuda", rank % gpus) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(hardware.cpu_count() // PROCESSES, 1))
    devices.prepare(device)
    precision = devices.choose_precision("auto", device)
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    image = torch.randn(options.batch, 3, options.size, options.size, device=device)
    networks = {
        name: Network(norm, options.encoder, image, precision)
        for name, norm in NORMS.items()
        if gpus or norm is not nn.SyncBatchNorm
    }
    kept = {name: network.kept_bytes() for name, network in networks.items()}
    for _ in range(options.rounds + 1):
        for network in networks.values():
            dist.barrier()
            network.seconds.append(seconds_of(network.run, options.device))
    if rank == 0:
        print(*table(networks, kept), sep="\n")
        print(
            f"\n{describe_machine()}; {options.encoder}, {precision or torch.float32}, "
            f"{options.size} x {options.size}, batch {options.batch} a process, medians of {options.rounds} rounds; "
            f"{PROCESSES} processes by {backend} "
            f"on {f'{gpus} x {torch.cuda.get_device_name()}' if gpus else NO_GPU}"
        )
    dist.destroy_process_group()


def table(networks: dict[str, Network], kept: dict[str, int]) -> Iterator[str]:
    """Times without those of the first round, which warms up."""
    seconds = {name: statistics.median(network.seconds[1:]) for name, network in networks.items()}
    base = next(iter(networks))
    yield "| norm | kept for backward, MB | x | forward and backward, ms | x |"
    yield "|---|---:|---:|---:|---:|"
    for name in networks:
        yield (
            f"| {name} | {kept[name] / 1e6:.1f} | {kept[name] / kept[base]:.2f} "
            f"| {1e3 * seconds[name]:.1f} | {seconds[name] / seconds[base]:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Batch norm over two processes.")
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8, help="of one process")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(measure, (options, Path(folder, "store")), nprocs=PROCESSES)


if __name__ == "__main__":
    main()
