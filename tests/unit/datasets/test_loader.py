"""Batches: which rows, in which order, in one tensor, by whatever number of processes."""

import contextlib
import dataclasses
import math
import mmap
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import pattern
from robosat_pink.config import CacheConfig
from robosat_pink.container import hardware
from robosat_pink.datasets import TilePairs, cache_file, worker_client
from robosat_pink.datasets.batch import NO_TILES, Batch, batch_in
from robosat_pink.datasets.loader import LEAST_AHEAD, TileLoader, worker_count
from robosat_pink.datasets.packing import Packing
from robosat_pink.datasets.pair_decoder import Notes
from robosat_pink.datasets.pairs import TrainingCrop
from robosat_pink.datasets.reader import REQUESTS, ReadRequest, Sample
from robosat_pink.datasets.tile_file import Changed
from robosat_pink.datasets.worker import SharedMemory
from robosat_pink.datasets.worker_client import Worker
from robosat_pink.distributed.launcher import ProcessRank
from robosat_pink.errors import DataError, RobosatError
from scenes import mask_pattern, mask_that_belongs_to, pairs_in, write_pair

TENSORS = ("image", "mask", "scale")
ROWS = np.array([0, 1, 3, 4, 5, 6, 8, 9])


@pytest.fixture
def tiles(tmp_path: Path) -> TilePairs:
    """Ten pairs of 12 x 12 pixels, whose rows are their x; whole they are padded to 16."""
    for x in range(10):
        write_pair(tmp_path, x, size=12)
    return pairs_in(tmp_path, seed=1, augmentation=0.75)


def rows_of(batches: Iterable[Batch]) -> list[tuple[int, ...]]:
    return [batch.rows for batch in batches]


def identical(first: Batch, second: Batch) -> bool:
    if first.image.dtype != second.image.dtype:
        return False
    pairs = ((getattr(first, field.name), getattr(second, field.name)) for field in dataclasses.fields(Batch))
    return all(torch.equal(one, other) if isinstance(one, Tensor) else one == other for one, other in pairs)


def test_epoch_of_training_has_every_row_exactly_once(tiles: TilePairs) -> None:
    for epoch in (1, 2):
        batches = rows_of(TileLoader(tiles, 3, 0).training(ROWS, epoch))
        assert [len(batch) for batch in batches] == [3, 3, 2]
        assert sorted(row for batch in batches for row in batch) == ROWS.tolist()


def test_order_of_training_depends_on_seed_and_epoch(tiles: TilePairs, tmp_path: Path) -> None:
    loader = TileLoader(tiles, 3, 0)
    first = rows_of(loader.training(ROWS, 1))
    second = rows_of(loader.training(ROWS, 2))
    assert rows_of(loader.training(ROWS, 1)) == first
    assert rows_of(TileLoader(tiles, 3, 0).training(ROWS, 2)) == second
    other_seed = rows_of(TileLoader(pairs_in(tmp_path, seed=2), 3, 0).training(ROWS, 1))
    in_order = [(0, 1, 3), (4, 5, 6), (8, 9)]
    assert all(one != other for one, other in [(first, second), (first, other_seed), (first, in_order)])


def test_training_batch_is_of_the_draws_of_its_epoch(tiles: TilePairs) -> None:
    for batch in TileLoader(tiles, 3, 0).training(ROWS, 4):
        drawn = [tiles[TrainingCrop(row, 4)] for row in batch.rows]
        assert np.array_equal(batch.image, np.stack([sample.image for sample in drawn]))
        assert np.array_equal(batch.mask, np.stack([sample.mask for sample in drawn]))
        assert batch.symmetry == tuple(sample.symmetry for sample in drawn)


