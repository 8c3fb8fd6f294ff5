"""A store and a network that fail: no tile is lost, none comes twice, none is wrong, and what never passes is named."""

import contextlib
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.s3_server import FAULTS, S3Server
from conftest import files_in, pattern, write_tile
from robosat_pink.config import CacheConfig
from robosat_pink.container.stop_request import Stopped
from robosat_pink.datasets import TilePairs
from robosat_pink.datasets.batch import Batch
from robosat_pink.datasets.loader import TileLoader
from robosat_pink.datasets.tile_file import Changed
from robosat_pink.errors import DataError
from robosat_pink.sample import write_tiles
from robosat_pink.storage import Location, backoff, md5
from robosat_pink.storage import location as storage
from robosat_pink.train import main
from robosat_pink.training import loop, step
from scenes import pairs_in, write_pair

PAIRS, EPOCHS = 24, 3
ROWS = np.arange(PAIRS)
PASSING = [kind for kind in FAULTS if kind != "etag"]  # that is an object that has changed
RATES = dict.fromkeys(PASSING, 0.05)
SICK = "scene/5/17/2.tif"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two buckets, imagery and mask, of pairs whose rows are their x; each image is another."""
    folder = tmp_path_factory.mktemp("buckets")
    for x in range(PAIRS):
        write_pair(folder, x, image=pattern(2, 12, 12) + np.uint16(x))
    return folder


@pytest.fixture(scope="module")
def process(folder: Path) -> Iterator[S3Server]:
    with S3Server(folder, {"many": (3500, 3)}) as server:
        yield server


@pytest.fixture
def server(process: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    for name, value in process.environment().items():
        monkeypatch.setenv(name, value)
    process.set()
    storage._client_of_this_process.cache_clear()
    md5._stores_with_md5.clear()
    md5._stores_without_md5.clear()
    yield process
    storage._client_of_this_process.cache_clear()


@pytest.fixture
def hurried(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent connection is given up after 0.2 s, and a request after 0.6 s, which by default takes 45."""
    monkeypatch.setitem(storage.TIMEOUTS, "read_timeout", timedelta(seconds=0.2))
    monkeypatch.setattr(backoff, "RETRY_S", 0.6)


def pairs_on(server: S3Server, folder: Path, cache: Path | None = None, **dataset: Any) -> TilePairs:
    where = {"image_bucket": "s3://imagery", "mask_bucket": "s3://mask", "endpoint_url": server.url}
    settings = CacheConfig(dir=str(cache), max_gb=1.0) if cache else CacheConfig(max_gb=0)
    options = {"cache": settings, "verify_md5": True} | dataset
    return pairs_in(folder, dataset=where | options, augmentation=0.75, seed=3)


def digests(batches: Iterable[Batch]) -> list[tuple[tuple[int, ...], tuple[int, ...], str]]:
    """Of each batch its rows, its symmetries, and a digest of its images and masks."""
    return [
        (
            batch.rows,
            batch.symmetry,
            hashlib.sha256(batch.image.numpy().tobytes() + batch.mask.numpy().tobytes()).hexdigest(),
        )
        for batch in batches
    ]


def epoch(loader: TileLoader, number: int) -> tuple[list[Any], int, int]:
    """The digests of an epoch of training, how many requests were repeated, and how many tiles the cache had."""
    retries = cached = 0

    def counted() -> Iterator[Batch]:
        nonlocal retries, cached
        for batch in loader.training(ROWS, number):
            retries += batch.retries
            cached += batch.cached
            yield batch

    return digests(counted()), retries, cached


