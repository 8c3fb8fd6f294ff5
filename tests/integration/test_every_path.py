"""All real tiles, plain and odd, give the same arrays whichever way they come: by either decoder, from a folder, a
channel, a bucket or the cache, read here or by worker processes, as a list or in batches."""

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from benchmarks.s3_server import S3Server
from conftest import write_tile
from robosat_pink.config import CacheConfig, ChannelConfig, ClassConfig, DatasetConfig
from robosat_pink.datasets import TilePairs
from robosat_pink.datasets.loader import TileLoader
from robosat_pink.errors import DataError

SNOW = (ClassConfig(name="snow", values=(1, 255)),)
CORRUPT, MASK = "rasterio_corrupt", "solaris_mask_0_255_nocrs"
EMPTY = ("rasterio_all-nodata", "riotiler_inverted_lat")
PLAIN_PAIRS, ODD_PAIRS = 128, 12
NO_CACHE = CacheConfig(max_gb=0)

Arrays = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def buckets(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that are the server's buckets: {plain,odd,corrupt}-{imagery,mask}, an odd file in a directory each.

    Odd images get a mask that has some of each class and of nodata, the odd mask gets an image.
    """
    folder = tmp_path_factory.mktemp("buckets")
    for kind in ("imagery", "mask"):
        shutil.copytree(shared / "data" / kind, folder / f"plain-{kind}")
    for path in sorted((shared / "data/odd").iterdir()):
        group = "corrupt" if path.stem == CORRUPT else "odd"
        image, mask = (folder / f"{group}-{kind}/{path.stem}/5/1/2.tif" for kind in ("imagery", "mask"))
        with rasterio.open(path) as file:
            row, column = np.ogrid[: file.height, : file.width]
        place = mask if path.stem == MASK else image
        place.parent.mkdir(parents=True)
        shutil.copy(path, place)
        if path.stem == MASK:
            write_tile(image, np.stack([1 + row + column, 1 + row + 2 * column, 3 + row + 0 * column]).astype("uint16"))
        else:
            values = (row + 2 * column) % 7
            write_tile(
                mask, np.where(values == 6, 255, values % 2).astype(np.uint8), nodata=255, crs=None, transform=None
            )
    return folder


@pytest.fixture(scope="module")
def process(buckets: Path) -> Iterator[S3Server]:
    with S3Server(buckets) as server:
        yield server


@pytest.fixture
def server(process: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in process.environment().items():
        monkeypatch.setenv(name, value)
    process.set()
    return process


class Reader:
    """Reads the pairs of {group}-imagery and {group}-mask: of each what it gives, whole and without augmentation."""

    def __init__(self, buckets: Path, group: str, bands: Sequence[int], directory: str = "") -> None:
        self.buckets, self.group, self.bands, self.directory = buckets, group, tuple(bands), directory

    def pairs(self, where: str, cache: CacheConfig) -> TilePairs:
        expression = f"(?P<scene>{re.escape(self.directory) or '.*'})"
        config = DatasetConfig(
            image_bucket=f"{where}{self.group}-imagery",
            mask_bucket=f"{where}{self.group}-mask",
            imagery_directory_regex=expression,
            mask_directory_regex=expression,
            cache=cache,
        )
        channels = {f"{self.group}-{kind}": self.buckets / f"{self.group}-{kind}" for kind in ("imagery", "mask")}
        return TilePairs(config, (ChannelConfig(bands=self.bands, scale=1000),), SNOW, input_channels=channels)

    def listed(self, where: str, cache: CacheConfig = NO_CACHE) -> list[Arrays]:
        tiles = self.pairs(where, cache)
        return [(sample.image, sample.mask) for sample in tiles.__getitems__(range(len(tiles)))]

    def batched(self, where: str, workers: int, cache: CacheConfig = NO_CACHE) -> list[Arrays]:
        """In batches of one, so that none is changed for another's sake. They leave out what has no valid pixel."""
        tiles = self.pairs(where, cache)
        batches = TileLoader(tiles, 1, workers).evaluation(np.arange(len(tiles)))
        return [(batch.image[0].numpy().copy(), batch.mask[0].numpy().copy()) for batch in batches if len(batch)]


def assert_same(found: list[Arrays], expected: list[Arrays]) -> None:
    assert len(found) == len(expected)
    for got, wanted in zip(found, expected, strict=True):
        for one, other in zip(got, wanted, strict=True):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert np.array_equal(one, other)


def assert_every_path_agrees(
    read: Reader, folder: str, cache: CacheConfig, workers: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> list[Arrays]:
    """What every path gives."""
    with monkeypatch.context() as patch:
        patch.setattr("robosat_pink.datasets.rasters.geotiff.decode", lambda data, max_pixels, max_bytes: None)
        expected = read.listed(folder)
    assert_same(read.listed(folder), expected)
    assert_same(read.listed("channel:"), expected)
    assert_same(read.listed("s3://"), expected)
    for _ in ("kept", "found"):
        assert_same(read.listed("s3://", cache), expected)
    full = [(image, mask) for image, mask in expected if (mask != 255).any()]
    for number in workers:
        assert_same(read.batched(folder, number), full)
        assert_same(read.batched("s3://", number), full)
        assert_same(read.batched("s3://", number, cache), full)
    return expected


def gets_of_every_path(pairs: int, workers: Sequence[int]) -> int:
    """Two a pair: from the bucket without a cache, once with one, and without one for each number of workers."""
    return 2 * pairs * (2 + len(workers))


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    return CacheConfig(dir=str(tmp_path / "cache"), max_gb=2.0)


@pytest.mark.slow
def test_plain_tiles_are_the_same_by_every_path(
    buckets: Path, server: S3Server, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Reader(buckets, "plain", (1, 2, 3, 4))
    found = assert_every_path_agrees(read, f"{buckets}/", cache, (0, 1, 2), monkeypatch)
    assert len(found) == PLAIN_PAIRS
    assert {image.dtype.name for image, _ in found} == {"uint8", "uint16", "int16"}
    assert server.stats()["requests"]["GET"] == gets_of_every_path(PLAIN_PAIRS, (0, 1, 2))


@pytest.mark.slow
def test_first_bands_of_odd_tiles_are_the_same_by_every_path(
    buckets: Path, server: S3Server, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = assert_every_path_agrees(Reader(buckets, "odd", (1,)), f"{buckets}/", cache, (0, 1, 2), monkeypatch)
    assert len(found) == ODD_PAIRS
    assert sum(not (mask != 255).any() for _, mask in found) == len(EMPTY)
    assert {image.dtype.name for image, _ in found} == {"uint8", "uint16", "int16", "float32"}
    assert server.stats()["requests"]["GET"] == gets_of_every_path(ODD_PAIRS, (0, 1, 2))


@pytest.mark.slow
def test_all_bands_of_odd_tiles_turned_round_are_the_same_by_every_path(
    shared: Path, buckets: Path, server: S3Server, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in sorted((shared / "data/odd").iterdir()):
        if path.stem in (CORRUPT, MASK):
            continue
        with rasterio.open(path) as file:
            bands = file.indexes[::-1]
        read = Reader(buckets, "odd", bands, path.stem)
        ((image, mask),) = assert_every_path_agrees(read, f"{buckets}/", cache, (0,), monkeypatch)
        assert len(image) == len(bands)
        assert (mask != 255).any() == (path.stem not in EMPTY)


def test_corrupt_tile_is_the_same_error_by_every_path(
    buckets: Path, server: S3Server, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Reader(buckets, "corrupt", (1, 2, 3))

    def by_gdal() -> Any:
        with monkeypatch.context() as patch:
            patch.setattr("robosat_pink.datasets.rasters.geotiff.decode", lambda data, max_pixels, max_bytes: None)
            return read.listed(f"{buckets}/")

    paths: list[Callable[[], Any]] = [
        by_gdal,
        lambda: read.listed(f"{buckets}/"),
        lambda: read.listed("channel:"),
        lambda: read.listed("s3://"),
        *(lambda: read.listed("s3://", cache) for _ in ("kept", "found")),
        *(lambda workers=workers: read.batched("s3://", workers) for workers in (0, 1)),
    ]
    for path in paths:
        with pytest.raises(DataError, match=rf"corrupt-imagery/{CORRUPT}/5/1/2.tif: damaged, opens but cannot be read"):
            path()