@pytest.mark.parametrize(("tiles_per_epoch", "crops"), [(20, 20), (5, 5), ("auto", 128)])
def test_epoch_has_as_many_crops_as_it_is_told_of_all_tiles_alike(
    tiles: TilePairs, tiles_per_epoch: Any, crops: int
) -> None:
    loader = TileLoader(tiles, 3, 0, tiles_per_epoch=tiles_per_epoch)
    batches = list(loader.training(ROWS, 4))
    rows = [row for batch in batches for row in batch.rows]
    assert (len(rows), len(batches)) == (crops, loader.num_training_batches(ROWS))
    counts = [rows.count(row) for row in ROWS]
    assert max(counts) - min(counts) <= 1
    assert [loader.rows_of(ROWS, 4, number) for number in range(len(batches))] == [
        list(batch.rows) for batch in batches
    ]
    resumed = list(loader.training(ROWS, 4, 1))
    assert all(identical(batch, again) for batch, again in zip(batches[1:], resumed, strict=True))


def test_crops_of_a_tile_in_one_epoch_are_drawn_anew(tiles: TilePairs) -> None:
    first_pass = list(TileLoader(tiles, 8, 0).training(ROWS, 4))
    batches = list(TileLoader(tiles, 8, 0, tiles_per_epoch=16).training(ROWS, 4))
    assert identical(batches[0], first_pass[0])
    second = batches[1]
    drawn = [tiles[TrainingCrop(row, 4, 1)] for row in second.rows]
    assert second.symmetry == tuple(sample.symmetry for sample in drawn)
    assert second.symmetry != tuple(tiles[TrainingCrop(row, 4)].symmetry for row in second.rows)


def test_evaluation_has_every_row_once_in_order_whole_and_unturned(tiles: TilePairs) -> None:
    batches = list(TileLoader(tiles, 3, 0).evaluation(ROWS))
    assert rows_of(batches) == [(0, 1, 3), (4, 5, 6), (8, 9)]
    for batch in batches:
        assert set(batch.symmetry) == {0}
        assert np.array_equal(batch.image[:, :, :12, :12], np.stack([pattern(2, 12, 12)] * len(batch)))
        assert np.array_equal(batch.mask[:, :12, :12], np.stack([mask_pattern(12, 12)] * len(batch)))
        assert batch.mask.shape[1:] == (16, 16)


def test_fewer_rows_than_a_batch_are_evaluated_and_trained_on(tiles: TilePairs) -> None:
    loader = TileLoader(tiles, 7, 0)
    assert rows_of(loader.evaluation(np.array([5, 2]))) == [(5, 2)]
    assert [len(batch) for batch in loader.training(np.array([5, 2]), 1)] == [2]


@pytest.mark.parametrize(("rows", "batches"), [(1, 1), (3, 1), (4, 2), (6, 2), (8, 3)])
def test_number_of_batches_is_known_beforehand(tiles: TilePairs, rows: int, batches: int) -> None:
    loader = TileLoader(tiles, 3, 0)
    assert loader.num_batches(ROWS[:rows]) == len(list(loader.evaluation(ROWS[:rows]))) == batches


def test_phases_follow_one_another_through_one_loader_even_if_one_is_left_early(tiles: TilePairs) -> None:
    loader = TileLoader(tiles, 3, 0)
    begun = loader.training(ROWS, 1)
    next(begun)
    assert rows_of(loader.evaluation(np.array([2, 7]))) == [(2, 7)]
    assert sorted(row for batch in rows_of(loader.training(ROWS, 2)) for row in batch) == ROWS.tolist()


def test_batches_are_the_same_with_0_1_and_2_workers(tiles: TilePairs) -> None:
    def everything(workers: int) -> list[Batch]:
        loader = TileLoader(tiles, 3, workers)
        phases = [loader.training(ROWS, 1), loader.evaluation(np.array([2, 7])), loader.training(ROWS, 2)]
        return [batch for phase in phases for batch in phase]

    expected = everything(0)
    assert len(expected) == 3 + 1 + 3
    for workers in (1, 2):
        found = everything(workers)
        assert rows_of(found) == rows_of(expected)
        assert all(map(identical, found, expected))


