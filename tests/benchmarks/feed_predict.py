"""Tiles with a border of their neighbours a second, from S3: a plain loop by rasterio, and ours, in turn in one run.

    python tests/benchmarks/feed_predict.py [--delay-ms 25] [--side 12] [--plain 16] [--batch 8] [--buffer 64]
                                            [--rounds 3] [--brief]

The feed of `predict` alone: each batch is copied, where the network would take it. One scene of SIDE x SIDE tiles of
512 x 512 x 4 uint16, uncompressed, noise from a seed; server and client share this machine. The plain loop opens each
tile and each of its neighbours, and reads of a neighbour only the pixels that it needs; it is timed on tiles from the
middle of the scene, in a process of its own. Ours is cold: connections
and threads are made before the clock starts, nothing is in the cache; then warm: every tile is in the cache. What both
deliver is compared. Asserts nothing about time.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import rasterio
from machine import describe_machine
from noise_tiles import BANDS, SIZE, write_tile
from rasterio.session import AWSSession
from rasterio.windows import Window
from s3_server import S3Server

ZOOM, LEFT, TOP = 15, 10000, 10000


def write_scene(folder: Path, side: int) -> None:
    """One tile outside the scene, to warm up with, and the scene."""
    random = np.random.default_rng(0)
    paths = [f"scene/{ZOOM}/{LEFT + x}/{TOP + y}.tif" for x in range(side) for y in range(side)]
    for path in (f"warm_up/{ZOOM}/0/0.tif", *paths):
        write_tile(folder / "imagery" / path, random.integers(1, 10000, (BANDS, SIZE, SIZE), dtype=np.uint16))


def plain(places: list[tuple[int, int]], buffer: int, endpoint: str) -> tuple[float, list[np.ndarray]]:
    """Seconds for tiles that have all of their neighbours, and the tiles."""
    import boto3

    session = AWSSession(boto3.Session(), endpoint_url=endpoint)
    with rasterio.Env(session, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        started = time.perf_counter()
        tiles = [plain_tile(x, y, buffer) for x, y in places]
        return time.perf_counter() - started, tiles


def plain_tile(x: int, y: int, buffer: int) -> np.ndarray:
    """The tile (C, H, W) with its border: a file and a window of it for each of nine."""
    side = SIZE + 2 * buffer
    bordered = np.empty((BANDS, side, side), dtype=np.uint16)
    edges = [0, buffer, buffer + SIZE, side]
    starts = [SIZE - buffer, 0, 0]  # of the pixels of the tile before, of this one and of the next
    for down, right in itertools.product(range(3), repeat=2):
        rows, columns = slice(*edges[down : down + 2]), slice(*edges[right : right + 2])
        height, width = rows.stop - rows.start, columns.stop - columns.start
        with rasterio.open(f"s3://imagery/scene/{ZOOM}/{x + right - 1}/{y + down - 1}.tif") as file:
            bordered[:, rows, columns] = file.read(window=Window(starts[right], starts[down], width, height))
    return bordered


class Ours:
    """The reader of `predict`, with a cache of its own that is empty at first."""

    def __init__(self, folder: Path, batch_size: int, buffer: int) -> None:
        from robosat_pink.config import CacheConfig, ChannelConfig
        from robosat_pink.datasets.images import ImageTiles
        from robosat_pink.datasets.reading_order import batches_in_order
        from robosat_pink.datasets.sides import Side
        from robosat_pink.storage import Location

        self.buffer = buffer
        side = Side(Location.parse("s3://imagery"), ".*", "predict.images", "predict.images_regex")
        channels = (ChannelConfig(bands=tuple(range(1, BANDS + 1))),)
        self.tiles = ImageTiles(side, channels, cache=CacheConfig(dir=tempfile.mkdtemp(dir=folder), max_gb=100))
        self.batches = batches_in_order(self.tiles.files, self.tiles.rows_of_scene("scene"), batch_size, BANDS)
        self.tiles.__getitems__(self.tiles.rows_of_scene("warm_up").tolist() * 64)

    def read(self, keep: list[tuple[int, int]]) -> tuple[float, list[np.ndarray]]:
        """Seconds for the scene, and the tiles at the places to keep, by place."""
        from robosat_pink.datasets.neighbours import read_with_neighbours

        kept = {}
        copied = np.empty(0, dtype=np.uint16)
        started = time.perf_counter()
        for batch in read_with_neighbours(self.tiles, self.batches, buffer=self.buffer, size_multiple=64):
            if copied.size < batch.image.size:
                copied = np.empty_like(batch.image)
            copied[: len(batch.rows)] = batch.image
            for slot, row in enumerate(batch.rows):
                tile = self.tiles.files.tile(row)
                if (tile.x, tile.y) in keep:
                    kept[tile.x, tile.y] = batch.image[slot].copy()
        return time.perf_counter() - started, [kept[place] for place in keep]


def in_its_own_process(places: list[tuple[int, int]], buffer: int, server: S3Server) -> tuple[float, list[np.ndarray]]:
    """What `plain` returns; GDAL remembers files that it has opened."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(os.getpid).result()
        server.reset()
        return process.submit(plain, places, buffer, os.environ["AWS_S3_ENDPOINT"]).result()


