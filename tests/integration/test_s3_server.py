"""The benchmarks' S3 server does what it is told, counts what it is asked, and lists as S3 does."""

import hashlib
import http.client
import itertools
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import obstore
import pytest
from obstore.store import S3Store

from benchmarks.s3_server import FAULTS, S3Server, Settings

CONTENT = bytes(range(256)) * 40
ETAG = f'"{hashlib.md5(CONTENT).hexdigest()}"'
KEYS = ["a/1.tif", "a/2.tif", "a/b/3.tif", "a0/4.tif", "c.tif", "d & e/5 + 6.tif"]
NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("buckets")
    for key in KEYS:
        path = folder / "snow" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENT)
    return folder


@pytest.fixture(scope="module")
def process(folder: Path) -> Iterator[S3Server]:
    synthetic = {"many": (5000, 2), "thousand": (1000, 1), "filled": (10, 2, folder / "snow/c.tif")}
    with S3Server(folder, synthetic) as server:
        yield server


@pytest.fixture
def server(process: S3Server) -> S3Server:
    process.set()
    return process


def ask(server: S3Server, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=5)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer, answer.read()


def list_page(server: S3Server, bucket: str, **query: str | int) -> dict[str, Any]:
    """What one page says: its simple elements by name, and `keys` and `prefixes`."""
    answer, body = ask(server, f"/{bucket}?{urlencode({'list-type': 2} | query)}")
    assert answer.status == 200
    root = ElementTree.fromstring(body)
    said: dict[str, Any] = {child.tag.removeprefix(NAMESPACE): child.text for child in root if not len(child)}
    said["keys"] = [each.text for each in root.findall(f"{NAMESPACE}Contents/{NAMESPACE}Key")]
    said["prefixes"] = [each.text for each in root.findall(f"{NAMESPACE}CommonPrefixes/{NAMESPACE}Prefix")]
    return said


def list_pages(server: S3Server, bucket: str, **query: str | int) -> list[dict[str, Any]]:
    pages = [list_page(server, bucket, **query)]
    while "NextContinuationToken" in pages[-1]:
        pages.append(list_page(server, bucket, **query, **{"continuation-token": pages[-1]["NextContinuationToken"]}))
    return pages


def store(server: S3Server, bucket: str = "snow", **retries: Any) -> S3Store:
    return S3Store(
        bucket,
        endpoint=server.url,
        region="us-east-1",
        skip_signature=True,
        client_options={"allow_http": True},
        retry_config=retries or None,
    )


def test_object_comes_with_length_etag_and_date(server: S3Server) -> None:
    answer, body = ask(server, "/snow/a/1.tif")
    assert (answer.status, body) == (200, CONTENT)
    assert (answer.getheader("Content-Length"), answer.getheader("ETag")) == (str(len(CONTENT)), ETAG)
    assert str(answer.getheader("Last-Modified")).endswith(" GMT")
    head, nothing = ask(server, "/snow/a/1.tif", "HEAD")
    assert (head.getheader("Content-Length"), head.getheader("ETag"), nothing) == (str(len(CONTENT)), ETAG, b"")


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [("bytes=0-0", 0, 1), ("bytes=10-99999", 10, 10240), ("bytes=256-", 256, 10240), ("bytes=-16", 10224, 10240)],
)
def test_range_is_that_part(server: S3Server, wanted: str, start: int, end: int) -> None:
    answer, body = ask(server, "/snow/c.tif", Range=wanted)
    assert (answer.status, body) == (206, CONTENT[start:end])
    assert answer.getheader("Content-Range") == f"bytes {start}-{end - 1}/10240"


def test_what_cannot_be_answered_is_refused_as_s3_does(server: S3Server) -> None:
    for path, headers, status, code in (
        ("/snow/no.tif", {}, 404, b"NoSuchKey"),
        ("/ice/a.tif", {}, 404, b"NoSuchBucket"),
        ("/snow/c.tif", {"Range": "bytes=10240-"}, 416, b"InvalidRange"),
        ("/snow/c.tif", {"If_Match": '"other"'}, 412, b"PreconditionFailed"),
        ("/snow?list-type=2&continuation-token=%21", {}, 400, b"InvalidArgument"),
    ):
        answer, body = ask(server, path, **headers)
        assert answer.status == status
        assert b"<Code>" + code + b"</Code>" in body


