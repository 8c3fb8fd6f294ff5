"""Whether a tile that is fetched is the one that was listed: by ETag, or by size and time."""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from conftest import write_tile
from robosat_pink.datasets.file_names import version_of
from robosat_pink.datasets.tile_file import Changed, Entry, TileFile, read
from robosat_pink.storage import Fetched, Location, Resized, StoredFile
from robosat_pink.storage.error_advice import NotFound

CONTENT = b"pixels"
LISTED = 1_600_000_000


@dataclass(eq=False)
class Store:
    """Gives one content under every name, with what it says of it."""

    etag: str = '"e"'
    modified: int = LISTED
    content: bytes = CONTENT
    bucket: str | None = "bucket"
    sidecars: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"s3://{self.bucket}"

    def fetch(self, path: str, size: int | None = None, max_bytes: int = 10**9) -> Fetched:
        self.asked.append(path)
        content = self.sidecars.get(path.removeprefix("a/5/1/2.tif"), self.content)
        if size is not None and size != len(content):
            raise Resized(f"{self}/{path}: has {len(content)} bytes, and had {size} when it was listed")
        return Fetched(memoryview(content), StoredFile(path, len(content), self.etag, self.modified), 1)


def listed(etag: str = '"e"', size: int = len(CONTENT), modified: int = LISTED, sidecars: int = 0) -> Entry:
    return Entry("a/5/1/2.tif", version_of(etag, size, modified), size, modified, sidecars)


def get(store: Store, entry: Entry, is_listed_here: bool = True) -> TileFile:
    return read(store, entry, is_listed_here)  # type: ignore[arg-type]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_equal_etag_is_the_same_tile_whatever_its_time(caplog: pytest.LogCaptureFixture) -> None:
    file = get(Store(modified=LISTED + 60), listed())
    assert (bytes(file.content), file.sidecars, file.fetched_bytes, file.retries) == (CONTENT, {}, 6, 1)
    assert warnings(caplog) == []


@pytest.mark.parametrize("etag", ['"other"', ""])
@pytest.mark.parametrize("modified", [LISTED, LISTED + 1])
def test_other_etag_of_a_store_whose_etags_agree_is_another_tile(etag: str, modified: int) -> None:
    store = Store()
    get(store, listed())
    store.etag, store.modified = etag, modified
    if not etag and modified == LISTED:
        get(store, listed())
    else:
        with pytest.raises(Changed, match=r"^s3://bucket/a/5/1/2.tif: has changed since it was listed; start again"):
            get(store, listed())


@pytest.mark.parametrize(("in_listing", "with_object"), [('"x"', '"y"'), ('"x"', ""), ("", '"y"'), ("", "")])
def test_where_etags_never_agree_size_and_time_are_compared_which_is_said_once(
    caplog: pytest.LogCaptureFixture, in_listing: str, with_object: str
) -> None:
    store = Store(etag=with_object)
    for _ in range(3):
        get(store, listed(in_listing))
    assert len(warnings(caplog)) == 1
    assert "s3://bucket" in warnings(caplog)[0]
    assert "compared by size and Last-Modified" in warnings(caplog)[0]
    store.modified += 1
    with pytest.raises(Changed):
        get(store, listed(in_listing))
    store.modified, store.content = LISTED, CONTENT + b"!"
    with pytest.raises(Changed, match="has changed since it was listed"):
        get(store, listed(in_listing))


def test_file_of_a_folder_is_the_same_by_size_and_time_and_on_another_host_by_size() -> None:
    folder = Store(etag='"inode-and-time"', bucket=None)
    assert bytes(get(folder, listed('"other"')).content) == CONTENT
    folder.modified += 1
    with pytest.raises(Changed, match="has changed since it was listed"):
        get(folder, listed('"other"'))
    assert bytes(get(folder, listed('"other"'), is_listed_here=False).content) == CONTENT
    folder.content += b"!"
    with pytest.raises(Changed):
        get(folder, listed('"other"'), is_listed_here=False)


def test_size_that_was_too_large_to_be_kept_is_not_compared() -> None:
    entry = listed(size=2**32 - 1)._replace(version=version_of('"e"', len(CONTENT), LISTED))
    assert bytes(get(Store(), entry).content) == CONTENT


def test_sidecars_are_fetched_with_the_tile_each_once() -> None:
    store = Store(sidecars={".msk": b"mask", ".AUX.XML": b"<x/>"})
    file = get(store, listed(sidecars=1 + 8))
    assert {name: bytes(content) for name, content in file.sidecars.items()} == {".msk": b"mask", ".aux.xml": b"<x/>"}
    assert store.asked == ["a/5/1/2.tif", "a/5/1/2.tif.msk", "a/5/1/2.tif.AUX.XML"]
    assert (file.fetched_bytes, file.retries) == (14, 3)


def test_sidecar_that_is_gone_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    fetch: Callable[..., Fetched] = store.fetch

    def without_sidecars(path: str, *limits: int, **others: int) -> Fetched:
        if path.endswith(".msk"):
            raise NotFound(f"s3://bucket/{path}: not found")
        return fetch(path, *limits, **others)

    monkeypatch.setattr(store, "fetch", without_sidecars)
    with pytest.raises(Changed, match=r"2.tif.msk: not found. It was there when listed; start again"):
        get(store, listed(sidecars=1))


def test_copy_of_a_folder_has_other_inodes_and_is_the_same(tmp_path: Path) -> None:
    original = write_tile(tmp_path / "a/5/1/2.tif", np.ones((8, 8), np.uint8))
    status = original.stat()
    entry = Entry("5/1/2.tif", 0, status.st_size, int(status.st_mtime), 0)
    copy = tmp_path / "b/5/1/2.tif"
    copy.parent.mkdir(parents=True)
    shutil.copyfile(original, copy)
    os.utime(copy, (1, 1))
    location = Location.parse(f"{tmp_path}/b")
    assert bytes(read(location, entry, is_listed_here=False).content) == original.read_bytes()
    with pytest.raises(Changed):
        read(location, entry, is_listed_here=True)
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert bytes(read(location, entry, is_listed_here=True).content) == original.read_bytes()
