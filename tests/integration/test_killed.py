"""What is killed, damaged or refused while tiles are kept: the next run is right, and so is all that was kept."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.s3_server import S3Server
from conftest import pattern
from robosat_pink.config import CacheConfig
from robosat_pink.container.atomic_write import TEMPORARY_SUFFIX
from robosat_pink.datasets import TilePairs
from robosat_pink.datasets.batch import Batch
from robosat_pink.datasets.cache import SUFFIX
from robosat_pink.datasets.cache_file import PAGE
from robosat_pink.datasets.loader import TileLoader
from robosat_pink.datasets.reader import DECODERS
from robosat_pink.datasets.worker_client import Worker
from robosat_pink.errors import RobosatError
from robosat_pink.storage import location
from scenes import pairs_in, write_pair

PAIRS, SIZE = 60, 64
ROWS = np.arange(PAIRS)

Arrays = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two buckets, imagery and mask, of pairs whose rows are their x; each image is another."""
    folder = tmp_path_factory.mktemp("buckets")
    for x in range(PAIRS):
        write_pair(folder, x, image=pattern(2, SIZE, SIZE) + np.uint16(x))
    return folder


@pytest.fixture(scope="module")
def process(folder: Path) -> Iterator[S3Server]:
    with S3Server(folder) as server:
        yield server