def measure(options: argparse.Namespace, folder: Path, server: S3Server) -> Iterator[tuple[str, float, float]]:
    """Name, tiles per second and GETs per tile of each way, which take turns."""
    inside = [(LEFT + x, TOP + y) for y in range(1, options.side - 1) for x in range(1, options.side - 1)]
    places = inside[: options.plain]
    ways = {"plain loop": len(places), "ours, cold": options.side**2, "ours, warm": options.side**2}
    for _ in range(options.rounds):
        reader = Ours(folder, options.batch, options.buffer)
        expected: list[np.ndarray] = []
        for name, tiles in ways.items():
            if name == "plain loop":
                seconds, expected = in_its_own_process(places, options.buffer, server)
            else:
                server.reset()
                seconds, found = reader.read(places)
                assert all(map(np.array_equal, found, expected)), "both ways must deliver the same pixels"
            requests = server.stats()["requests"]
            yield name, tiles / seconds, sum(requests.values()) / tiles


def table(results: list[tuple[str, float, float]]) -> Iterator[str]:
    """The median speed of each way, and what its last round asked of the server."""
    speeds: dict[str, list[float]] = {}
    for name, speed, _ in results:
        speeds.setdefault(name, []).append(speed)
    requests = {name: count for name, _, count in results}
    base = statistics.median(speeds["plain loop"])
    yield "| | tiles/s | x plain | requests a tile |"
    yield "|---|---:|---:|---:|"
    for name, measured in speeds.items():
        speed = statistics.median(measured)
        yield f"| {name} | {speed:.1f} | {speed / base:.1f} | {requests[name]:.2f} |"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tiles with their neighbours a second from S3, by two ways in turn.")
    parser.add_argument("--delay-ms", type=float, default=25.0, help="before the first byte of every answer")
    parser.add_argument("--side", type=int, default=12, help="tiles along each side of the scene")
    parser.add_argument("--plain", type=int, default=16, help="tiles that the plain loop is timed on")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--buffer", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--brief", action="store_true", help="one round of 8 x 8 tiles, 6 of them by the plain loop")
    options = parser.parse_args()
    if options.brief:
        options.rounds, options.side, options.plain = 1, 8, 6
    return options


def main() -> None:
    options = parse_arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_scene(folder / "buckets", options.side)
        with S3Server(folder / "buckets", delay_ms=options.delay_ms) as server:
            os.environ.update(server.environment())
            results = list(measure(options, folder, server))
    print(*table(results), sep="\n")
    print(
        f"\n{describe_machine()}; {options.delay_ms:g} ms to the first byte, {options.side} x {options.side} tiles of "
        f"{SIZE} x {SIZE} x {BANDS} uint16, {options.plain} of them by the plain loop, buffer {options.buffer}, "
        f"batches of {options.batch}, medians of {options.rounds} rounds"
    )


if __name__ == "__main__":
    main()
