"""Decoded tiles on disk: what was kept comes back to the last bit, and whatever is wrong with it counts as absent."""

import errno
import fcntl
import logging
import mmap
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conftest import S3Server, pattern
from robosat_pink.datasets import cache, cache_file
from robosat_pink.datasets.cache import TileCache, open_cache
from robosat_pink.errors import ConfigError
from scenes import mask_pattern, pairs_in, write_pair

MANY = 10**9
ENTRY_BYTES = 2 * cache_file.PAGE  # of a pair of 16 x 16 pixels: a page for the header, and one for the pixels


def pair(dtype: str = "uint16", size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    return pattern(3, size, size).astype(dtype), mask_pattern(size, size)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_pair_comes_back_to_the_last_bit_in_its_own_type(tmp_path: Path, dtype: str) -> None:
    image, mask = pair(dtype)
    TileCache(tmp_path, MANY).put("abc", image, mask)
    other = TileCache(tmp_path, MANY)
    found = other.get("abc")
    assert found is not None
    assert (found[0].dtype, found[1].dtype) == (np.dtype(dtype), np.uint8)
    assert np.array_equal(found[0], image)
    assert np.array_equal(found[1], mask)
    assert other.get("abd") is None


def in_pages(array: np.ndarray, behind: int = 0) -> np.ndarray:
    """The same values, in memory that begins so many bytes behind a page."""
    memory = np.frombuffer(mmap.mmap(-1, behind + array.nbytes), dtype=np.uint8)[behind:]
    copied = memory.view(array.dtype).reshape(array.shape)
    copied[:] = array
    return copied


@pytest.mark.parametrize(("size", "behind", "parts"), [(64, 0, 3), (64, 8, 2), (60, 0, 2), (32, 0, 2)])
def test_pixels_that_fill_whole_pages_are_written_from_where_they_are(
    tmp_path: Path, size: int, behind: int, parts: int
) -> None:
    image, mask = pattern(4, size, size).astype("uint16"), mask_pattern(size, size)
    image = in_pages(np.ascontiguousarray(image.transpose(1, 2, 0)), behind).transpose(2, 0, 1)
    mask = in_pages(mask)
    packed = cache_file.pack(image, mask, "notes")
    assert len(packed) == parts
    is_there = [
        np.may_share_memory(np.frombuffer(part, np.uint8), pixels) for part in packed for pixels in (image, mask)
    ]
    assert sum(is_there) == (2 if parts == 3 else 0)
    tiles = TileCache(tmp_path, MANY)
    tiles.put("abc", image, mask)
    found = tiles.get("abc")
    assert found is not None
    assert np.array_equal(found[0], image)
    assert np.array_equal(found[1], mask)


@pytest.mark.parametrize("place", [0, 3, 20, 25, 30, 36, 500, 5000, -1])
def test_entry_with_a_flipped_bit_counts_as_absent(tmp_path: Path, place: int) -> None:
    tiles = TileCache(tmp_path, MANY)
    tiles.put("abc", *pair())
    (path,) = tmp_path.glob("*.tile*")
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert tiles.get("abc") is None


@pytest.mark.parametrize("length", [0, 10, 39, 1000, 5000])
def test_entry_that_was_cut_short_counts_as_absent(tmp_path: Path, length: int) -> None:
    tiles = TileCache(tmp_path, MANY)
    tiles.put("abc", *pair())
    (path,) = tmp_path.glob("*.tile*")
    path.write_bytes(path.read_bytes()[:length])
    assert tiles.get("abc") is None
    tiles.put("abc", *pair())
    assert tiles.get("abc") is not None


def test_entry_is_written_where_the_file_system_must_go_through_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def without_direct(path: str, flags: int, *mode: int, **options: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", without_direct)
    tiles = TileCache(tmp_path, MANY)
    tiles.put("abc", *pair())
    found = tiles.get("abc")
    assert found is not None
    assert np.array_equal(found[0], pair()[0])


def test_entry_is_written_where_direct_writing_is_promised_and_then_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refusals, here = os.writev, [errno.EINVAL], threading.get_ident()

    def refuse_once(file: int, parts: list[memoryview]) -> int:
        if refusals and threading.get_ident() == here:
            raise OSError(refusals[0], os.strerror(refusals.pop()))
        return real(file, parts)

    monkeypatch.setattr(os, "writev", refuse_once)
    tiles = TileCache(tmp_path, MANY)
    tiles.put("abc", *pair())
    assert not refusals
    assert tiles.get("abc") is not None


def test_no_more_is_kept_than_the_limit(tmp_path: Path) -> None:
    tiles = TileCache(tmp_path, 3 * ENTRY_BYTES)
    for number in range(6):
        tiles.put(f"{number}{number}", *pair())
    assert [tiles.get(f"{number}{number}") is not None for number in range(6)] == [True] * 3 + [False] * 3
    assert sum(path.stat().st_size for path in tmp_path.glob("*.tile*")) == 3 * ENTRY_BYTES


def test_limit_is_one_for_all_processes_together(tmp_path: Path) -> None:
    processes = [pickle.loads(pickle.dumps(TileCache(tmp_path, 3 * ENTRY_BYTES))) for _ in range(4)]
    for number in range(12):
        processes[number % 4].put(f"{number}{number}", *pair())
    assert sum(path.stat().st_size for path in tmp_path.glob("*.tile*")) == 3 * ENTRY_BYTES


def test_damaged_entry_of_a_full_cache_is_kept_anew(tmp_path: Path) -> None:
    tiles = TileCache(tmp_path, ENTRY_BYTES)
    tiles.put("abc", *pair())
    (path,) = tmp_path.glob("*.tile*")
    path.write_bytes(bytes(ENTRY_BYTES))
    assert tiles.get("abc") is None
    tiles.put("abc", *pair())
    assert tiles.get("abc") is not None


def test_room_is_not_made_where_the_folder_can_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TileCache(tmp_path, MANY).put("abc", *pair())

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refuse)
    tiles = TileCache(tmp_path, 100)
    assert tiles.make_room() == ENTRY_BYTES
    assert tiles.get("abc") is not None


def test_new_run_makes_room_by_dropping_what_was_read_longest_ago(tmp_path: Path) -> None:
    tiles = TileCache(tmp_path, 10 * ENTRY_BYTES)
    for number in range(10):
        tiles.put(f"{number}{number}", *pair())
        os.utime(tmp_path / f"{number}{number}.tile", (time.time() - 100 + number,) * 2)
    TileCache(tmp_path, 5 * ENTRY_BYTES).make_room()
    assert sorted(path.name for path in tmp_path.glob("*.tile*")) == ["66.tile", "77.tile", "88.tile", "99.tile"]


def test_full_cache_drops_what_was_not_read_for_days_and_keeps_the_rest(tmp_path: Path) -> None:
    tiles = TileCache(tmp_path, 10 * ENTRY_BYTES)
    for number in range(10):
        tiles.put(f"{number}{number}", *pair())
    assert tiles.make_room() == 10 * ENTRY_BYTES
    for number in range(3):
        os.utime(tmp_path / f"{number}{number}.tile", (time.time() - 3 * 86400,) * 2)
    assert tiles.make_room() == 7 * ENTRY_BYTES
    for number in range(3, 10):
        os.utime(tmp_path / f"{number}{number}.tile", (time.time() - 3 * 86400,) * 2)
    assert tiles.make_room() == 7 * ENTRY_BYTES  # it is not full
    for number in range(10, 13):
        tiles.put(f"{number}{number}", *pair())
    assert tiles.make_room() == 5 * ENTRY_BYTES
    assert tiles.get("1212") is not None


def test_what_a_killed_process_left_half_written_is_not_read_and_goes_later(tmp_path: Path) -> None:
    script = f"""
import os, signal
import numpy as np
from pathlib import Path
from robosat_pink.datasets import cache
real = os.replace
os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
cache.TileCache(Path({str(tmp_path)!r}), 10**9).put("abc", np.zeros((1, 4, 4), np.uint8), np.zeros((4, 4), np.uint8))
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert killed.returncode == -9
    (half,) = tmp_path.glob("*.tile*")
    tiles = TileCache(tmp_path, MANY)
    assert tiles.get("abc") is None
    tiles.make_room()
    assert half.exists()  # somebody may be writing it
    os.utime(half, (1000, 1000))
    tiles.make_room()
    assert not half.exists()


def test_folder_that_cannot_be_written_only_means_that_nothing_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cache"
    folder.write_text("in the way")
    tiles = TileCache(folder, MANY)
    tiles.put("abc", *pair())
    tiles.put("abd", *pair())
    assert tiles.get("abc") is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_default_is_half_of_the_free_disk_and_none_where_that_is_little(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cache, "is_in_memory", lambda folder: False)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=40 * 10**9))
    opened = open_cache(None, None)
    assert opened is not None
    assert opened.max_bytes == 20 * 10**9
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**9))
    assert open_cache(None, None) is None
    small = open_cache(str(tmp_path), 0.5)
    assert small is not None
    assert small.max_bytes == 5 * 10**8
    assert open_cache(str(tmp_path), 0) is None


def test_default_is_none_where_temporary_files_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "is_in_memory", lambda folder: True)
    assert open_cache(None, None) is None


def test_folder_that_the_experiment_names_and_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"dataset\.cache\.dir = .*/file/cache: cannot be made or read: .*max_gb to 0"
    ):
        open_cache(f"{tmp_path}/file/cache", None)


@pytest.fixture
def default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A default folder that is not there yet, on a disk with room."""
    monkeypatch.setattr(cache, "is_in_memory", lambda folder: False)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=40 * 10**9))
    monkeypatch.setattr(cache, "DEFAULT_FOLDER", tmp_path / "cache")
    return tmp_path / "cache"


