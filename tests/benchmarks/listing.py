"""Requests and seconds to list 1e3 to 1e6 keys in 40 directories, and to pair them.

    python tests/benchmarks/listing.py [--delay-ms 25] [--directories 40] [--keys 1000 --keys 100000 ...] [--rounds 3]

Beside ours stand the ideal, which is waiting alone: (pages / directories side by side, and one request for the names
of the directories) x delay, and the client's own: the same pages fetched and parsed by as many threads, and dropped.
Server and client share this machine. Asserts nothing about time.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import obstore
from machine import describe_machine
from obstore.store import S3Store
from s3_server import PAGE_KEYS, S3Server

from robosat_pink.config import ChannelConfig, DatasetConfig
from robosat_pink.datasets import TilePairs
from robosat_pink.datasets.sides import DIRECTORIES as THREADS
from robosat_pink.datasets.sides import Side, list_sides
from robosat_pink.storage import Location

SCENE = r"(?P<scene>scene_\d+)$"
BUCKETS = ("imagery", "mask")
KEYS = (1_000, 10_000, 100_000, 1_000_000)


def client_alone(url: str) -> None:
    """One bucket, every page parsed, which nothing looks at."""
    store = S3Store("imagery", endpoint=url, client_options={"allow_http": True})

    def drop(directory: str) -> None:
        for _ in obstore.list(store, prefix=f"{directory}/", chunk_size=PAGE_KEYS):
            pass

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(drop, map(str, obstore.list_with_delimiter(store)["common_prefixes"])))


def list_a_bucket(url: str) -> None:
    images = Location.parse("imagery", endpoint_url=url)
    list_sides([Side(images, SCENE, "image_bucket", "imagery_directory_regex")])


def list_and_pair(url: str) -> None:
    TilePairs(
        DatasetConfig(
            image_bucket="imagery",
            mask_bucket="mask",
            imagery_directory_regex=SCENE,
            mask_directory_regex=SCENE,
            endpoint_url=url,
        ),
        (ChannelConfig(bands=(1,)),),
    )


def measured(server: S3Server, rounds: int, listing: Callable[[str], None]) -> tuple[float, int]:
    """Median seconds, and requests. A round before, so that the server has its pages ready and clients are made."""
    listing(server.url)
    seconds = []
    for _ in range(rounds):
        server.reset()
        started = time.perf_counter()
        listing(server.url)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), server.stats()["requests"]["LIST"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Requests and seconds to list and pair tiles.")
    parser.add_argument("--delay-ms", type=float, default=25.0, help="before the first byte of every page")
    parser.add_argument("--directories", type=int, default=40)
    parser.add_argument("--keys", type=int, action="append", help="in each of two buckets; may be repeated")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print("| keys | pages | ideal, s | client alone, s | ours, s | x ideal | requests | pairs, s | requests |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for keys in options.keys or KEYS:
        per_directory = math.ceil(keys / options.directories)
        pages = options.directories * math.ceil(per_directory / PAGE_KEYS)
        side_by_side = min(options.directories, THREADS)
        ideal = (1 + pages / side_by_side) * options.delay_ms / 1000
        with S3Server(None, dict.fromkeys(BUCKETS, (keys, options.directories)), delay_ms=options.delay_ms) as server:
            os.environ.update(server.environment())
            bare, _ = measured(server, options.rounds, client_alone)
            alone, requests = measured(server, options.rounds, list_a_bucket)
            paired, both = measured(server, options.rounds, list_and_pair)
        print(
            f"| {keys:,} | {pages:,} | {ideal:.3f} | {bare:.3f} | {alone:.3f} | {alone / ideal:.2f} | {requests:,} "
            f"| {paired:.3f} | {both:,} |",
            flush=True,
        )
    print(
        f"\n{describe_machine()}; {options.delay_ms:g} ms to the first byte of a page, "
        f"{options.directories} directories, {THREADS} side by side, "
        f"medians of {options.rounds} rounds; the last two columns: both buckets, paired"
    )


if __name__ == "__main__":
    main()
