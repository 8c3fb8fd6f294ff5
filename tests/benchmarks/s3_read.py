"""Tile pairs a second from S3: the original's way, boto3, bare GETs, torch's DataLoader and ours, in turn in one run.

    python tests/benchmarks/s3_read.py [--delay-ms 25] [--pairs 400] [--batch 7] [--rounds 3] [--only NAME ...]
    python tests/benchmarks/s3_read.py --only ours --only DataLoader        # ours beside torch's loader alone

Server and client share this machine. Tiles are 512 x 512 x 4 uint16 and uncompressed, as the original's project wrote
them; what is in them is noise from a seed. The bare GETs are the limit: the client ours uses, as many requests in
flight, nothing decoded. Clients, connections, worker processes and their memory are made before the clock starts, as
after the first seconds of an epoch; the original's way makes a session for each pair, and is timed on fewer of them.
Kept pairs are first read from the disk (where the file system takes O_DIRECT, nothing of them is in the system's page
cache after they were written), and then, warm, from the page cache. The DataLoader calls `TilePairs.__getitems__` in
its workers: as many, with the same cache, batches and number of batches ahead (data_loader.py).
MD5s are verified over plain HTTP from other machines alone, unless the experiment says otherwise; over TLS and
loopback, as here, they are not. What the disk takes varies: ext4 is slower for minutes after many deletions, so that a
folder of its own (TMPDIR) for each run is best. Asserts nothing about time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from machine import describe_machine
from noise_tiles import BUCKETS, write_pairs
from s3_readers import READERS, WARM_PASSES, Reader, Result, Setting
from s3_server import S3Server

WARM_UP_BATCHES = 16  # not measured: as many as two workers read ahead, and so memory for all of them is made
ORIGINAL, _, LIMIT, *_ = READERS


def table(results: dict[str, list[Result]]) -> Iterator[str]:
    """The median speed of each reader, and what its last round asked of the server."""
    speeds = {
        name: statistics.median(result.pairs / result.seconds for result in rounds) for name, rounds in results.items()
    }
    yield "| | pairs/s | x original | x limit | GET a pair | HEAD a pair | other | MB a pair | in flight |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for name, rounds in results.items():
        stats, pairs = rounds[-1].stats, rounds[-1].pairs
        requests = dict(stats["requests"])
        get, head = requests.pop("GET", 0) + requests.pop("RANGE", 0), requests.pop("HEAD", 0)
        others = ", ".join(f"{count} {kind}" for kind, count in requests.items()) or "0"
        ratios = [f"{speeds[name] / speeds[base]:.2f}" if base in speeds else "" for base in (ORIGINAL, LIMIT)]
        yield (
            f"| {name} | {speeds[name]:.1f} | {' | '.join(ratios)} | {get / pairs:.2f} | {head / pairs:.2f} | {others} "
            f"| {stats['bytes'] / pairs / 1e6:.2f} | {stats['peak_in_flight']} |"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tile pairs a second from S3, by several ways in turn.")
    parser.add_argument("--delay-ms", type=float, default=25.0, help="before the first byte of every answer")
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--batch", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", default=[], help="contenders whose name begins so; may be repeated")
    return parser.parse_args()


def measure(setting: Setting, readers: dict[str, Reader], rounds: int) -> dict[str, list[Result]]:
    """The results of each reader, which take turns."""
    results: dict[str, list[Result]] = {name: [] for name in readers}
    os.environ.update(setting.server.environment())
    for _ in range(rounds):
        for name, read in readers.items():
            results[name].append(read(setting))
    return results


def main() -> None:
    options = parse_arguments()
    readers = {name: read for name, read in READERS.items() if name.startswith(tuple(options.only or ("",)))}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        warm_up = WARM_UP_BATCHES * options.batch
        keys = write_pairs(folder / "buckets", warm_up + options.pairs)
        image_bytes, mask_bytes = (folder.joinpath("buckets", bucket, keys[0]).stat().st_size for bucket in BUCKETS)
        with S3Server(folder / "buckets", delay_ms=options.delay_ms) as server:
            setting = Setting(keys[:warm_up], keys[warm_up:], options.batch, folder, server)
            results = measure(setting, readers, options.rounds)
    print(*table(results), sep="\n")
    print(
        f"\n{describe_machine()}; {options.delay_ms:g} ms to the first byte, {options.pairs} pairs of "
        f"{image_bytes:,} + {mask_bytes:,} bytes, batches of {options.batch}, medians of {options.rounds} rounds; "
        f"warm: {WARM_PASSES} passes"
    )


if __name__ == "__main__":
    main()