def test_training_goes_on_from_any_batch(tiles: TilePairs) -> None:
    loader = TileLoader(tiles, 3, 0)
    whole = list(loader.training(ROWS, 4))
    for first in range(4):
        rest = list(loader.training(ROWS, 4, first))
        assert len(rest) == 3 - first
        assert all(map(identical, rest, whole[first:]))


@pytest.mark.parametrize("workers", [0, 1])
def test_batch_that_is_kept_is_not_written_over(tiles: TilePairs, workers: int) -> None:
    loader = TileLoader(tiles, 1, workers)
    kept = [batch for epoch in (1, 2, 3) for batch in loader.training(ROWS, epoch)]
    expected = [batch for epoch in (1, 2, 3) for batch in TileLoader(tiles, 1, 0).training(ROWS, epoch)]
    assert all(map(identical, kept, expected))


def test_memory_of_a_batch_that_is_gone_is_used_again(tiles: TilePairs) -> None:
    loader = TileLoader(tiles, 1, 1)
    for epoch in range(8):
        for batch in loader.training(ROWS, epoch):
            assert len(batch) == 1
    (source,) = loader._sources
    assert isinstance(source, Worker)
    assert len(source._memories) <= loader._ahead + 2


def test_gpu_is_waited_for_at_a_pinned_place_even_if_a_later_one_could_not_be_pinned(
    tiles: TilePairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    could = iter([True, False, True])
    recorded = []
    event = SimpleNamespace(record=lambda: recorded.append(True), query=lambda: False)
    monkeypatch.setattr("robosat_pink.datasets.worker_client._pin", lambda *_: next(could))
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    worker = Worker(tiles.reader, True, lambda: None)
    numbers = [worker.begin([tiles.request(row)]) for row in (0, 1)]
    batches = [worker.finish(number) for number in numbers]
    assert len(batches) == 2
    batches.clear()
    assert recorded == [True]
    worker.close()


def test_pinned_memory_is_freed_when_its_loader_is_closed_and_the_gpu_has_read_it(
    tiles: TilePairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []
    monkeypatch.setattr(worker_client, "_pin", lambda memory, is_pinned: not done.append((memory, is_pinned)))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("read"))
    worker = Worker(tiles.reader, True, lambda: None)
    number = worker.begin([tiles.request(0)])
    batch = worker.finish(number)
    (memory,) = worker._memories.values()
    worker.close()
    assert done == [(memory, True), "read", (memory, False)]
    assert len(batch) == 1
    worker.close()
    assert len(done) == 3


def test_error_of_memory_that_cannot_be_pinned_is_not_left_to_the_next_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA does it: a failed call leaves its error, and the next kernel raises it."""
    pending = []

    def register(*_: int) -> int:
        pending.append(801)
        return 801

    def kernel(*_: int, device: str) -> None:
        if pending:
            raise RuntimeError(f"CUDA error {pending.pop()} on {device}")

    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaHostRegister=register))
    monkeypatch.setattr(torch, "ones", kernel)
    assert not worker_client._pin(mmap.mmap(-1, 4096), True)
    assert not pending


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_gpu_computes_on_after_memory_could_not_be_pinned() -> None:
    memory = mmap.mmap(-1, 4096)
    assert worker_client._pin(memory, True)
    assert not worker_client._pin(memory, True)  # it is already
    assert torch.ones(2, device="cuda").sum().item() == 2
    assert worker_client._pin(memory, False)


def test_shared_memory_is_none_of_dev_shm(tiles: TilePairs) -> None:
    before = set(os.listdir("/dev/shm"))
    loader = TileLoader(tiles, 3, 1)
    batches = loader.training(ROWS, 1)
    next(batches)
    assert not {name for name in set(os.listdir("/dev/shm")) - before if not name.startswith(("sem.", "mp-"))}
    list(batches)


def test_worker_that_is_killed_is_an_error_that_says_what_to_do(tiles: TilePairs) -> None:
    loader = TileLoader(tiles, 1, 1)
    loader._ahead = 2  # so that it has not read all of them
    batches = loader.training(ROWS, 1)
    next(batches)
    (source,) = loader._sources
    assert isinstance(source, Worker)
    os.kill(source._process.pid or 0, signal.SIGKILL)
    with pytest.raises(RobosatError, match=r"died \(killed by signal 9\), .*out of memory; lower .*runtime\.workers"):
        list(batches)


@pytest.mark.slow
def test_workers_end_when_the_main_process_is_killed(tmp_path: Path) -> None:
    for x in range(10):
        write_pair(tmp_path, x, size=12)
    script = tmp_path / "main.py"
    script.write_text(f"""
import os, signal, sys
sys.path[:0] = [{str(Path(__file__).parents[1])!r}, {str(Path(__file__).parents[2])!r}]
import numpy as np
from pathlib import Path
from robosat_pink.datasets.loader import TileLoader
from scenes import pairs_in
if __name__ == "__main__":
    loader = TileLoader(pairs_in(Path({str(tmp_path)!r})), 3, 2)
    next(loader.evaluation(np.arange(10)))
    print(*(source._process.pid for source in loader._sources), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
""")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    workers = [int(pid) for pid in run.stdout.split()]
    assert len(workers) == 2, run.stderr
    deadline = time.monotonic() + 10
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, "workers outlive the process that reads from them"
        time.sleep(0.05)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("workers", [0, 1])
def test_error_reaches_the_caller_as_it_was_raised_its_cause_first(
    tiles: TilePairs, tmp_path: Path, workers: int
) -> None:
    (tmp_path / "imagery/scene/5/4/2.tif").write_bytes(b"no tile")
    loader = TileLoader(tiles, 3, workers)
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path))}/imagery/scene/5/4/2.tif: has changed since"):
        list(loader.evaluation(ROWS))
    assert rows_of(loader.evaluation(np.array([0, 1]))) == [(0, 1)]


def test_tile_that_is_gone_since_it_was_listed_has_changed(tiles: TilePairs, tmp_path: Path) -> None:
    path = tmp_path / "mask/labels/5/4/2.tif"
    path.unlink()
    with pytest.raises(Changed, match=f"^{re.escape(str(path))}: not found.* It was there when listed; start again"):
        list(TileLoader(tiles, 3, 0).evaluation(ROWS))


def test_workers_end_when_their_loader_is_closed(tiles: TilePairs) -> None:
    loader = TileLoader(tiles, 3, 2)
    next(loader.evaluation(ROWS))
    workers = [source._process for source in loader._sources if isinstance(source, Worker)]
    assert len(workers) == 2
    loader.close()
    for process in workers:
        process.join(20)
        assert process.exitcode == 0


@pytest.fixture
def gappy(tmp_path: Path) -> TilePairs:
    """Five pairs: no mask at 1, no image at 3 and 4, one valid pixel at 2."""
    nothing = np.full((8, 8), 255, dtype=np.uint8)
    dot = nothing.copy()
    dot[6, 1] = 3
    masks = {1: nothing, 2: dot}
    for x in range(5):
        image = np.zeros((2, 8, 8), dtype=np.uint16) if x in (3, 4) else pattern(2, 8, 8)
        write_pair(tmp_path, x, image=image, mask=masks.get(x), mask_nodata=255)
    return pairs_in(tmp_path)


def test_tile_without_a_valid_pixel_is_dropped_and_counted(gappy: TilePairs) -> None:
    loader = TileLoader(gappy, 3, 0)
    first, second = loader.evaluation(np.arange(5))
    assert (first.rows, first.empty, len(first)) == ((0, 2), 1, 2)
    assert first.image.shape == (2, 2, 8, 8)
    assert np.argwhere(first.mask[1] != 255).T.tolist() == [[6, 1]]
    assert (second.rows, second.empty, len(second)) == ((), 2, 0)
    trained = list(loader.training(np.arange(5), 1))
    assert sorted(row for batch in trained for row in batch.rows) == [0, 2]
    assert sum(batch.empty for batch in trained) == 3


def test_uint16_stays_uint16_in_one_tensor_a_batch(tiles: TilePairs) -> None:
    batch = next(TileLoader(tiles, 3, 0).training(ROWS, 1))
    assert (batch.image.dtype, batch.image.shape) == (torch.uint16, (3, 2, 8, 8))
    assert (batch.mask.dtype, batch.mask.shape) == (torch.uint8, (3, 8, 8))
    assert (batch.scale.dtype, batch.scale.tolist()) == (torch.float32, [[10000, 10000]] * 3)
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(batch.mask, mask_that_belongs_to(batch.image[:, 0].numpy()))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("tile_size", [64, 32])
def test_what_is_kept_of_a_batch_is_the_whole_tile_as_it_was(tmp_path: Path, workers: int, tile_size: int) -> None:
    """Whether it lies in the batch, in whole pages even, or is cropped, padded or dropped there."""
    for x, size in enumerate([64, 64, 48, 64, 96]):
        write_pair(tmp_path, x, image=pattern(2, size, size) + np.uint16(x))
    write_pair(tmp_path, 5, image=np.zeros((2, 64, 64), dtype=np.uint16), image_nodata=0)
    rows = np.arange(6)

    def batches(folder: str, is_training: bool) -> list[Batch]:
        dataset = {"cache": CacheConfig(dir=folder, max_gb=1.0)}
        tiles = pairs_in(tmp_path, dataset=dataset, tile_size=tile_size, augmentation=0.75)
        with contextlib.closing(TileLoader(tiles, 3, workers)) as loader:
            found = loader.training(rows, 1) if is_training else loader.evaluation(rows)
            return [copied(batch) for batch in found]

    kept, other_kept = str(tmp_path / "kept"), str(tmp_path / "other")
    training, evaluation = batches(kept, True), batches(other_kept, False)
    again, whole = batches(kept, True), batches(kept, False)
    assert [batch.cached for batch in training + evaluation] == [0, 0, 0, 0]
    assert [batch.cached for batch in again + whole] == [3, 3, 3, 3]
    for found, expected in ((again, training), (whole, evaluation)):
        for one, other in zip(found, expected, strict=True):
            assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in TENSORS)
            assert (one.rows, one.sizes, one.symmetry) == (other.rows, other.sizes, other.symmetry)


def test_batch_is_not_finished_while_its_tiles_are_written_to_the_disk_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for x in range(2):
        write_pair(tmp_path, x, size=64)
    tiles = pairs_in(tmp_path, dataset={"cache": CacheConfig(dir=str(tmp_path / "cache"), max_gb=1.0)})
    written: list[Sequence[memoryview]] = []
    goes_on, memory, write = threading.Event(), SharedMemory(), cache_file.write

    def write_later(path: str, parts: Sequence[memoryview]) -> None:
        written.append(parts)
        goes_on.wait(60)
        write(path, parts)

    monkeypatch.setattr(cache_file, "write", write_later)
    packing = Packing(tiles.reader, [tiles.request(row) for row in range(2)], memory.allocate)
    while len(written) < 2:
        assert not packing.is_read(0.1)
    assert not packing.is_read(0.5)
    goes_on.set()
    assert packing.finish().rows == (0, 1)
    pixels = [np.frombuffer(part, dtype=np.uint8) for _, *parts in written for part in parts]
    assert [np.may_share_memory(part, memory.array) for part in pixels] == [True] * 4


def copied(batch: Batch) -> Batch:
    """In memory of its own, which no later batch gets."""
    return dataclasses.replace(batch, **{name: getattr(batch, name).clone() for name in TENSORS})


class Given:
    """A reader of samples that are there already."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def begin(self, requests: Sequence[ReadRequest], on_sample: Callable[[int, Sample], None]) -> list[Future[None]]:
        for slot, sample in enumerate(self.samples):
            on_sample(slot, sample)
        done: Future[None] = Future()
        done.set_result(None)
        return [done]


def pack(samples: Sequence[Sample]) -> Batch:
    memory: list[np.ndarray] = []

    def allocate(size: int) -> np.ndarray:
        memory.append(np.full(size, 77, dtype=np.uint8))
        return memory[-1]

    orders = [ReadRequest(number, "", 0, "", 0, None) for number in range(len(samples))]
    packed = Packing(Given(samples), orders, allocate).finish()  # type: ignore[arg-type]
    return batch_in(memory[-1], packed)


def sample(dtype: str, height: int = 2, width: int = 2, value: float = 1, row: int = 0) -> Sample:
    image = np.full((2, height, width), value, dtype=dtype)
    mask = np.zeros((height, width), dtype=np.uint8)
    return Sample(image, mask, np.ones(2, dtype=np.float32), 0, row, (height, width), Notes(dtype, "2 band(s)", 0))


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ("uint8", "uint8", torch.uint8),
        ("int16", "int16", torch.int16),
        ("float32", "float32", torch.float32),
        ("uint8", "uint16", torch.uint16),
        ("int16", "uint16", torch.int32),
        ("uint16", "float32", torch.float32),
        ("int32", "float32", torch.float32),
    ],
)
def test_types_that_differ_become_one_that_holds_all(first: str, second: str, together: torch.dtype) -> None:
    values = [float(np.iinfo(each).max) if each in ("uint8", "uint16", "int16") else -5.0 for each in (first, second)]
    batch = pack([sample(first, value=values[0]), sample(second, value=values[1])])
    assert batch.image.dtype == together
    assert batch.image[:, 0, 0, 0].tolist() == values


