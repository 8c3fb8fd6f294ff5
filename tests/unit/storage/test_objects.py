"""One object: its size is known before it is read, its ETag is compared as HTTP has it, its encoding is undone."""

import gzip
import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import files_in
from robosat_pink.errors import DataError
from robosat_pink.storage import Location, Resized, StoredFile, read_file
from robosat_pink.storage.objects import canonical_etags
from s3_answers import Store, forget_credentials, give_keys, listed, served

DATE = "Mon, 28 May 2018 00:00:00 GMT"
SECONDS = 1527465600  # the same


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    forget_credentials(monkeypatch, tmp_path)
    give_keys(monkeypatch)
    with served() as store:
        yield store


def bucket(store: Store, **options: bool) -> Location:
    return Location.parse(f"objects-{store.server.server_port}", endpoint_url=store.url, **options)


@pytest.mark.parametrize(
    ("spelt", "canonical"),
    [
        ('"0123456789abcdef0123456789abcdef"', '"0123456789abcdef0123456789abcdef"'),
        ('"0123456789abcdef0123456789abcdef-12"', '"0123456789abcdef0123456789abcdef-12"'),
        ("0123456789abcdef", '"0123456789abcdef"'),
        ('W/"0123456789abcdef"', '"0123456789abcdef"'),
        ("W/0123456789abcdef", '"0123456789abcdef"'),
        (' "a b" ', '"a b"'),
        ('""', ""),
        ("", ""),
        (None, ""),
    ],
)
def test_etag_is_its_opaque_tag_however_it_is_spelt(spelt: str | None, canonical: str) -> None:
    assert canonical_etags([spelt]) == [canonical]


@pytest.mark.parametrize(
    ("in_listing", "in_answer", "both"), [('"a"', 'W/"a"', '"a"'), ("a", '"a"', '"a"'), ("", None, "")]
)
def test_file_of_a_listing_is_the_one_that_is_fetched(
    store: Store, in_listing: str, in_answer: str | None, both: str
) -> None:
    store.listing, store.content = listed("scene/1.tif", etag=in_listing, size=3), b"abc"
    store.headers = {"Last-Modified": DATE} | ({"ETag": in_answer} if in_answer else {})
    fetched = bucket(store).fetch("scene/1.tif", 3)
    assert fetched.content == b"abc"
    assert files_in(bucket(store), "scene") == [StoredFile("1.tif", 3, both, SECONDS)]
    assert fetched.file == StoredFile("scene/1.tif", 3, both, SECONDS)


def test_file_of_a_folder_is_as_old_as_the_system_says(tmp_path: Path) -> None:
    (tmp_path / "scene").mkdir()
    (tmp_path / "scene/1.tif").write_bytes(b"abc")
    os.utime(tmp_path / "scene/1.tif", (SECONDS + 0.9, SECONDS + 0.9))
    location = Location.parse(str(tmp_path))
    assert [file.modified for file in files_in(location, "scene")] == [SECONDS]
    assert location.fetch("scene/1.tif", 3).file.modified == SECONDS


def test_store_that_says_no_date_is_taken_for_1970(store: Store) -> None:
    assert bucket(store).fetch("1.tif").file.modified == 0


@pytest.mark.parametrize("claimed", [2, 4, 10**12])
def test_object_of_another_size_than_listed_is_refused_before_it_is_read_and_asked_for_once(
    store: Store, claimed: int
) -> None:
    store.content, store.headers = b"abc", {"Content-Length": str(claimed)}
    with pytest.raises(
        Resized, match=rf"^s3://objects-\d+/1\.tif: has {claimed:,} bytes, and had 3 when it was listed"
    ):
        bucket(store).fetch("1.tif", 3)
    assert len(store.asked) == 1


def test_file_of_another_size_than_listed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1.tif").write_bytes(b"abcd")
    with pytest.raises(Resized, match=rf"^{tmp_path}/1\.tif: has 4 bytes, and had 3 when it was listed"):
        Location.parse(str(tmp_path)).fetch("1.tif", 3)