def test_default_folder_is_its_user_s_alone(default: Path) -> None:
    before = os.umask(0)
    try:
        opened = open_cache(None, None)
    finally:
        os.umask(before)
    assert opened is not None
    assert (opened.folder, default.stat().st_mode & 0o777) == (default, 0o700)
    default.chmod(0o755)  # as earlier versions made it
    assert open_cache(None, None) is not None
    assert default.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("what", ["link", "pipe", "file", "writable by others", "another user's"])
def test_default_folder_that_may_be_somebody_else_s_is_not_trusted(
    default: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    own = tmp_path / f"cache_{os.geteuid()}"

    def put_in_the_way(path: Path) -> None:
        if what == "link":
            path.symlink_to(tmp_path)
        elif what == "pipe":
            os.mkfifo(path)
        elif what == "file":
            path.touch()
        else:
            path.mkdir()
            path.chmod(0o777 if what == "writable by others" else 0o700)

    put_in_the_way(default)
    if what == "another user's":
        other = os.geteuid() + 1
        own = tmp_path / f"cache_{other}"
        monkeypatch.setattr(os, "geteuid", lambda: other)
    else:
        opened = open_cache(None, None)
        assert opened is not None
        assert opened.folder == own
        own.rename(tmp_path / "aside")
    put_in_the_way(own)
    with caplog.at_level(logging.INFO):
        assert open_cache(None, None) is None
    assert f"cache: off, {own} is no folder that this user alone can write" in caplog.text


def test_folder_that_the_experiment_names_may_be_everybody_s(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    opened = open_cache(str(tmp_path), 1.0)
    assert opened is not None
    opened.put("abc", *pair())
    assert (tmp_path / "abc.tile").stat().st_mode & 0o777 == 0o644
    assert tmp_path.stat().st_mode & 0o777 == 0o777


@pytest.mark.parametrize("what", ["pipe", "link", "folder", "device"])
def test_entry_that_is_no_regular_file_counts_as_absent_without_a_wait(tmp_path: Path, what: str) -> None:
    tiles = TileCache(tmp_path, MANY)
    tiles.put("abd", *pair())
    path = tmp_path / "abc.tile"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to("abd.tile" if what == "link" else "/dev/zero")
    assert tiles.get("abc") is None
    tiles.put("abc", *pair())
    assert (tiles.get("abc") is None) == (what == "folder")
    tiles.make_room()


def test_count_that_another_holds_is_not_waited_for_without_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "LOCK_S", 0.1)
    tiles = TileCache(tmp_path, MANY)
    with (tmp_path / cache.COUNT).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        tiles.make_room()
        tiles.put("abc", *pair())
    assert "its count was locked for 0.1 s); tiles are not kept" in caplog.text
    assert tiles.get("abc") is None


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path), os.mkdir])
def test_count_that_is_no_regular_file_only_means_that_nothing_is_kept(tmp_path: Path, make: Any) -> None:
    make(tmp_path / cache.COUNT)
    tiles = TileCache(tmp_path, MANY)
    tiles.make_room()
    tiles.put("abc", *pair())
    assert tiles.get("abc") is None


def test_second_pass_over_a_bucket_sends_no_request_and_gives_the_same(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for x in range(4):
        write_pair(tmp_path, x)
    for kind in ("imagery", "mask"):
        s3.make_bucket(kind)
        s3.upload(tmp_path / kind, kind)
    dataset = {"image_bucket": "s3://imagery", "mask_bucket": "s3://mask", "endpoint_url": s3.endpoint_url}

    def cached_pairs() -> object:
        from robosat_pink.config import CacheConfig

        settings = CacheConfig(dir=str(tmp_path / "cache"), max_gb=1.0)
        return pairs_in(tmp_path, dataset=dataset | {"cache": settings})

    first = cached_pairs().__getitems__([0, 1, 2, 3])  # type: ignore[attr-defined]
    assert all(sample.fetched_bytes > 0 for sample in first)
    later = cached_pairs()
    monkeypatch.setattr("obstore.get", None)
    second = later.__getitems__([0, 1, 2, 3])  # type: ignore[attr-defined]
    assert all(sample.fetched_bytes == 0 for sample in second)
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.mask, other.mask)