def test_sizes_that_differ_are_padded_to_the_largest_height_and_width() -> None:
    batch = pack([sample("uint8", 3, 5, 8, row=4), sample("uint8", 4, 2, 9, row=6)])
    assert batch.image.shape == (2, 2, 4, 5)
    assert [int(image.sum()) for image in batch.image] == [8 * 2 * 15, 9 * 2 * 8]
    assert (batch.mask == 0).sum(dim=(1, 2)).tolist() == [15, 8]
    assert (batch.mask[0, :3, :5] == 0).all()
    assert (batch.mask[1, :4, :2] == 0).all()
    assert ((batch.mask == 255) == (batch.image[:, 0] == 0)).all()
    assert batch.rows == (4, 6)
    assert batch.sizes == ((3, 5), (4, 2))


@pytest.mark.parametrize("workers", [0, 1])
def test_size_of_each_tile_before_it_was_padded_is_known(tmp_path: Path, workers: int) -> None:
    for x, (height, width) in enumerate([(12, 12), (5, 9), (16, 3), (12, 12)]):
        write_pair(tmp_path, x, image=pattern(2, height, width))
    write_pair(tmp_path, 3, image=np.zeros((2, 12, 12), dtype=np.uint16), image_nodata=0)
    loader = TileLoader(pairs_in(tmp_path), 2, workers)
    first, second = loader.evaluation(np.arange(4))
    assert (first.mask.shape, first.sizes) == ((2, 16, 16), ((12, 12), (5, 9)))
    assert (second.mask.shape, second.sizes) == ((1, 16, 8), ((16, 3),))
    cut = [pair for batch in loader.training(np.arange(4), 1) for pair in zip(batch.rows, batch.sizes, strict=True)]
    assert dict(cut) == {0: (8, 8), 1: (5, 8), 2: (8, 3)}  # of what is cut from them


