"""Locations as users spell them, and the same listing and reading for a folder and a bucket."""

import gzip
import multiprocessing
import os
import pickle
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from conftest import S3Server, files_in
from robosat_pink.errors import ConfigError, DataError
from robosat_pink.storage import Location, StoredFile, read_file
from robosat_pink.storage.endpoints import endpoint

CHANNELS = {"imagery": Path("/opt/ml/input/data/imagery"), "masks": Path("/opt/ml/input/data/masks")}


@pytest.mark.parametrize(
    ("text", "name", "bucket", "prefix"),
    [
        ("planet", "planet", "planet", ""),
        ("planet/", "planet", "planet", ""),
        ("planet/2018/tiles", "planet/2018/tiles", "planet", "2018/tiles"),
        ("planet/2018//", "planet/2018", "planet", "2018"),
        ("s3://planet", "planet", "planet", ""),
        ("s3://planet/", "planet", "planet", ""),
        ("s3://planet/2018/", "planet/2018", "planet", "2018"),
    ],
)
def test_bucket_with_prefix_is_told_from_its_spelling(text: str, name: str, bucket: str, prefix: str) -> None:
    location = Location.parse(text, profile="me", endpoint_url="http://store")
    assert location == Location(name, bucket, prefix, profile="me", endpoint_url="http://store")
    assert str(location) == f"s3://{name}"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("/data/tiles", "/data/tiles"),
        ("/data/tiles//", "/data/tiles"),
        ("/", "/"),
        ("./tiles/", "tiles"),
        ("./", "."),
        ("..", ".."),
        ("../tiles", "../tiles"),
        ("file:///data/tiles/", "/data/tiles"),
    ],
)
def test_folder_is_told_from_its_spelling(text: str, name: str) -> None:
    location = Location.parse(text, CHANNELS)
    assert location.bucket is None
    assert location.path == str(Path(name).resolve())
    assert location.name == str(location) == name


def test_folder_is_found_however_it_is_spelt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run/tiles"
    (folder / "scene").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run")
    for text in (f"{folder}", f"{folder}//", f"file://{folder}", "./tiles", "./tiles/", "../run/tiles"):
        assert Location.parse(text).directories() == ["scene"], text


@pytest.mark.parametrize(
    ("text", "name", "folder"),
    [
        ("channel:imagery", "channel:imagery", "/opt/ml/input/data/imagery"),
        ("channel:imagery/", "channel:imagery", "/opt/ml/input/data/imagery"),
        ("channel:masks/2018/a/", "channel:masks/2018/a", "/opt/ml/input/data/masks/2018/a"),
    ],
)
def test_channel_is_the_folder_of_its_name(text: str, name: str, folder: str) -> None:
    location = Location.parse(text, CHANNELS, profile="me", endpoint_url="http://store")
    assert (location.bucket, location.path, location.name, str(location)) == (None, folder, name, name)


@pytest.mark.parametrize(("channels", "there"), [(CHANNELS, "imagery, masks"), ({}, "none"), (None, "none")])
def test_unknown_channel_is_an_error_that_lists_those_there_are(channels: dict[str, Path] | None, there: str) -> None:
    with pytest.raises(ConfigError, match=f"^channel:images/2018: there is no channel 'images'; .*: {there}$"):
        Location.parse("channel:images/2018", channels)


@pytest.mark.parametrize("text", ["", "s3://", "s3:///2018", "gs://planet", "https://planet.s3.amazonaws.com/2018"])
def test_what_is_neither_bucket_nor_folder_is_an_error_that_says_what_is_accepted(text: str) -> None:
    with pytest.raises(ConfigError, match=f"^'{text}': accepted: .*s3://bucket/prefix, /folder, .*channel:NAME"):
        Location.parse(text)


FILES = (
    "scene/5/1/2.tif",
    "scene/5/1/10.tif",
    "scene/5/readme.txt",
    "scene/top.txt",
    "scene_b/5/1/2.tif",
    "scene-2/5/1/2.tif",
    "a scène #1 +~%/5/1/2.tif",
    "beside.txt",
)