def test_counts_requests_by_kind_objects_and_bytes(server: S3Server) -> None:
    for path in ("/snow/a/1.tif", "/snow/a/1.tif", "/snow/c.tif"):
        ask(server, path)
    ask(server, "/snow/c.tif", Range="bytes=0-9")
    ask(server, "/snow/c.tif", "HEAD")
    listed = ask(server, "/snow?list-type=2")[1]
    stats = server.stats()
    assert stats["requests"] == {"GET": 3, "RANGE": 1, "HEAD": 1, "LIST": 1}
    assert stats["statuses"] == {"200": 5, "206": 1}
    assert (stats["objects"], stats["connections"], stats["peak_in_flight"]) == (2, 6, 1)
    assert stats["bytes"] == 3 * len(CONTENT) + 10 + len(listed)
    server.reset()
    assert server.stats()["requests"] == {}


def test_connection_stays_for_further_requests(server: S3Server) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=5)
    for _ in range(3):
        connection.request("GET", "/snow/c.tif")
        assert connection.getresponse().read() == CONTENT
    assert server.stats()["connections"] == 1


def test_delay_and_bandwidth_take_their_time(server: S3Server) -> None:
    for settings, seconds in (({"delay_ms": 100}, 0.1), ({"bandwidth_mb": 0.0512}, 0.2)):
        server.set(**settings)
        started = time.monotonic()
        assert ask(server, "/snow/c.tif")[1] == CONTENT
        assert time.monotonic() - started >= seconds - 0.02


def test_page_has_a_thousand_keys_and_a_token_if_more_follow(server: S3Server) -> None:
    pages = list_pages(server, "many", **{"max-keys": 5000})
    assert [(page["IsTruncated"], page["KeyCount"], page["MaxKeys"]) for page in pages] == [
        *[("true", "1000", "1000")] * 4,
        ("false", "1000", "1000"),
    ]
    keys = [key for page in pages for key in page["keys"]]
    assert keys == sorted(set(keys))
    assert len(keys) == 5000
    assert [page.get("ContinuationToken") for page in pages[1:]] == [
        page["NextContinuationToken"] for page in pages[:4]
    ]
    assert len(list_pages(server, "thousand")) == 1


def test_prefix_start_and_limit_choose_keys(server: S3Server) -> None:
    assert list_page(server, "snow")["keys"] == KEYS
    assert list_page(server, "snow", prefix="a/")["keys"] == KEYS[:3]
    assert list_page(server, "snow", prefix="a/", **{"start-after": "a/1.tif"})["keys"] == KEYS[1:3]
    assert [page["keys"] for page in list_pages(server, "snow", **{"max-keys": 4})] == [KEYS[:4], KEYS[4:]]
    nothing = list_page(server, "snow", prefix="x")
    assert (nothing["keys"], nothing["KeyCount"], nothing["IsTruncated"]) == ([], "0", "false")
    nothing = list_page(server, "snow", **{"max-keys": 0})
    assert (nothing["keys"], nothing["IsTruncated"]) == ([], "false")
    encoded = list_page(server, "snow", prefix="d", **{"encoding-type": "url"})
    assert (encoded["keys"], encoded["EncodingType"]) == (["d%20%26%20e/5%20%2B%206.tif"], "url")


def test_delimiter_rolls_keys_up_into_common_prefixes_that_count_like_keys(server: S3Server) -> None:
    top = list_page(server, "snow", delimiter="/")
    assert (top["keys"], top["prefixes"], top["KeyCount"]) == (["c.tif"], ["a/", "a0/", "d & e/"], "4")
    below = list_page(server, "snow", delimiter="/", prefix="a/")
    assert (below["keys"], below["prefixes"]) == (["a/1.tif", "a/2.tif"], ["a/b/"])
    pages = list_pages(server, "snow", delimiter="/", **{"max-keys": 1})
    assert [page["keys"] + page["prefixes"] for page in pages] == [["a/"], ["a0/"], ["c.tif"], ["d & e/"]]
    assert list_page(server, "many", delimiter="/")["prefixes"] == ["scene_000/", "scene_001/"]