def test_batch_of_tiles_of_different_types_keeps_the_scale_of_each(tmp_path: Path) -> None:
    write_pair(tmp_path, 0, image=np.full((2, 8, 8), 51, dtype=np.uint8))
    write_pair(tmp_path, 1, image=np.full((2, 20, 8), 5000, dtype=np.uint16))
    (batch,) = TileLoader(pairs_in(tmp_path), 2, 0).evaluation(np.arange(2))
    assert batch.image.shape == (2, 2, 24, 8)
    assert batch.image.dtype == torch.uint16
    assert batch.scale.tolist() == [[255, 255], [10000, 10000]]
    assert batch.image[:, 0, 0, 0].tolist() == [51, 5000]


@pytest.mark.parametrize(
    ("setting", "on_gpu", "cores", "workers"),
    [
        (0, False, 8, 0),
        (5, False, 2, 5),
        ("auto", False, 1, 0),
        ("auto", False, 8, 1),
        ("auto", True, 1, 0),
        ("auto", True, 4, 3),
        ("auto", True, 96, 8),
    ],
)
def test_workers_auto_leaves_the_cores_of_a_cpu_to_the_network(
    monkeypatch: pytest.MonkeyPatch, setting: int, on_gpu: bool, cores: int, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert worker_count(setting, on_gpu) == workers


@pytest.mark.parametrize(("batch_gib", "workers"), [(0.1, 8), (0.5, 4), (5, 1)])
def test_workers_auto_are_as_many_as_have_room_for_their_batches(
    monkeypatch: pytest.MonkeyPatch, batch_gib: float, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 32 << 30)
    assert worker_count("auto", True, int(batch_gib * 2**30)) == workers


def test_few_batches_are_read_ahead_where_memory_is_scarce(tiles: TilePairs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TileLoader(tiles, 3, 0)._ahead == math.ceil(REQUESTS / 3)
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 8 * 3 * 8 * 8 * 9 * 2)
    assert TileLoader(tiles, 3, 0)._ahead == LEAST_AHEAD


@pytest.mark.parametrize("workers", [0, 1])
def test_fewer_batches_are_read_ahead_where_whole_tiles_take_more_memory(
    tiles: TilePairs, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """One tile of 8 x 8 is counted as 576 bytes; a whole one of 16 x 16 takes 1,280."""
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 4 * 8 * 576)
    loader = TileLoader(tiles, 1, workers)
    assert loader._ahead == 6
    (source,) = loader._sources
    under_way: list[int] = []
    counts = []
    begin, finish = source.begin, source.finish
    monkeypatch.setattr(source, "begin", lambda requests: (under_way.append(number := begin(requests)), number)[1])

    def finish_one(number: int) -> Batch:
        counts.append(len(under_way))
        under_way.remove(number)
        return finish(number)

    monkeypatch.setattr(source, "finish", finish_one)
    assert sum(map(len, loader.training(ROWS, 1))) == len(ROWS)
    assert max(counts) == 6
    counts.clear()
    assert sum(map(len, loader.evaluation(ROWS))) == len(ROWS)
    assert max(counts) == LEAST_AHEAD
    if isinstance(source, Worker):
        assert sum(len(memory) > 576 for memory in source._memories.values()) < 6


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_shares_of_the_processes_make_up_every_batch_once(tiles: TilePairs, processes: int) -> None:
    whole = TileLoader(tiles, 3, 0)
    shares = [TileLoader(tiles, 3, 0, process=ProcessRank(rank, processes)) for rank in range(processes)]
    for ordered in (lambda loader: loader.training(ROWS, 3), lambda loader: loader.evaluation(ROWS)):
        batches = rows_of(ordered(whole))
        parts = [rows_of(ordered(loader)) for loader in shares]
        assert {len(part) for part in parts} == {len(batches)} == {whole.num_batches(ROWS)}
        for number, batch in enumerate(batches):
            assert sorted(row for part in parts for row in part[number]) == sorted(batch)


def test_process_without_a_share_has_no_tiles_and_asks_for_none(tiles: TilePairs) -> None:
    assert all(batch is NO_TILES for batch in TileLoader(tiles, 3, 0, process=ProcessRank(3, 4)).evaluation(ROWS))


def test_rows_of_a_batch_can_be_told_again(tiles: TilePairs) -> None:
    loader = TileLoader(tiles, 3, 0)
    assert [list(rows) for rows in rows_of(loader.training(ROWS, 5))] == [loader.rows_of(ROWS, 5, n) for n in range(3)]