def write_files(folder: Path) -> None:
    """Each file holds its own name."""
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


@pytest.fixture(params=["folder", "bucket", "bucket/prefix"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """The same files in a folder, in a bucket, and in a bucket below a prefix that is also a part of another one."""
    write_files(tmp_path / "tiles")
    if request.param == "folder":
        return Location.parse(f"{tmp_path}/tiles")
    s3: S3Server = request.getfixturevalue("s3")
    s3.make_bucket("planet-imagery")
    prefix = "" if request.param == "bucket" else "2018/tiles/"
    s3.upload(tmp_path / "tiles", "planet-imagery", prefix)
    if prefix:
        s3.upload(tmp_path / "tiles/scene", "planet-imagery", "2018/tiles_old/other/")
    return Location.parse(f"planet-imagery/{prefix}")


def test_directories_are_those_right_below_in_order(location: Location) -> None:
    assert location.directories() == ["a scène #1 +~%", "scene", "scene-2", "scene_b"]


def test_files_are_all_below_one_directory_with_their_paths_from_there(location: Location) -> None:
    found = files_in(location, "scene")
    assert sorted((file.path, file.size) for file in found) == [
        ("5/1/10.tif", len("scene/5/1/10.tif")),
        ("5/1/2.tif", len("scene/5/1/2.tif")),
        ("5/readme.txt", len("scene/5/readme.txt")),
        ("top.txt", len("scene/top.txt")),
    ]
    assert [file.path for file in files_in(location, "a scène #1 +~%")] == ["5/1/2.tif"]


def test_etag_changes_with_the_content_alone(location: Location, request: pytest.FixtureRequest) -> None:
    before = files_in(location, "scene")
    assert files_in(location, "scene") == before
    if location.bucket is None:
        (Path(location.path) / "scene/top.txt").write_text("something else")
    else:
        key = f"{location.path}/scene/top.txt".lstrip("/")
        request.getfixturevalue("s3").client.put_object(Bucket=location.bucket, Key=key, Body=b"something else")
    changed = {file.path for file in files_in(location, "scene") if file not in before}
    assert changed == {"top.txt"}
    assert all(file.etag for file in before)


def test_directory_that_is_not_there_has_no_files(location: Location) -> None:
    assert files_in(location, "scen") == []


@pytest.mark.parametrize("name", FILES)
def test_file_is_read_whole(location: Location, name: str) -> None:
    assert location.read(name) == name.encode()


def test_every_byte_and_none_at_all_are_read_as_they_are(location: Location, request: pytest.FixtureRequest) -> None:
    contents = {"all": bytes(range(256)) * 4096, "none": b""}
    for name, content in contents.items():
        if location.bucket is None:
            (Path(location.path) / name).write_bytes(content)
        else:
            key = f"{location.path}/{name}".lstrip("/")
            request.getfixturevalue("s3").client.put_object(Bucket=location.bucket, Key=key, Body=content)
    assert {name: location.read(name) for name in contents} == contents


def test_object_that_was_uploaded_as_gzip_is_read_unzipped_and_its_size_is_the_listed_one(s3: S3Server) -> None:
    s3.make_bucket("planet-zipped")
    stored = gzip.compress(bytes(1000))
    s3.client.put_object(Bucket="planet-zipped", Key="scene/1.tif", Body=stored, ContentEncoding="gzip")
    location = Location.parse("planet-zipped", verify_md5=True)
    (file,) = files_in(location, "scene")
    fetched = location.fetch("scene/1.tif", file.size)
    assert fetched.content == bytes(1000)
    assert (fetched.file.size, fetched.file.etag, fetched.file.modified) == (len(stored), file.etag, file.modified)


@pytest.mark.parametrize("name", ["scene/5/1/3.tif", "scene/5/1", "none/5/1/2.tif"])
def test_file_that_is_not_there_is_an_error_that_names_it(location: Location, name: str) -> None:
    with pytest.raises(DataError, match=f"^{location}/{name}: not found"):
        location.read(name)


def test_bucket_that_does_not_exist_is_an_error_that_says_so(s3: S3Server) -> None:
    location = Location.parse("s3://no-such-bucket/2018")
    for call in (location.directories, lambda: files_in(location, "scene"), lambda: location.read("scene/5/1/2.tif")):
        with pytest.raises(DataError, match=r"^s3://no-such-bucket/2018.*: the bucket no-such-bucket does not exist"):
            call()


def test_folder_that_does_not_exist_is_an_error_that_says_so(tmp_path: Path) -> None:
    location = Location.parse(f"{tmp_path}/no such folder")
    for call in (location.directories, lambda: files_in(location, "scene"), lambda: location.read("scene/5/1/2.tif")):
        with pytest.raises(DataError, match=f"^{tmp_path}/no such folder: no such folder"):
            call()


def test_relative_folder_that_does_not_exist_is_told_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"^tiles: no such folder; it was looked for at {tmp_path}/tiles"):
        Location.parse("./tiles").directories()


def test_folder_that_is_made_after_a_failure_is_found(tmp_path: Path) -> None:
    location = Location.parse(f"{tmp_path}/tiles")
    with pytest.raises(DataError):
        location.directories()
    (tmp_path / "tiles/scene").mkdir(parents=True)
    assert location.directories() == ["scene"]


@pytest.mark.slow
def test_location_in_use_travels_to_another_process_and_reads_the_same_there(location: Location) -> None:
    files = files_in(location, "scene")
    assert pickle.loads(pickle.dumps(location)) == location
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(files_in, location, "scene").result(timeout=60) == files
        assert pool.submit(location.read, "scene/top.txt").result(timeout=60) == b"scene/top.txt"


@pytest.fixture
def requests_seen() -> list[str]:
    return []


@pytest.fixture
def two_page_store(requests_seen: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an object store whose listings come in two pages of one key, and which notes every request."""

    class Store(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            requests_seen.append(f"{self.command} {urlsplit(self.path).path}")
            query = parse_qs(urlsplit(self.path).query)
            self.answer(self.page(query) if "list-type" in query else b"x" * 3_000_000)

        do_HEAD = do_GET  # noqa: N815 - the base class calls it so

        def page(self, query: dict[str, list[str]]) -> bytes:
            last = "continuation-token" in query
            more = "" if last else "<NextContinuationToken>two</NextContinuationToken>"
            return f"""<?xml version="1.0" encoding="UTF-8"?>
                <ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
                <Name>planet</Name><KeyCount>1</KeyCount><IsTruncated>{str(not last).lower()}</IsTruncated>{more}
                <Contents><Key>scene/{1 + last}.tif</Key><Size>{1 + last}</Size><ETag>"{1 + last}"</ETag>
                <LastModified>2018-05-28T00:00:00.000Z</LastModified></Contents></ListBucketResult>""".encode()

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"1"')
            self.send_header("Last-Modified", "Mon, 28 May 2018 00:00:00 GMT")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_object_is_read_by_one_get_and_nothing_else(two_page_store: str, requests_seen: list[str]) -> None:
    location = Location.parse("planet", endpoint_url=two_page_store)
    assert location.read("scene/1.tif") == b"x" * 3_000_000
    assert requests_seen == ["GET /planet/scene/1.tif"]


def test_listing_goes_on_to_its_last_page_and_asks_nothing_else(two_page_store: str, requests_seen: list[str]) -> None:
    location = Location.parse("planet", endpoint_url=two_page_store)
    assert files_in(location, "scene") == [StoredFile(f"{n}.tif", n, f'"{n}"', 1527465600) for n in (1, 2)]
    assert requests_seen == ["GET /planet", "GET /planet"]


@pytest.fixture
def hosts_asked_for(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A machine whose only way out is a proxy that lets nothing through, and the hosts that were asked of it."""
    hosts: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            hosts.append(self.path)
            self.send_error(403)

        def log_message(self, *_: object) -> None: ...

    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        for name in ("HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
        yield hosts
        server.shutdown()


def test_bucket_without_an_endpoint_is_looked_for_at_amazon_in_the_region_of_the_environment(
    hosts_asked_for: list[str],
) -> None:
    with pytest.raises(DataError, match=r"^s3://planet-tiles-without-endpoint: "):
        Location.parse("planet-tiles-without-endpoint").directories()
    assert all(re.fullmatch(r"(.*\.)?s3\.eu-west-3\.amazonaws\.com:443", host) for host in hosts_asked_for)
    assert hosts_asked_for


def test_single_file_is_read_from_a_bucket_a_folder_and_a_channel(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path)
    s3.make_bucket("planet-imagery")
    s3.upload(tmp_path, "planet-imagery")
    monkeypatch.chdir(tmp_path / "scene")
    for text, name in {
        "s3://planet-imagery/beside.txt": "beside.txt",
        "s3://planet-imagery/scene/5/1/2.tif": "scene/5/1/2.tif",
        "planet-imagery/scene/top.txt": "scene/top.txt",
        f"{tmp_path}/beside.txt": "beside.txt",
        f"file://{tmp_path}/beside.txt": "beside.txt",
        "./5/readme.txt": "scene/5/readme.txt",
        "../scene_b/5/1/2.tif": "scene_b/5/1/2.tif",
        "channel:tiles/beside.txt": "beside.txt",
        "channel:tiles/scene/5/1/10.tif": "scene/5/1/10.tif",
    }.items():
        assert read_file(text, {"tiles": tmp_path}) == name.encode(), text
    assert read_file("s3://planet-imagery/beside.txt", endpoint_url=s3.endpoint_url) == b"beside.txt"


@pytest.mark.parametrize("text", ["{folder}/gone.txt", "s3://planet-imagery/gone.txt"])
def test_single_file_that_is_not_there_is_an_error_that_names_it(tmp_path: Path, s3: S3Server, text: str) -> None:
    s3.make_bucket("planet-imagery")
    text = text.format(folder=tmp_path)
    with pytest.raises(DataError, match=f"^{text}: not found"):
        read_file(text)


@pytest.mark.parametrize("text", ["", "best.pth", "channel:weights", "s3://planet-imagery"])
def test_name_of_no_single_file_is_an_error_that_says_what_is_accepted(text: str) -> None:
    with pytest.raises(ConfigError, match=r"accepted: .*s3://bucket/"):
        read_file(text)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_endpoint_in_the_environment_that_is_no_address_is_refused_and_an_empty_one_is_none(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for each in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "127.0.0.1:5577")
    with pytest.raises(ConfigError, match=rf"{name} = '127\.0\.0\.1:5577': accepted: an address"):
        Location.parse(name.lower().replace("_", "-")).directories()  # of which no client is kept
    monkeypatch.setenv(name, "")
    assert endpoint(None, None).url is None
    assert name not in os.environ


def test_folder_whose_name_is_too_long_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x: cannot be read: File name too long; check"):
        Location.parse(f"{tmp_path}/{'x' * 3000}").directories()


@pytest.mark.parametrize("content", [b"", b"a tile", b"0123456789" * 2_000_000])
def test_what_is_written_is_read_again_from_a_folder_and_a_bucket(tmp_path: Path, s3: S3Server, content: bytes) -> None:
    """The last one is sent in parts."""
    s3.make_bucket("maps")
    file = tmp_path / "file"
    file.write_bytes(content)
    for where in (f"{tmp_path}/maps", "s3://maps/2018"):
        location = Location.parse(where)
        if location.bucket is None:
            Path(location.path).mkdir()
        for name, given in (("a/b.tif", content), ("c/d.tif", file)):
            location.write(name, b"something else")
            location.write(name, given)
            assert location.read(name) == content
    assert sorted(path.name for path in (tmp_path / "maps").rglob("*")) == ["a", "b.tif", "c", "d.tif"]
    assert not s3.client.list_multipart_uploads(Bucket="maps").get("Uploads")


def test_bucket_that_cannot_be_written_to_is_named(s3: S3Server) -> None:
    with pytest.raises(DataError, match=r"s3://absent/2018/a\.tif"):
        Location.parse("s3://absent/2018").write("a.tif", b"a tile")
