"""What the loader costs a training step: tiles a second from a warm cache, beside those of one batch again and again.

    python tests/benchmarks/fed.py [--network albunet] [--size 512] [--batch 32] [--pairs 512] [--rounds 3]
                                   [--device cuda] [--compiled]

Whole steps as training takes them: batches to the device, symmetries, normalisation, forward, loss, backward and
optimizer, in the precision and layout that `auto` gives. Tiles are 4 bands of uint16 and a mask, in batches by as many
worker processes as `auto` gives. The first epoch fills the cache and is not counted; then epochs fed by the loader and
as many steps on one batch alternate. Asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from machine import describe_machine
from noise_tiles import BANDS, write_pairs
from s3_server import S3Server
from torch.amp.grad_scaler import GradScaler

from robosat_pink.config import (
    CacheConfig,
    ChannelConfig,
    ClassConfig,
    Config,
    DatasetConfig,
    ModelConfig,
    RuntimeConfig,
)
from robosat_pink.container import device as devices
from robosat_pink.container.stop_request import StopRequest
from robosat_pink.datasets import TilePairs
from robosat_pink.datasets.batch import Batch
from robosat_pink.datasets.normalisation import normalisation
from robosat_pink.datasets.transforms import TrainingTransform
from robosat_pink.distributed.launcher import SINGLE_PROCESS
from robosat_pink.distributed.process_group import World
from robosat_pink.losses import build_loss
from robosat_pink.training import progress
from robosat_pink.training.background_writer import BackgroundWriter
from robosat_pink.training.setup import make_loader, make_model
from robosat_pink.training.state import State
from robosat_pink.training.step import training_step
from robosat_pink.training.stopping import LoopControl
from robosat_pink.training.task import Compute, Data, Objective, Task


def seconds_of(state: State, task: Task, batches: Iterable[Batch]) -> float:
    started = time.perf_counter()
    for batch in batches:
        training_step(state, task, batch, len(batch))
    if task.compute.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def experiment(options: argparse.Namespace, cache: Path) -> Config:
    return Config(
        dataset=DatasetConfig(
            image_bucket="imagery", mask_bucket="mask", cache=CacheConfig(dir=str(cache), max_gb=100)
        ),
        classes=(ClassConfig(name="noise"),),
        channels=(ChannelConfig(bands=tuple(range(1, BANDS + 1)), scale=10000),),
        model=ModelConfig(name=options.network, batch_size=options.batch, tile_size=options.size),
        runtime=RuntimeConfig(compile=options.compiled),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="What the loader costs a training step.")
    parser.add_argument("--network", choices=("albunet", "ternausnetv2"), default="albunet")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--compiled", action="store_true", help="with runtime.compile: some minutes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_pairs(folder / "buckets", options.pairs, options.size)
        with S3Server(folder / "buckets") as server:
            os.environ.update(server.environment())
            print(report(options, experiment(options, folder / "cache")))


def report(options: argparse.Namespace, config: Config) -> str:
    device = devices.choose_device(options.device)
    precision = devices.choose_precision("auto", device)
    devices.prepare(device)
    tiles = TilePairs(config.dataset, config.channels, config.classes, tile_size=options.size, augmentation=0.75)
    layout = devices.choose_layout(device, precision)
    model, _ = make_model(config, None, device, {})
    model.to(device).to(memory_format=layout).train()  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), lr=2.5e-5, fused=True)
    state = State(model, optimizer, GradScaler(device.type, enabled=precision == torch.float16))
    stop = StopRequest()
    transform = TrainingTransform(*normalisation(config.channels)).to(device)
    split, loader = tiles.split(), make_loader(tiles, config, device, stop.raise_if_requested, SINGLE_PROCESS)
    task = Task(
        config,
        Objective(
            torch.compile(model, dynamic=False) if options.compiled else model,  # type: ignore[arg-type]
            build_loss("lovasz", num_classes=1).to(device),
        ),
        Data(split, loader, training_transform=transform, evaluation_transform=transform),
        Compute(device, precision, layout),
        LoopControl(World(), stop, BackgroundWriter()),
        progress.lines,
    )
    rows = split.train[: len(split.train) // options.batch * options.batch]
    steps = len(rows) // options.batch
    seconds_of(state, task, loader.training(rows, 1))
    batch = next(iter(loader.training(rows, 1)))
    repeated_s, fed_s = [], []
    for number in range(options.rounds):
        repeated_s.append(seconds_of(state, task, [batch] * steps))
        fed_s.append(seconds_of(state, task, loader.training(rows, 2 + number)))
    del batch  # whose memory goes with the loader
    loader.close()
    repeated, fed = (len(rows) / statistics.median(seconds) for seconds in (repeated_s, fed_s))
    compiled = ", compiled" if options.compiled else ""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return (
        f"{options.network}{compiled}, {options.size} x {options.size}, batch {options.batch}, "
        f"{precision or torch.float32}: one batch again and again {repeated:.1f} tiles/s, fed from a warm cache "
        f"{fed:.1f} tiles/s, {1 - fed / repeated:.1%} fewer\n"
        f"{describe_machine()}; {name}, {steps} steps, medians of {options.rounds} rounds"
    )


if __name__ == "__main__":
    main()