def faultless(folder: Path) -> list[list[Any]]:
    """What three epochs give from the folder itself."""
    loader = TileLoader(pairs_in(folder, augmentation=0.75, seed=3), 4, 0)
    return [epoch(loader, number)[0] for number in range(1, EPOCHS + 1)]


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "is_cached"), [(0, False), (0, True), (1, False)])
def test_faults_of_every_kind_neither_lose_nor_repeat_nor_change_a_tile(
    server: S3Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, is_cached: bool
) -> None:
    """A worker has the default timeouts: for it the server soon ends the connections that it lets wait."""
    if not workers:
        monkeypatch.setitem(storage.TIMEOUTS, "read_timeout", timedelta(seconds=0.3))
    loader = TileLoader(pairs_on(server, folder, tmp_path / "cache" if is_cached else None), 4, workers)
    server.set(faults=RATES, seed=18, stall_s=0.5 if workers else 3)
    repeated = 0
    for number, expected in enumerate(faultless(folder), 1):
        found, retries, cached = epoch(loader, number)
        assert sorted(row for rows, _, _ in found for row in rows) == ROWS.tolist()
        assert found == expected
        assert cached == (PAIRS if is_cached and number > 1 else 0)
        repeated += retries
    stats = server.stats()
    assert set(stats["faults"]) == set(PASSING)
    assert repeated >= sum(stats["faults"].values())
    assert stats["requests"] == {"GET": 2 * PAIRS * (1 if is_cached else EPOCHS) + repeated}


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.usefixtures("hurried")
def test_fault_that_never_passes_is_an_error_that_names_the_object_and_no_other_tile_suffers(
    server: S3Server, folder: Path, kind: str
) -> None:
    tiles = pairs_on(server, folder, verify_md5=kind != "etag")
    expected = digests(TileLoader(pairs_in(folder), 1, 0).evaluation(ROWS))
    others = np.delete(ROWS, 17)
    tiles[0]  # a store whose ETags never agree is another matter
    server.set(faults={kind: 1}, fault_keys=f"imagery/{SICK}", stall_s=3)
    loader = TileLoader(tiles, 1, 0)
    started = time.monotonic()
    with pytest.raises(DataError, match=f"^s3://imagery/{SICK}: ") as caught:
        list(loader.evaluation(ROWS))
    assert time.monotonic() - started < 0.6 + 0.2 + 3  # the time for retries, a last attempt, and a slow machine
    assert ("(tried " in str(caught.value)) == (kind != "etag")
    assert digests(loader.evaluation(others)) == [expected[row] for row in others]


@pytest.mark.parametrize("workers", [0, 1])
def test_wait_for_a_silent_store_is_interrupted(server: S3Server, folder: Path, workers: int) -> None:
    def interrupt() -> None:
        raise Stopped

    loader = TileLoader(pairs_on(server, folder), 1, workers, interrupt=interrupt)
    server.set(faults={"stall": 1}, stall_s=5)
    started = time.monotonic()
    with pytest.raises(Stopped):
        list(loader.evaluation(ROWS))
    assert time.monotonic() - started < 4


def test_error_comes_within_a_minute_by_the_default_times() -> None:
    """The last attempt begins before RETRY_S, and a silent one ends by its timeouts, as the tests above show."""
    timeouts = storage.TIMEOUTS
    longest_s = sum(timeouts[name].total_seconds() for name in ("connect_timeout", "read_timeout"))  # type: ignore
    assert backoff.RETRY_S + longest_s <= 60


LISTING_FAULTS = [kind for kind in FAULTS if kind not in ("etag", "corrupt")]  # a listing has neither ETag nor checksum