def test_every_key_of_a_synthetic_bucket_is_the_same_file(server: S3Server) -> None:
    for key in list_page(server, "filled")["keys"]:
        assert ask(server, f"/filled/{key}")[1] == CONTENT
    assert ask(server, "/filled/scene_009/15/10000/10000.tif")[0].status == 404


@pytest.mark.parametrize(
    ("kind", "status"), [("error_500", 500), ("slow_down", 503), ("too_many", 429), ("etag", 200), ("corrupt", 200)]
)
def test_fault_that_is_an_answer(server: S3Server, kind: str, status: int) -> None:
    server.set(faults={kind: 1})
    answer, body = ask(server, "/snow/c.tif")
    assert answer.status == status
    assert (answer.getheader("ETag") == ETAG) == (kind == "corrupt")
    assert (body == CONTENT) == (kind == "etag")
    if kind == "corrupt":
        assert sum(one != other for one, other in zip(body, CONTENT, strict=True)) == 1
    assert server.stats()["faults"] == {kind: 1}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("reset", ConnectionResetError),
        ("reset_body", ConnectionResetError),
        ("short_body", http.client.IncompleteRead),
        ("stall", http.client.RemoteDisconnected),
        ("stall_body", http.client.IncompleteRead),
    ],
)
def test_fault_that_ends_the_connection(server: S3Server, kind: str, expected: type[Exception]) -> None:
    server.set(faults={kind: 1}, stall_s=0.3)
    started = time.monotonic()
    with pytest.raises(expected):
        ask(server, "/snow/c.tif")
    assert (time.monotonic() - started >= 0.3) == kind.startswith("stall")
    server.set()
    assert ask(server, "/snow/c.tif")[1] == CONTENT


def test_faults_depend_on_seed_name_and_attempt_alone() -> None:
    settings = Settings(seed=1, faults=dict.fromkeys(FAULTS, 0.05))
    drawn = [settings.fault(f"snow/{key}", attempt) for key, attempt in itertools.product(range(500), (1, 2))]
    assert drawn == [settings.fault(f"snow/{key}", attempt) for key, attempt in itertools.product(range(500), (1, 2))]
    assert drawn[::2] != drawn[1::2]
    assert drawn != [
        Settings(seed=2, faults=settings.faults).fault(f"snow/{key}", attempt)
        for key, attempt in itertools.product(range(500), (1, 2))
    ]
    assert all(30 <= drawn.count(kind) <= 70 for kind in FAULTS)  # of 1,000, at 5 % each


def test_only_the_named_keys_fail(server: S3Server) -> None:
    server.set(faults={"slow_down": 1}, fault_keys=r"snow/a/[12]")
    assert [ask(server, f"/snow/{key}")[0].status for key in KEYS[:5]] == [503, 503, 200, 200, 200]


def test_unknown_fault_is_refused(server: S3Server) -> None:
    with pytest.raises(ValueError, match="no such fault: earthquake; accepted: error_500, "):
        server.set(faults={"earthquake": 1})


def test_obstore_reads_and_lists_with_a_request_each(server: S3Server) -> None:
    assert obstore.get(store(server), "d & e/5 + 6.tif").bytes().to_bytes() == CONTENT
    assert obstore.get_range(store(server), "a/b/3.tif", start=5, end=9).to_bytes() == CONTENT[5:9]
    found = [entry for page in obstore.list(store(server)) for entry in page]
    assert [(entry["path"], entry["size"], entry["e_tag"]) for entry in found] == [(key, 10240, ETAG) for key in KEYS]
    assert sum(len(page) for page in obstore.list(store(server, "many"))) == 5000
    assert obstore.list_with_delimiter(store(server, "many"))["common_prefixes"] == ["scene_000", "scene_001"]
    assert server.stats()["requests"] == {"GET": 1, "RANGE": 1, "LIST": 1 + 5 + 1}


def test_obstore_outlasts_faults_of_which_a_second_attempt_is_free(server: S3Server) -> None:
    passing = ("error_500", "slow_down", "too_many", "reset")
    server.set(faults=dict.fromkeys(passing, 0.1))
    for key in KEYS:
        for _ in range(5):
            assert obstore.get(store(server, max_retries=8), key).bytes().to_bytes() == CONTENT
    stats = server.stats()
    assert sum(stats["faults"].values()) > 0
    assert stats["requests"]["GET"] == 30 + sum(stats["faults"].values())