def test_object_that_claims_to_be_huge_is_refused_before_it_is_read_with_both_sizes(store: Store) -> None:
    store.headers = {"Content-Length": str(10**12)}
    for read, limit in (
        (lambda: bucket(store).fetch("1.tif"), "1,000,000,000"),
        (lambda: bucket(store).fetch("1.tif", 10**12), "1,000,000,000"),
        (lambda: bucket(store).read("1.tif"), "8,000,000,000"),
        (lambda: bucket(store).read("1.tif", 1000), "1,000"),
    ):
        with pytest.raises(DataError, match=rf"1\.tif: has 1,000,000,000,000 bytes; accepted: up to {limit}$"):
            read()


def test_named_file_larger_than_its_limit_is_refused_and_one_just_as_large_is_read(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_bytes(b"x" * 101)
    with pytest.raises(DataError, match=r"ids\.txt: has 101 bytes; accepted: up to 100$"):
        read_file(f"{tmp_path}/ids.txt", max_bytes=100)
    assert read_file(f"{tmp_path}/ids.txt", max_bytes=101) == b"x" * 101


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "kind"), [(make_pipe, "a pipe"), (make_socket, "a socket"), (make_link_to_device, "a device")]
)
def test_what_is_no_file_is_refused_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], kind: str
) -> None:
    monkeypatch.chdir(tmp_path)  # addresses of sockets are short
    make(Path("1.tif"))
    for read in (lambda: Location.parse(".").fetch("1.tif"), lambda: read_file("./1.tif")):
        with pytest.raises(DataError, match=rf"1\.tif: is {kind}; accepted: a file$"):
            read()


CONTENT = bytes(range(256)) * 100


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip", "aws-chunked, gzip", "gzip,aws-chunked"])
def test_gzip_is_undone_and_size_and_md5_are_of_what_is_stored(store: Store, encoding: str) -> None:
    store.content = gzip.compress(CONTENT)
    store.headers = {"Content-Encoding": encoding, "ETag": f'"{hashlib.md5(store.content).hexdigest()}"'}
    fetched = bucket(store, verify_md5=True).fetch("1.tif", len(store.content))
    assert fetched.content == CONTENT
    assert (fetched.file.size, fetched.retries) == (len(store.content), 0)


def test_gzip_of_several_members_is_undone_to_its_end(store: Store) -> None:
    store.content = gzip.compress(b"abc") + gzip.compress(b"def") + bytes(8)
    store.headers = {"Content-Encoding": "gzip"}
    assert bucket(store).read("1.tif") == b"abcdef"


@pytest.mark.parametrize("encoding", ["", "identity", "aws-chunked", "gzip"])
def test_content_that_is_not_encoded_is_taken_as_it_is(store: Store, encoding: str) -> None:
    store.content, store.headers = CONTENT, {"Content-Encoding": encoding}
    assert bucket(store).read("1.tif") == CONTENT


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, br"])
def test_other_encodings_are_refused_in_words(store: Store, encoding: str) -> None:
    store.content, store.headers = CONTENT, {"Content-Encoding": encoding}
    with pytest.raises(DataError, match=rf"1\.tif: its Content-Encoding is {encoding}; accepted: gzip or none; upload"):
        bucket(store).read("1.tif")
    assert len(store.asked) == 1


def test_gzip_that_swells_is_refused_at_the_limit(store: Store) -> None:
    store.content, store.headers = gzip.compress(bytes(10**8)), {"Content-Encoding": "gzip"}
    with pytest.raises(DataError, match=r"1\.tif: unzips to more than 1,000,000 bytes, which is the limit$"):
        bucket(store).fetch("1.tif", max_bytes=10**6)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:20] + b"\0\0\0\0" + data[24:]])
def test_damaged_gzip_is_an_error_in_words(store: Store, damage: Callable[[bytes], bytes]) -> None:
    store.content, store.headers = damage(gzip.compress(CONTENT)), {"Content-Encoding": "gzip"}
    with pytest.raises(DataError, match=r"1\.tif: its Content-Encoding is gzip, but is damaged \(.+\); upload it"):
        bucket(store).read("1.tif")


def test_answer_without_a_length_is_an_error_at_once(store: Store) -> None:
    store.headers = {"Content-Length": "", "Connection": "close"}
    with pytest.raises(DataError, match=r"1\.tif: the answer does not say how many bytes it has; check the proxy"):
        bucket(store).read("1.tif")
    assert len(store.asked) == 1