@pytest.mark.parametrize("kind", LISTING_FAULTS)
@pytest.mark.usefixtures("hurried")
def test_listing_is_whole_or_an_error_and_never_a_part(
    server: S3Server, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = Location.parse("s3://many", endpoint_url=server.url)
    names = location.directories()
    expected = {name: files_in(location, name) for name in names}
    assert sum(map(len, expected.values())) == 3500
    server.set(faults={kind: 0.5}, seed=4, stall_s=1)
    found = []
    for name in names:
        with contextlib.suppress(DataError):
            found.append(files_in(location, name) == expected[name])
    assert server.stats()["faults"][kind] >= 2
    assert found
    assert all(found)
    server.set(faults={kind: 1}, stall_s=1)
    with pytest.raises(DataError, match=f"^s3://many/{names[0]}: "):
        files_in(location, names[0])


def test_what_is_said_of_a_listing_that_broke_off_counts_no_file_twice(
    server: S3Server, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(backoff, "MAX_PAUSE_S", 0.1)
    same_scene = "(?P<scene>.*)"
    expressions = {"imagery_directory_regex": same_scene, "mask_directory_regex": same_scene}
    server.set(faults={"short_body": 0.5}, seed=5)
    with pytest.raises(DataError, match="3500 images would be their own masks"):
        pairs_on(server, folder, image_bucket="s3://many", mask_bucket="s3://many", **expressions)
    assert server.stats()["faults"]["short_body"] > 1
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("listed")]
    assert said == ["listed 3,500 tiles of s3://many (directories: 3, other files: 0)"] * 2


@pytest.fixture
def own(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[S3Server, Path]]:
    """A server whose objects the test may change, and their folder."""
    shutil.copytree(folder, tmp_path / "buckets")
    with S3Server(tmp_path / "buckets") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server, tmp_path / "buckets"


def test_object_that_changes_is_an_error_that_names_it(own: tuple[S3Server, Path]) -> None:
    server, folder = own
    loader = TileLoader(pairs_on(server, folder), 4, 0)
    before = digests(loader.evaluation(ROWS[:16]))
    write_tile(folder / "mask/labels/5/17/2.tif", np.ones((12, 12), np.uint8))
    server.reset()
    with pytest.raises(Changed, match=r"^s3://mask/labels/5/17/2.tif: has changed since it was listed; start again"):
        list(loader.evaluation(ROWS))
    assert digests(loader.evaluation(ROWS[:16])) == before
    assert len(list(TileLoader(pairs_on(server, folder), 4, 0).evaluation(ROWS))) == 6


def test_etag_that_is_no_md5_is_believed_once_the_same_bytes_came_twice(server: S3Server) -> None:
    """As S3's are of objects encrypted by KMS."""
    location = Location.parse("s3://imagery", endpoint_url=server.url, verify_md5=True)
    server.set(faults={"etag": 1})
    assert [location.fetch(f"scene/5/{x}/2.tif").retries for x in (1, 2, 1, 3)] == [1, 0, 0, 0]
    assert server.stats()["requests"] == {"GET": 5}
    another = Location.parse("s3://mask", endpoint_url=server.url, verify_md5=True)
    assert [another.fetch(f"labels/5/{x}/2.tif").retries for x in (1, 2)] == [1, 0]


@pytest.mark.parametrize("kind", LISTING_FAULTS)
def test_fault_that_passes_does_not_end_a_run_before_it_has_begun(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(storage.TIMEOUTS, "read_timeout", timedelta(seconds=0.2))
    server.set(faults={kind: 0.5}, seed=0, stall_s=1)
    location = Location.parse("s3://many", endpoint_url=server.url)
    assert location.directories() == ["scene_000", "scene_001", "scene_002"]
    assert server.stats()["faults"][kind] > 0


@pytest.mark.usefixtures("hurried")
def test_where_etags_are_md5s_the_same_wrong_bytes_are_never_believed(server: S3Server) -> None:
    """As a faulty proxy gives them, again and again."""
    location = Location.parse("s3://imagery", endpoint_url=server.url, verify_md5=True)
    right = location.read("scene/5/1/2.tif")
    server.set(faults={"corrupt": 1}, fault_keys=SICK)
    with pytest.raises(DataError, match=rf"^s3://imagery/{SICK}: .*MD5.*verify_md5"):
        location.read(SICK)
    assert location.read("scene/5/1/2.tif") == right
    server.set()
    assert location.fetch(SICK).retries == 0


EXPERIMENT = {
    "dataset": {
        "image_bucket": "s3://imagery",
        "mask_bucket": "s3://mask",
        "train_percent": 0.75,
        "if_changed": "relist",
        "cache": {"max_gb": 0},
    },
    "classes": [{"name": "snow"}],
    "channels": [{"bands": [1, 2, 3, 4], "scale": 10000}],
    "model": {"name": "albunet", "encoder": "resnet18", "num_filters": 2, "tile_size": 64, "batch_size": 1},
    "runtime": {"workers": 0, "precision": "fp32"},
}
TILES = 4
TRAIN, VAL = 12, 4
OLD, NEW = 5000, 7000


def paint(folder: Path, value: int) -> None:
    """Make every image of this value alone."""
    for path in (folder / "imagery").rglob("*.tif"):
        write_tile(
            path, np.full((4, 64, 64), value, np.uint16), crs=None, transform=None
        )  # it lies where its mask does


class Seen:
    """The values of the images of each phase that was finished, and what happens in between."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, then: Callable[[str, int, int], None]) -> None:
        self.finished: list[tuple[str, int, list[int]]] = []
        values: dict[int, list[int]] = {}
        to_device, add, finish = step.to_device, loop.PhaseMetrics.add, loop.PhaseMetrics.finish
        newest: list[int] = []

        def remembered(batch: Batch, *rest: Any) -> Any:
            newest[:] = [int(image.max()) for image in batch.image.numpy()]
            return to_device(batch, *rest)

        def noted(phase_metrics: loop.PhaseMetrics, *rest: Any) -> None:
            values.setdefault(id(phase_metrics), []).extend(newest)
            add(phase_metrics, *rest)
            then(phase_metrics.phase, phase_metrics.epoch, len(values[id(phase_metrics)]))

        def kept(phase_metrics: loop.PhaseMetrics, *rest: Any) -> Any:
            self.finished.append((phase_metrics.phase, phase_metrics.epoch, values.pop(id(phase_metrics))))
            return finish(phase_metrics, *rest)

        monkeypatch.setattr(step, "to_device", remembered)
        monkeypatch.setattr(loop.PhaseMetrics, "add", noted)
        monkeypatch.setattr(loop.PhaseMetrics, "finish", kept)


@pytest.mark.slow
def test_held_out_tiles_that_changed_by_the_end_are_listed_again_too(
    opt_ml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "buckets"
    write_tiles(folder, tiles=TILES, size=64)
    paint(folder, OLD)
    experiment = EXPERIMENT | {"dataset": EXPERIMENT["dataset"] | {"split": {"test_percent": 0.2}}}
    (opt_ml / "input/data/config/experiment.yml").write_text(yaml.safe_dump(experiment))
    with S3Server(folder) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        storage._client_of_this_process.cache_clear()

        def replace(phase: str, epoch: int, samples: int) -> None:
            if phase == "val" and samples == 1 and epoch == 1:
                paint(folder, NEW)
                server.reset()

        seen = Seen(monkeypatch, replace)
        assert main(["model.epochs=1"]) == 0, capsys.readouterr().out
    assert [(name, number) for name, number, _ in seen.finished] == [("train", 1), ("val", 1), ("holdout", 1)]
    assert seen.finished[-1][2] == [NEW] * 3
    assert json.loads((opt_ml / "model/metrics.json").read_text())["holdout"] is not None
    assert capsys.readouterr().out.count("listing again") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "samples"), [("val", VAL), ("train", 1)], ids=["between epochs", "amid an epoch's training"]
)
def test_run_that_may_lists_again_goes_on_with_the_new_tiles_and_mixes_no_metrics(
    opt_ml: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    phase: str,
    samples: int,
) -> None:
    """All images are replaced: a phase that has seen old and new ones shows."""
    monkeypatch.setattr("robosat_pink.datasets.loader.REQUESTS", 4)  # and so two tiles are read ahead
    folder = tmp_path / "buckets"
    write_tiles(folder, tiles=TILES, size=64)
    paint(folder, OLD)
    (opt_ml / "input/data/config/experiment.yml").write_text(yaml.safe_dump(EXPERIMENT))
    with S3Server(folder) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        storage._client_of_this_process.cache_clear()

        def replace(*at: Any) -> None:
            if at == (phase, 1, samples):
                paint(folder, NEW)
                server.reset()

        seen = Seen(monkeypatch, replace)
        assert main(["model.epochs=2"]) == 0
    log = capsys.readouterr().out
    restarted = 2 if phase == "val" else 1
    assert re.search(r"warning: s3://imagery/\S+\.tif: has changed since it was listed", log)
    assert log.count(f"listing again; epoch {restarted} restarts") == 1
    assert "start again" not in log
    assert [(name, number, len(values)) for name, number, values in seen.finished] == [
        (name, number, count) for number in (1, 2) for name, count in (("train", TRAIN), ("val", VAL))
    ]
    of_old = [values == [OLD] * len(values) for _, _, values in seen.finished]
    of_new = [values == [NEW] * len(values) for _, _, values in seen.finished]
    assert of_old == ([True, True, False, False] if phase == "val" else [False] * 4)
    assert of_new == [not old for old in of_old]


def test_workers_ask_with_the_credentials_of_today_not_of_the_fork_servers_start(
    server: S3Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    with monkeypatch.context() as earlier:
        for name in server.environment():
            earlier.delenv(name)
        next(TileLoader(pairs_in(folder), 7, 1).evaluation(ROWS))
    batches = TileLoader(pairs_on(server, folder), 7, 1).evaluation(ROWS)
    assert [row for batch in batches for row in batch.rows] == ROWS.tolist()
