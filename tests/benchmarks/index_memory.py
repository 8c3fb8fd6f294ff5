"""Bytes a pair that the index of a collection takes: its arrays, and all processes of a loader amid an epoch.

    python tests/benchmarks/index_memory.py [--pairs 1000000] [--workers 2] [--directories 40]

All processes together: proportional set size (a page that n processes share counts 1/n in each) of the main process,
its workers and what started them, less the same for a collection of 1,000 pairs. The pairs are listed from a server
whose objects are all one small tile, so that the workers have something to read; two fresh processes do it.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from machine import describe_machine
from noise_tiles import BANDS, write_pairs
from s3_server import S3Server

SCENE = r"(?P<scene>scene_\d+)$"
TILE_SIZE = 64
FEW_PAIRS = 1_000
BATCHES = 40  # of an epoch before memory is looked at


class Memory(NamedTuple):
    array_bytes: int
    main_bytes: int
    all_bytes: int
    peak_bytes: int  # of the main process
    seconds: float  # to list and pair


def measure(url: str, workers: int) -> Memory:
    """In a fresh process: make the index, begin an epoch over all pairs, and look."""
    from robosat_pink.config import CacheConfig, ChannelConfig, DatasetConfig
    from robosat_pink.datasets import TilePairs
    from robosat_pink.datasets.loader import TileLoader

    started = time.perf_counter()
    tiles = TilePairs(
        DatasetConfig(
            image_bucket="imagery",
            mask_bucket="mask",
            imagery_directory_regex=SCENE,
            mask_directory_regex=SCENE,
            endpoint_url=url,
            cache=CacheConfig(max_gb=0),
        ),
        (ChannelConfig(bands=tuple(range(1, BANDS + 1))),),
        tile_size=TILE_SIZE,
    )
    seconds = time.perf_counter() - started
    batches = TileLoader(tiles, 7, workers).training(tiles.split().train, epoch=1)
    for _ in range(BATCHES):
        next(batches)
    gc.collect()
    processes = [os.getpid(), *descendants(os.getpid())]
    memory = [proportional_bytes(process) for process in processes]
    status = Path("/proc/self/status").read_text()
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024
    return Memory(array_bytes(tiles.pairs), memory[0], sum(memory), peak, seconds)


def array_bytes(index: Any) -> int:
    """Of all arrays in a dataclass and in the dataclasses it holds, each once."""

    def arrays(value: Any) -> Iterator[np.ndarray]:
        if isinstance(value, np.ndarray):
            yield value
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                yield from arrays(getattr(value, field.name))

    return sum(array.nbytes for array in {id(array): array for array in arrays(index)}.values())


def descendants(process: int) -> list[int]:
    children = [
        int(child)
        for task in Path(f"/proc/{process}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return children + [process for child in children for process in descendants(child)]


def proportional_bytes(process: int) -> int:
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    return int(re.findall(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="Bytes a pair that the index takes.")
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--directories", type=int, default=40)
    options = parser.parse_args()
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        (key,) = write_pairs(Path(folder), 1, TILE_SIZE)
        for pairs in (FEW_PAIRS, options.pairs):
            synthetic = {
                bucket: (pairs, options.directories, Path(folder, bucket, key)) for bucket in ("imagery", "mask")
            }
            context = multiprocessing.get_context("spawn")
            with S3Server(None, synthetic) as server, ProcessPoolExecutor(1, context) as process:
                os.environ.update(server.environment())
                measured.append(process.submit(measure, server.url, options.workers).result())
    few, many = measured
    more = options.pairs - FEW_PAIRS
    print(f"| {options.pairs:,} pairs | MB | bytes a pair |\n|---|---:|---:|")
    for name, count in (
        ("arrays of the index", many.array_bytes),
        (f"main process, more than with {FEW_PAIRS:,} pairs", many.main_bytes - few.main_bytes),
        (f"main and {options.workers} workers, more than with {FEW_PAIRS:,} pairs", many.all_bytes - few.all_bytes),
        ("main process at its peak, more likewise", many.peak_bytes - few.peak_bytes),
    ):
        print(f"| {name} | {count / 1e6:.1f} | {count / more:.1f} |")
    print(
        f"\n{describe_machine()}; listed and paired in {many.seconds:.1f} s without delay, "
        f"{options.directories} directories"
    )


if __name__ == "__main__":
    main()
