"""Ways to read tile pairs from S3, each measured on the same keys. Called by s3_read.py.

torch is imported where it is used: worker processes import the benchmark's modules, and ours load no torch.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import rasterio
from noise_tiles import BANDS, BUCKETS
from rasterio.session import AWSSession
from s3_server import S3Server

if TYPE_CHECKING:
    from robosat_pink.datasets import TilePairs
    from robosat_pink.datasets.batch import Batch

BOTO3_THREADS = 16
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


Reader = Callable[[Setting], Result]


class Loader(Protocol):
    """What TileLoader and TorchLoader have in common."""

    def evaluation(self, rows: np.ndarray) -> Iterator[Batch]: ...

    def close(self) -> None: ...


def original(setting: Setting) -> Result:
    """In a fresh process each time: GDAL remembers files that it has opened."""
    keys = setting.measured[:ORIGINAL_PAIRS]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(os.getpid).result()
        with counted(setting.server) as stats:
            seconds = process.submit(read_as_the_original, keys).result()
    return Result(seconds, len(keys), stats)


def read_as_the_original(keys: list[str]) -> float:
    """Seconds for image, then mask, by GDAL, with a session of its own for each pair; in a process of its own.

    Without a look at the neighbouring files, which its image turned off, and which would cost it a listing a file.
    """
    import boto3

    endpoint = os.environ["AWS_S3_ENDPOINT"]
    started = time.perf_counter()
    for key in keys:
        session = AWSSession(boto3.Session(), endpoint_url=endpoint)
        with rasterio.Env(session, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
            read_pair(key)
    return time.perf_counter() - started


def read_pair(key: str) -> None:
    for bucket in BUCKETS:
        with rasterio.open(f"s3://{bucket}/{key}") as file:
            file.read()


def boto3_threads(setting: Setting) -> Result:
    """Decoded as ours is, so that the fetching is what differs."""
    import boto3
    from botocore.config import Config

    from robosat_pink.datasets.rasters import decode

    client = boto3.client("s3", config=Config(max_pool_connections=BOTO3_THREADS))

    def read(bucket: str, key: str) -> None:
        data = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        if bucket == "mask":
            decode.read_mask(data, key)
        else:
            decode.read_image(data, range(1, BANDS + 1), key)

    return in_threads(setting, read, BOTO3_THREADS)


def bare_gets(setting: Setting) -> Result:
    """By the client and the number of requests in flight that ours has; nothing is decoded."""
    import obstore
    from obstore.store import S3Store

    from robosat_pink.datasets.reader import REQUESTS

    stores = {
        bucket: S3Store(bucket, endpoint=setting.server.url, client_options={"allow_http": True}) for bucket in BUCKETS
    }

    def read(bucket: str, key: str) -> None:
        obstore.get(stores[bucket], key).bytes()

    return in_threads(setting, read, REQUESTS)


def in_threads(setting: Setting, read: Callable[[str, str], None], threads: int) -> Result:
    """`read(bucket, key)` of every file."""

    def read_all(keys: list[str]) -> None:
        list(pool.map(read, BUCKETS * len(keys), [key for key in keys for _ in BUCKETS]))

    with ThreadPoolExecutor(threads) as pool:
        read_all(setting.warm_up)
        with counted(setting.server) as stats:
            started = time.perf_counter()
            read_all(setting.measured)
            seconds = time.perf_counter() - started
    return Result(seconds, len(setting.measured), stats)


def by_loader(
    make_loader: Callable[[TilePairs, int, int], Loader],
    workers: int,
    earlier_passes: int = 0,
    passes: int = 1,
    is_cached: bool = True,
    verify_md5: bool = False,
) -> Reader:
    """In batches, with a cache that is empty at first; `earlier_passes` are not timed."""

    def measure(setting: Setting) -> Result:
        tiles = list_tiles(setting.folder, is_cached, verify_md5)
        row_of = {tiles.pairs.images.path(row): row for row in range(len(tiles))}
        rows = np.array([row_of[key] for key in setting.measured])
        loader = make_loader(tiles, setting.batch_size, workers)
        deliver(loader, np.array([row_of[key] for key in setting.warm_up]))
        for _ in range(earlier_passes):
            deliver(loader, rows)
        rows = np.tile(rows, passes)
        with counted(setting.server) as stats:
            seconds = deliver(loader, rows)
        loader.close()
        return Result(seconds, len(rows), stats)

    return measure


def list_tiles(folder: Path, is_cached: bool, verify_md5: bool) -> TilePairs:
    """Both buckets, with a new cache below the folder; it stays to the end: a file system is slower after deletions."""
    from robosat_pink.config import CacheConfig, ChannelConfig, DatasetConfig
    from robosat_pink.datasets import TilePairs

    cache = CacheConfig(dir=tempfile.mkdtemp(dir=folder), max_gb=100 if is_cached else 0)
    dataset = DatasetConfig(image_bucket="imagery", mask_bucket="mask", cache=cache, verify_md5=verify_md5)
    return TilePairs(dataset, (ChannelConfig(bands=tuple(range(1, BANDS + 1))),))


def deliver(loader: Loader, rows: np.ndarray) -> float:
    """Seconds until the last batch is in memory that this process can read."""
    started = time.perf_counter()
    delivered = sum(len(batch) for batch in loader.evaluation(rows))
    seconds = time.perf_counter() - started
    assert delivered == len(rows), f"{delivered} of {len(rows)} pairs were delivered"
    return seconds


@contextmanager
def counted(server: S3Server) -> Iterator[dict[str, Any]]:
    """The server's counters, filled at the end of the block with what was asked in it."""
    stats: dict[str, Any] = {}
    server.reset()
    yield stats
    stats.update(server.stats())


def tile_loader(tiles: TilePairs, batch_size: int, workers: int) -> Loader:
    from robosat_pink.datasets.loader import TileLoader

    return TileLoader(tiles, batch_size, workers)


def torch_loader(tiles: TilePairs, batch_size: int, workers: int) -> Loader:
    from data_loader import TorchLoader

    return TorchLoader(tiles, batch_size, workers)


READERS: dict[str, Reader] = {
    "rasterio.open(s3://) per file": original,
    "boto3, 16 threads, rasterio": boto3_threads,
    "bare GETs (the limit)": bare_gets,
    "ours cold, 1 worker": by_loader(tile_loader, 1),
    "DataLoader cold, 1 worker": by_loader(torch_loader, 1),
    "ours cold, 2 workers": by_loader(tile_loader, 2),
    "DataLoader cold, 2 workers": by_loader(torch_loader, 2),
    "ours cold, 1 worker, no cache": by_loader(tile_loader, 1, is_cached=False),
    "ours cold, 1 worker, MD5 too": by_loader(tile_loader, 1, verify_md5=True),
    "ours from the disk, 1 worker": by_loader(tile_loader, 1, earlier_passes=1),
    "ours warm, 1 worker": by_loader(tile_loader, 1, earlier_passes=2, passes=WARM_PASSES),
    "DataLoader warm, 1 worker": by_loader(torch_loader, 1, earlier_passes=2, passes=WARM_PASSES),
    "ours warm, 2 workers": by_loader(tile_loader, 2, earlier_passes=2, passes=WARM_PASSES),
    "DataLoader warm, 2 workers": by_loader(torch_loader, 2, earlier_passes=2, passes=WARM_PASSES),
}
