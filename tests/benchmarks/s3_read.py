"""Tile pairs a second from S3: the original's way, boto3, bare GETs, and ours cold and warm, in turn in one run.

    python tests/benchmarks/s3_read.py [--delay-ms 25] [--pairs 400] [--batch 7] [--rounds 3] [--only NAME ...]

Server and client share this machine. Tiles are 512 x 512 x 4 uint16 and uncompressed, as the original's project wrote
them; what is in them is noise from a seed. The bare GETs are the limit: the client ours uses, as many requests in
flight, nothing decoded. Clients, connections, worker processes and their memory are there before the clock starts, as
after the first seconds of an epoch; the original's way makes a session for each pair, and is timed on fewer of them.
Kept pairs are first read from the disk (where the file system takes O_DIRECT, nothing of them is in the system's page
cache after they were written), and then, warm, from that.
MD5s are verified over plain HTTP from other machines alone, unless the experiment says otherwise; over TLS and
loopback, as here, they are not. What the disk takes varies: ext4 is slower for minutes after many deletions, so that a
folder of its own (TMPDIR) for each run is best. Asserts nothing about time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from rasterio.session import AWSSession
from rasterio.transform import from_origin
from s3_server import S3Server

BUCKETS = ("imagery", "mask")
SIZE, BANDS = 512, 4
BOTO3_THREADS = 16
WARM_UP_BATCHES = 16  # not measured: as many as two workers read ahead, and so memory for all of them is there
ORIGINAL_PAIRS = 100  # that the original's way is timed on, which is slow
WARM_PASSES = 10  # over the measured pairs, for one pass is over too soon to be timed


class Result(NamedTuple):
    seconds: float
    pairs: int
    stats: dict[str, Any]  # the server's


class Setting(NamedTuple):
    """The keys of a run, in both buckets: first those to warm up with, then those to measure."""

    warm_up: list[str]
    measured: list[str]
    batch_size: int
    folder: Path  # for caches
    server: S3Server


def write_pairs(folder: Path, count: int, size: int = SIZE, seed: int = 0) -> list[str]:
    """Keys of so many pairs, image and mask of noise, below the folder's two buckets."""
    random = np.random.default_rng(seed)
    keys = [f"scene/15/{10000 + number // 100}/{10000 + number % 100}.tif" for number in range(count)]
    for key in keys:
        for bucket, bands, dtype, high in (("imagery", BANDS, "uint16", 10000), ("mask", 1, "uint8", 2)):
            path = folder / bucket / key
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(1 if bands > 1 else 0, high, (bands, size, size), dtype=dtype)
            shape = {"count": bands, "height": size, "width": size, "dtype": dtype}
            place = {"crs": "EPSG:3857", "transform": from_origin(0, size, 1, 1)}
            with rasterio.open(path, "w", driver="GTiff", **shape, **place) as file:
                file.write(pixels)
    return keys


def read_as_the_original(keys: list[str]) -> float:
    """Image, then mask, by GDAL, with a session of its own for each pair. Seconds; for a process of its own.

    Without a look at the neighbouring files, which its image turned off, and which would cost it a listing a file.
    """
    import boto3

    endpoint = os.environ["AWS_S3_ENDPOINT"]
    started = time.perf_counter()
    for key in keys:
        session = AWSSession(boto3.Session(), endpoint_url=endpoint)
        with rasterio.Env(session, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
            for bucket in BUCKETS:
                with rasterio.open(f"s3://{bucket}/{key}") as file:
                    file.read()
    return time.perf_counter() - started


def original(setting: Setting) -> Result:
    """In a fresh process each time: GDAL remembers files that it has opened."""
    keys = setting.measured[:ORIGINAL_PAIRS]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(os.getpid).result()
        with counted(setting.server) as stats:
            seconds = process.submit(read_as_the_original, keys).result()
    return Result(seconds, len(keys), stats)


def boto3_threads(setting: Setting) -> Result:
    """Decoded as ours is, so that the fetching is what differs."""
    import boto3
    from botocore.config import Config

    from robosat_pink.datasets.rasters import decode

    client = boto3.client("s3", config=Config(max_pool_connections=BOTO3_THREADS))

    def read(name: tuple[str, str]) -> None:
        bucket, key = name
        data = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        if bucket == "mask":
            decode.read_mask(data, key)
        else:
            decode.read_image(data, range(1, BANDS + 1), key)

    return in_threads(setting, read, BOTO3_THREADS)


def bare_gets(setting: Setting) -> Result:
    import obstore
    from obstore.store import S3Store

    from robosat_pink.datasets.reader import REQUESTS as THREADS

    options = {"endpoint": setting.server.url, "client_options": {"allow_http": True}}
    stores = {bucket: S3Store(bucket, **options) for bucket in BUCKETS}

    def read(name: tuple[str, str]) -> None:
        bucket, key = name
        obstore.get(stores[bucket], key).bytes()

    return in_threads(setting, read, THREADS)


def in_threads(setting: Setting, read: Callable[[tuple[str, str]], None], threads: int) -> Result:
    def names(keys: list[str]) -> list[tuple[str, str]]:
        return [(bucket, key) for key in keys for bucket in BUCKETS]

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, names(setting.warm_up)))
        with counted(setting.server) as stats:
            started = time.perf_counter()
            list(pool.map(read, names(setting.measured)))
            seconds = time.perf_counter() - started
    return Result(seconds, len(setting.measured), stats)