@pytest.fixture
def server(process: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    for name, value in process.environment().items():
        monkeypatch.setenv(name, value)
    process.set()
    yield process
    location._client_of_this_process.cache_clear()


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[Arrays]:
    """By row."""
    return [(sample.image, sample.mask) for sample in pairs_in(folder).__getitems__(range(PAIRS))]


def pairs_on(server: S3Server, cache: Path) -> TilePairs:
    where = {"image_bucket": "s3://imagery", "mask_bucket": "s3://mask", "endpoint_url": server.url}
    return pairs_in(cache, dataset=where | {"cache": CacheConfig(dir=str(cache), max_gb=1.0)})


def assert_right(batch: Batch, expected: list[Arrays]) -> None:
    for place, row in enumerate(batch.rows):
        assert np.array_equal(batch.image[place].numpy(), expected[row][0])
        assert np.array_equal(batch.mask[place].numpy(), expected[row][1])


def kept_rows(tiles: TilePairs, expected: list[Arrays]) -> list[int]:
    """Rows that the cache has, after a look that each is right, and that nothing else counts as an entry."""
    cache = tiles.reader.cache
    assert cache is not None
    kept = []
    for row in range(len(tiles)):
        if pair := cache.get(tiles.reader._cache_key(tiles.request(row))):
            assert np.array_equal(pair[0], expected[row][0])
            assert np.array_equal(pair[1], expected[row][1])
            kept.append(row)
    assert len(list(cache.folder.glob(f"*{SUFFIX}"))) == len(kept)
    return kept


def assert_next_run_is_right(server: S3Server, cache: Path, expected: list[Arrays]) -> None:
    """Everything is delivered once, what was kept is not asked for, and then all is kept."""
    tiles = pairs_on(server, cache)
    kept = kept_rows(tiles, expected)
    server.reset()
    batches = list(TileLoader(tiles, 4, 0).evaluation(ROWS))
    assert [row for batch in batches for row in batch.rows] == ROWS.tolist()
    for batch in batches:
        assert_right(batch, expected)
    assert server.stats()["requests"].get("GET", 0) == 2 * (PAIRS - len(kept))
    assert kept_rows(tiles, expected) == ROWS.tolist()


def entries(cache: Path) -> int:
    return len(list(cache.glob(f"*{SUFFIX}")))


def wait_for_entries(cache: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while entries(cache) < count:
        assert time.monotonic() < deadline, f"{entries(cache)} entries and no more"
        time.sleep(0.002)


@pytest.mark.parametrize("count", [1, 10, 20])
def test_worker_that_is_killed_while_it_fills_the_cache_leaves_only_right_entries(
    server: S3Server, tmp_path: Path, expected: list[Arrays], count: int
) -> None:
    server.set(delay_ms=50, bandwidth_mb=0.5)
    loader = TileLoader(pairs_on(server, tmp_path), 4, 1)
    (source,) = loader._sources
    assert isinstance(source, Worker)
    batches = loader.training(ROWS, epoch=1)
    next(batches)
    wait_for_entries(tmp_path, count)
    os.kill(source._process.pid or 0, signal.SIGKILL)
    with pytest.raises(RobosatError, match="killed by signal 9"):
        list(batches)
    server.set()
    assert_next_run_is_right(server, tmp_path, expected)


RUN = """
import os, sys, time
sys.path[:0] = {paths!r}
import numpy as np
from pathlib import Path
from robosat_pink.config import CacheConfig
from robosat_pink.datasets.loader import TileLoader
from scenes import pairs_in

if {hangs}:
    def half(file, parts):
        os.write(file, parts[0])
        print("half", flush=True)
        time.sleep(600)
    os.writev = half
if __name__ == "__main__":
    where = {{"image_bucket": "s3://imagery", "mask_bucket": "s3://mask", "endpoint_url": {url!r}}}
    settings = CacheConfig(dir={folder!r}, max_gb=1.0)
    tiles = pairs_in(Path("."), dataset=where | {{"cache": settings}})
    print("listed", flush=True)
    for _ in TileLoader(tiles, 4, {workers}).evaluation(np.arange({pairs})):
        pass
    print("read", flush=True)
"""


def start(server: S3Server, cache: Path, workers: int, hangs: bool = False) -> subprocess.Popen[str]:
    """A process that reads everything once, in a session of its own; if it hangs, in the middle of a file it keeps."""
    script = cache.parent / f"{cache.name}.py"
    tests = Path(__file__).parents[1]
    values = {"url": server.url, "folder": str(cache), "workers": workers, "pairs": PAIRS, "hangs": hangs}
    script.write_text(RUN.format(paths=[str(tests), str(tests / "unit"), *sys.path], **values))
    return subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, start_new_session=True)


def kill(run: subprocess.Popen[str]) -> None:
    """kill -9, of this process alone: its workers must go by themselves."""
    run.kill()
    run.communicate()


def wait_until_quiet(cache: Path) -> None:
    """Until no worker of a killed process adds any more."""
    count, deadline = -1, time.monotonic() + 20
    while count != (count := len(list(cache.glob(f"*{SUFFIX}*")))):
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.slow
def test_run_that_is_killed_again_and_again_while_it_fills_the_cache_ends_right(
    server: S3Server, tmp_path: Path, expected: list[Arrays]
) -> None:
    cache = tmp_path / "cache"
    last = pairs_on(server, tmp_path / "other").pairs.images.path(PAIRS - 1)  # never comes, so that no run ends first
    server.set(delay_ms=20, bandwidth_mb=0.3, faults={"stall": 1.0}, fault_keys=f"imagery/{last}$")
    for count, workers in ((5, 0), (25, 1), (40, 0)):
        run = start(server, cache, workers)
        wait_for_entries(cache, count)
        assert run.poll() is None
        kill(run)
        wait_until_quiet(cache)
        assert count <= len(kept_rows(pairs_on(server, cache), expected)) < PAIRS
    server.set()
    assert_next_run_is_right(server, cache, expected)


def test_file_that_a_killed_run_left_half_written_is_no_entry(
    server: S3Server, tmp_path: Path, expected: list[Arrays]
) -> None:
    cache = tmp_path / "cache"
    run = start(server, cache, 0, hangs=True)
    assert run.stdout is not None
    said = run.stdout.readline()
    assert said.strip() == "listed"
    while said.count("half") < DECODERS and run.poll() is None:  # threads that speak at once share a line
        said += run.stdout.readline()
    kill(run)
    halves = list(cache.glob(f"*{SUFFIX}*"))
    assert len(halves) == DECODERS
    assert all(path.name.endswith(TEMPORARY_SUFFIX) and path.stat().st_size == PAGE for path in halves)
    assert_next_run_is_right(server, cache, expected)


def test_two_processes_that_fill_one_cache_at_once_are_both_right(
    server: S3Server, tmp_path: Path, expected: list[Arrays]
) -> None:
    loaders = [TileLoader(pairs_on(server, tmp_path), 4, 1) for _ in range(2)]
    for pair in zip(*(loader.evaluation(ROWS) for loader in loaders), strict=True):
        for batch in pair:
            assert_right(batch, expected)
    assert kept_rows(pairs_on(server, tmp_path), expected) == ROWS.tolist()


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "a bit":
        data[len(data) // 3] ^= 4
    elif how == "the header":
        data[20] ^= 1
    else:
        del data[len(data) // 2 :]
    path.write_bytes(data)


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_entries_are_fetched_again_and_mended(
    server: S3Server, tmp_path: Path, expected: list[Arrays], workers: int
) -> None:
    tiles = pairs_on(server, tmp_path)
    list(TileLoader(tiles, 4, 0).evaluation(ROWS))
    for path, how in zip(sorted(tmp_path.glob(f"*{SUFFIX}")), ("a bit", "the header", "the end"), strict=False):
        damage(path, how)
    server.reset()
    loader = TileLoader(tiles, 4, workers)
    for cached, requests in ((PAIRS - 3, 6), (PAIRS, 6)):
        batches = list(loader.evaluation(ROWS))
        assert sum(batch.cached for batch in batches) == cached
        for batch in batches:
            assert_right(batch, expected)
        assert server.stats()["requests"]["GET"] == requests
    assert kept_rows(tiles, expected) == ROWS.tolist()


@pytest.mark.parametrize("reason", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_cache_that_cannot_be_written_any_more_warns_once_and_serves_what_it_has(
    server: S3Server,
    tmp_path: Path,
    expected: list[Arrays],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reason: int,
) -> None:
    """As root no folder is read-only: the system's refusal is played."""
    list(TileLoader(pairs_on(server, tmp_path), 4, 0).evaluation(ROWS[:20]))
    real = os.open

    def refuse(path: str, flags: int, *rest: int, **options: int) -> int:
        if str(path).startswith(str(tmp_path)) and flags & os.O_CREAT:
            raise OSError(reason, os.strerror(reason))
        return real(path, flags, *rest, **options)

    monkeypatch.setattr("os.open", refuse)
    server.reset()
    tiles = pairs_on(server, tmp_path)
    caplog.clear()
    for requests in (2 * (PAIRS - 20), 4 * (PAIRS - 20)):
        batches = list(TileLoader(tiles, 4, 0).evaluation(ROWS))
        assert sum(batch.cached for batch in batches) == 20
        for batch in batches:
            assert_right(batch, expected)
        assert server.stats()["requests"]["GET"] == requests
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        f"warning: the cache {tmp_path} cannot be written ({os.strerror(reason)}); tiles are not kept"
    ] * len(warnings)
    assert 1 <= len(warnings) <= DECODERS  # all may be writing when it happens
    assert kept_rows(tiles, expected) == list(range(20))