def ours(
    workers: int, earlier_passes: int = 0, passes: int = 1, is_cached: bool = True, verify_md5: bool = False
) -> Callable[[Setting], Result]:
    """By the loader that training uses, with a cache that is empty at first; `earlier_passes` are not timed."""

    def measure(setting: Setting) -> Result:
        from robosat_pink.config import CacheConfig, ChannelConfig, DatasetConfig
        from robosat_pink.datasets import TilePairs
        from robosat_pink.datasets.loader import TileLoader

        cache = tempfile.mkdtemp(dir=setting.folder)  # kept to the end: a file system is slower after deletions
        tiles = TilePairs(
            DatasetConfig(
                image_bucket="imagery",
                mask_bucket="mask",
                cache=CacheConfig(dir=cache, max_gb=100 * is_cached),
                verify_md5=verify_md5,
            ),
            (ChannelConfig(bands=tuple(range(1, BANDS + 1))),),
        )
        keys = {tiles.pairs.images.path(row): row for row in range(len(tiles))}
        rows = np.array([keys[key] for key in setting.measured])
        loader = TileLoader(tiles, setting.batch_size, workers)
        deliver(loader, np.array([keys[key] for key in setting.warm_up]))
        for _ in range(earlier_passes):
            deliver(loader, rows)
        rows = np.tile(rows, passes)
        with counted(setting.server) as stats:
            seconds = deliver(loader, rows)
        return Result(seconds, len(rows), stats)

    return measure


def deliver(loader: Any, rows: np.ndarray) -> float:
    """Seconds until the last batch is here, in memory that this process can read."""
    started = time.perf_counter()
    delivered = sum(len(batch) for batch in loader.evaluation(rows))
    seconds = time.perf_counter() - started
    assert delivered == len(rows), f"{delivered} of {len(rows)} pairs were delivered"
    return seconds


@contextmanager
def counted(server: S3Server) -> Iterator[dict[str, Any]]:
    stats: dict[str, Any] = {}
    server.reset()
    yield stats
    stats.update(server.stats())


CONTENDERS: dict[str, Callable[[Setting], Result]] = {
    "rasterio.open(s3://) per file": original,
    "boto3, 16 threads, rasterio": boto3_threads,
    "bare GETs (the limit)": bare_gets,
    "ours cold, 1 worker": ours(1),
    "ours cold, 2 workers": ours(2),
    "ours cold, 1 worker, no cache": ours(1, is_cached=False),
    "ours cold, 1 worker, MD5 too": ours(1, verify_md5=True),
    "ours from the disk, 1 worker": ours(1, earlier_passes=1),
    "ours warm, 1 worker": ours(1, earlier_passes=2, passes=WARM_PASSES),
    "ours warm, 2 workers": ours(2, earlier_passes=2, passes=WARM_PASSES),
}
BASE, _, LIMIT, *_ = CONTENDERS


def table(results: dict[str, list[Result]]) -> Iterator[str]:
    """Of each contender the round of median speed."""
    speeds = {name: statistics.median(each.pairs / each.seconds for each in found) for name, found in results.items()}
    yield "| | pairs/s | x original | x limit | GET a pair | HEAD a pair | other | MB a pair | in flight |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for name, found in results.items():
        stats, pairs = found[-1].stats, found[-1].pairs
        requests = dict(stats["requests"])
        get, head = requests.pop("GET", 0) + requests.pop("RANGE", 0), requests.pop("HEAD", 0)
        others = ", ".join(f"{count} {kind}" for kind, count in requests.items()) or "0"
        ratios = [f"{speeds[name] / speeds[base]:.2f}" if base in speeds else "" for base in (BASE, LIMIT)]
        yield (
            f"| {name} | {speeds[name]:.1f} | {' | '.join(ratios)} | {get / pairs:.2f} | {head / pairs:.2f} | {others} "
            f"| {stats['bytes'] / pairs / 1e6:.2f} | {stats['peak_in_flight']} |"
        )


def machine() -> str:
    """Cores, processor, date and versions: what a table of times needs beside it."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    installed = [name for name in ("obstore", "rasterio", "boto3", "torch") if find_spec(name)]
    versions = ", ".join(f"{name} {version(name)}" for name in installed)
    processor = names[0].partition(": ")[2] if names else "unknown processor"
    return f"{len(os.sched_getaffinity(0))} cores, {processor}, {time.strftime('%Y-%m-%d')}; {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Tile pairs a second from S3, by several ways in turn.")
    parser.add_argument("--delay-ms", type=float, default=25.0, help="before the first byte of every answer")
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--batch", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", default=[], help="contenders whose name begins so; may be repeated")
    options = parser.parse_args()
    contenders = {
        name: measure
        for name, measure in CONTENDERS.items()
        if not options.only or name.startswith(tuple(options.only))
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        warm_up = WARM_UP_BATCHES * options.batch
        keys = write_pairs(folder / "buckets", warm_up + options.pairs)
        sizes = [folder.joinpath("buckets", bucket, keys[0]).stat().st_size for bucket in BUCKETS]
        with S3Server(folder / "buckets", delay_ms=options.delay_ms) as server:
            os.environ.update(server.environment())
            setting = Setting(keys[:warm_up], keys[warm_up:], options.batch, folder, server)
            results: dict[str, list[Result]] = {name: [] for name in contenders}
            for _ in range(options.rounds):
                for name, measure in contenders.items():
                    results[name].append(measure(setting))
    print(*table(results), sep="\n")
    print(
        f"\n{machine()}; {options.delay_ms:g} ms to the first byte, {options.pairs} pairs of {sizes[0]:,} + "
        f"{sizes[1]:,} bytes, batches of {options.batch}, medians of {options.rounds} rounds; "
        f"warm: {WARM_PASSES} passes"
    )


if __name__ == "__main__":
    main()
