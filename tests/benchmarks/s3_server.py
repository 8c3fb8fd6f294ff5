"""A small S3 on loopback that is slow and faulty as its settings say, and counts requests. Only for tests.

    python tests/benchmarks/s3_server.py [FOLDER] [--port 9000] [--synthetic BUCKET:KEYS:DIRECTORIES[:FILE] ...]
        [--settings '{"delay_ms": 25, "bandwidth_mb": 80, "faults": {"reset": 0.05, "short_body": 0.05}}']

Each folder in FOLDER is a bucket. A synthetic bucket has KEYS tiles in DIRECTORIES directories without files on disk;
GET of any returns FILE. Served: GET and HEAD of objects with ranges and If-Match, ListObjectsV2; nothing is signed.
`S3Server` runs it as a process of its own for benchmarks and tests. GET /_stats returns the counters, POST /_reset
clears them and reads FOLDER again, POST /_settings takes the fields of `Settings` as JSON.

One thread a connection, and the bodies ready in memory (the folder must fit): a body is one blocking system call. That
takes 0.4 ms of a core for an object of 2.1 MB (2 cores of an AMD EPYC, family 26, November 2026), as much as an asyncio
protocol; sendfile took 0.55 ms.
"""

from __future__ import annotations

import argparse
import base64
import bisect
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit
from urllib.request import Request as HttpRequest
from urllib.request import urlopen
from xml.sax.saxutils import escape

PAGE_KEYS = 1000  # S3 lists no more at a time, whatever max-keys says
PAGES_KEPT = 256
PACE_S = 0.01  # between portions of a body where bandwidth is limited
ERRORS = {"error_500": (500, "InternalError"), "slow_down": (503, "SlowDown"), "too_many": (429, "TooManyRequests")}
FAULTS = (
    *ERRORS,
    "reset",  # before the headers
    "reset_body",  # after half of the body
    "short_body",  # half of the body, then the end of the connection
    "stall",  # nothing for stall_s, then the end of the connection
    "stall_body",  # the same after half of the body
    "etag",  # another ETag than the listing's
    "corrupt",  # one byte differs
)
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Settings:
    delay_ms: float = 0.0  # before the first byte of every answer
    bandwidth_mb: float = 0.0  # 10^6 bytes a second and connection; 0: no limit
    seed: int = 0
    faults: Mapping[str, float] = field(default_factory=dict)  # share of requests, by kind
    fault_keys: str = ""  # only requests for a bucket/key (for listings bucket/prefix) that this matches
    stall_s: float = 60.0

    def __post_init__(self) -> None:
        if unknown := self.faults.keys() - set(FAULTS):
            raise ValueError(f"no such fault: {', '.join(sorted(unknown))}; accepted: {', '.join(FAULTS)}")

    def fault(self, name: str, attempt: int) -> str | None:
        """The fault of the n-th request of this name, by seed, name and n alone, not by time or order."""
        if not self.faults or not re.search(self.fault_keys, name):
            return None
        draw = random.Random(f"{self.seed} {name} {attempt}").random()
        for kind in FAULTS:
            draw -= self.faults.get(kind, 0.0)
            if draw < 0:
                return kind
        return None


class StoredObject(NamedTuple):
    content: bytes
    etag: str  # with its quotes
    modified: str  # as headers have it
    entry: str  # its part of a listing, without the key


class Bucket:
    """Objects by key, and their keys in order."""

    def __init__(self, objects: Mapping[str, StoredObject]) -> None:
        self.objects = objects
        self.keys: Sequence[str] = sorted(objects)

    def find(self, key: str) -> StoredObject | None:
        return self.objects.get(key)

    def at(self, position: int) -> tuple[str, StoredObject]:
        return self.keys[position], self.objects[self.keys[position]]


class SyntheticBucket(Bucket):
    """scene_000/15/10000/10000.tif and so on, computed when asked for: all are one object."""

    def __init__(self, keys: int, directories: int, file: Path | None = None) -> None:
        self.keys = SyntheticKeys(keys, directories)
        self.object = stored_file(file) if file else stored(b"", 0.0)

    def find(self, key: str) -> StoredObject | None:
        position = bisect.bisect_left(self.keys, key)
        return self.object if position < len(self.keys) and self.keys[position] == key else None

    def at(self, position: int) -> tuple[str, StoredObject]:
        return self.keys[position], self.object


class SyntheticKeys(Sequence[str]):
    def __init__(self, keys: int, directories: int) -> None:
        self.count = keys
        self.per_directory = math.ceil(keys / directories)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: Any) -> Any:
        directory, tile = divmod(number, self.per_directory)
        return f"scene_{directory:03}/15/{10000 + tile // 1000}/{10000 + tile % 1000}.tif"


def stored_file(file: Path) -> StoredObject:
    status = file.stat()
    return _read(file, status.st_mtime, status.st_size)


@functools.cache
def _read(file: Path, modified: float, size: int) -> StoredObject:
    return stored(file.read_bytes(), modified)


def stored(content: bytes, modified: float) -> StoredObject:
    etag = f'"{hashlib.md5(content).hexdigest()}"'
    entry = (
        f"<LastModified>{time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(modified))}</LastModified>"
        f"<ETag>{etag}</ETag><Size>{len(content)}</Size><StorageClass>STANDARD</StorageClass>"
    )
    return StoredObject(content, etag, formatdate(modified, usegmt=True), entry)


class Request(NamedTuple):
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes | memoryview = b""


class Store:
    """The buckets, the settings and the counters of a server."""

    def __init__(self, folder: Path | None, synthetic: Mapping[str, Bucket], settings: Settings) -> None:
        self.folder = folder
        self.synthetic = synthetic
        self.settings = settings
        self.lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        self.buckets = dict(self.synthetic)
        for folder in sorted(self.folder.iterdir()) if self.folder else ():
            files = (path for path in folder.rglob("*") if path.is_file())
            self.buckets[folder.name] = Bucket({str(path.relative_to(folder)): stored_file(path) for path in files})
        with self.lock:
            self.requests: Counter[str] = Counter()  # GET, RANGE, HEAD, LIST, OTHER
            self.statuses: Counter[str] = Counter()
            self.faults: Counter[str] = Counter()
            self.asked: Counter[str] = Counter()  # by method and name, to number the attempts
            self.bytes_sent = self.in_flight = self.peak_in_flight = self.connections = 0
            self.cpu_before_s = time.process_time()

    def stats(self) -> dict[str, Any]:
        """`objects` is how many different ones GET and RANGE asked for, `connections` how many were opened."""
        with self.lock:
            return {
                "requests": dict(self.requests),
                "statuses": dict(self.statuses),
                "faults": dict(self.faults),
                "objects": sum(name.startswith("GET ") for name in self.asked),
                "bytes": self.bytes_sent,
                "connections": self.connections,
                "peak_in_flight": self.peak_in_flight,
                "cpu_s": time.process_time() - self.cpu_before_s,
            }

    def control(self, request: Request) -> Answer:
        if request.path == "/_reset":
            self.reset()
        elif request.path == "/_settings":
            self.settings = Settings(**json.loads(request.body))
        return Answer(200, {}, json.dumps(self.stats()).encode())

    def count_connection(self) -> None:
        with self.lock:
            self.connections += 1

    def begin(self, request: Request) -> str | None:
        """Count the request; its fault, or None."""
        bucket, _, key = request.path[1:].partition("/")
        is_listing = not key and request.method == "GET"
        kind = "LIST" if is_listing else "RANGE" if "range" in request.headers else request.method
        name = f"{bucket}/{key or request.query.get('prefix', '')}"
        with self.lock:
            self.requests[kind] += 1
            self.in_flight += 1
            self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
            attempt = f"{'LIST' if is_listing else request.method} {name} {request.query.get('continuation-token', '')}"
            self.asked[attempt] += 1
            fault = self.settings.fault(name, self.asked[attempt])
            if fault:
                self.faults[fault] += 1
        return fault

    def end(self, status: int, sent: int) -> None:
        """To be called before the answer's last byte is sent, so that whoever has the whole answer sees it counted."""
        with self.lock:
            self.in_flight -= 1
            self.statuses[str(status)] += 1
            self.bytes_sent += sent

    def answer(self, request: Request) -> Answer:
        name, _, key = request.path[1:].partition("/")
        bucket = self.buckets.get(name)
        if request.method not in ("GET", "HEAD"):
            return error(405, "MethodNotAllowed")
        if bucket is None:
            return error(404, "NoSuchBucket")
        if not key:
            return listing(name, bucket, request.query) if request.method == "GET" else Answer(200, {})
        requested = bucket.find(key)
        if requested is None:
            return error(404, "NoSuchKey")
        return whole_or_range(requested, request.headers)


def whole_or_range(requested: StoredObject, conditions: Mapping[str, str]) -> Answer:
    headers = {
        "ETag": requested.etag,
        "Last-Modified": requested.modified,
        "Accept-Ranges": "bytes",
        "Content-Type": "binary/octet-stream",
    }
    if conditions.get("if-match", "*") not in ("*", requested.etag):
        return error(412, "PreconditionFailed")
    if conditions.get("if-none-match") == requested.etag:
        return Answer(304, headers)
    size = len(requested.content)
    start, end, status = 0, size, 200
    if byte_range := re.fullmatch(r"bytes=(\d*)-(\d*)", conditions.get("range", "")):
        first, last = byte_range.groups()
        start = int(first) if first else max(size - int(last or 0), 0)
        end = min(int(last) + 1, size) if first and last else size
        if start >= end:
            return error(416, "InvalidRange")
        status = 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return Answer(status, headers, memoryview(requested.content)[start:end])


def error(status: int, code: str) -> Answer:
    text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>No.</Message></Error>"
    return Answer(status, {"Content-Type": "application/xml"}, text.encode())


def listing(name: str, bucket: Bucket, query: Mapping[str, str]) -> Answer:
    """A page of ListObjectsV2. The continuation token is the number of the next key, made opaque."""
    try:
        limit = min(int(query.get("max-keys", PAGE_KEYS)), PAGE_KEYS)
        token = query.get("continuation-token")
        start = int(base64.b64decode(token, validate=True)) if token else 0
    except ValueError:
        return error(400, "InvalidArgument")
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    if not token:
        start = bisect.bisect_left(bucket.keys, prefix)
        if after := query.get("start-after"):
            start = max(start, bisect.bisect_right(bucket.keys, after))
    is_encoded = query.get("encoding-type") == "url"
    count, entries, following = page(bucket, prefix, delimiter, start, limit, is_encoded)
    fields = {
        "Name": name,
        "Prefix": quote(prefix) if is_encoded else prefix,
        "Delimiter": delimiter,
        "EncodingType": query.get("encoding-type", ""),
        "StartAfter": query.get("start-after", ""),
        "ContinuationToken": token or "",
        "NextContinuationToken": "" if following is None else base64.b64encode(str(following).encode()).decode(),
    }
    text = "".join(f"<{tag}>{escape(value)}</{tag}>" for tag, value in fields.items() if value or tag == "Prefix")
    text = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"{text}<KeyCount>{count}</KeyCount><MaxKeys>{limit}</MaxKeys>"
        f"<IsTruncated>{'false' if following is None else 'true'}</IsTruncated>{entries}</ListBucketResult>"
    )
    return Answer(200, {"Content-Type": "application/xml"}, text.encode())


@functools.lru_cache(PAGES_KEPT)
def page(
    bucket: Bucket, prefix: str, delimiter: str, start: int, limit: int, is_encoded: bool
) -> tuple[int, str, int | None]:
    """Number of keys and common prefixes, these as XML, and the position of the next page; None after the last."""
    spell = quote if is_encoded else escape
    contents: list[str] = []
    common: list[str] = []
    position = start
    while position < len(bucket.keys):
        key, stored_object = bucket.at(position)
        if not key.startswith(prefix):
            break
        if len(contents) + len(common) >= limit:
            return len(contents) + len(common), "".join(contents + common), position if limit else None
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        if cut >= 0:
            group = key[: cut + len(delimiter)]
            common.append(f"<CommonPrefixes><Prefix>{spell(group)}</Prefix></CommonPrefixes>")
            position = bisect.bisect_left(bucket.keys, group[:-1] + chr(ord(group[-1]) + 1), lo=position)
            continue
        contents.append(f"<Contents><Key>{spell(key)}</Key>{stored_object.entry}</Contents>")
        position += 1
    return len(contents) + len(common), "".join(contents + common), None


def serve(store: Store, listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=converse, args=(store, connection), daemon=True).start()


def converse(store: Store, connection: socket.socket) -> None:
    """Answer the requests of one connection until it ends."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    is_counted = False
    with connection, contextlib.suppress(ConnectionError):
        for request in requests_of(connection):
            if request.path.startswith("/_"):
                answer = store.control(request)
                send(connection, answer, len(answer.body), 0.0)
                continue
            if not is_counted:
                store.count_connection()
                is_counted = True
            if not attend(store, connection, request):
                return


def requests_of(connection: socket.socket) -> Iterator[Request]:
    with connection.makefile("rb") as stream:
        while line := stream.readline():
            method, target, _ = line.decode("latin-1").split(" ")
            headers: dict[str, str] = {}
            while (line := stream.readline()).strip():
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            parts = urlsplit(target)
            query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
            body = stream.read(int(headers.get("content-length", 0)))
            yield Request(method, unquote(parts.path), query, headers, body)


def attend(store: Store, connection: socket.socket, request: Request) -> bool:
    """Answer one request, or commit its fault. False if the connection must end."""
    settings = store.settings
    fault = store.begin(request)
    if settings.delay_ms:
        time.sleep(settings.delay_ms / 1000)
    if fault == "stall":
        time.sleep(settings.stall_s)
    elif fault == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    if fault in ("stall", "reset"):
        store.end(0, 0)
        return False
    answer = error(*ERRORS[fault]) if fault in ERRORS else store.answer(request)
    if fault == "etag" and "ETag" in answer.headers:
        answer.headers["ETag"] = f'"{"f" * 32}"'
    if fault == "corrupt":
        answer = corrupted(answer)
    is_cut = fault in ("reset_body", "short_body", "stall_body")
    body_bytes = 0 if request.method == "HEAD" else len(answer.body) // 2 if is_cut else len(answer.body)
    with contextlib.ExitStack() as ending:
        ending.callback(store.end, answer.status, body_bytes)
        send(connection, answer, body_bytes, settings.bandwidth_mb * 1e6, before_last=ending.close)
    if fault == "stall_body":
        time.sleep(settings.stall_s)
    elif fault == "reset_body":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    return not is_cut


def corrupted(answer: Answer) -> Answer:
    body = bytearray(answer.body)
    if body:
        body[len(body) // 2] ^= 1
    return answer._replace(body=bytes(body))


def send(
    connection: socket.socket,
    answer: Answer,
    body_bytes: int,
    bytes_per_s: float,
    before_last: Callable[[], None] = lambda: None,
) -> None:
    """Headers, then `body_bytes` of the body at `bytes_per_s` at most; `before_last` comes before the last portion."""
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}", f"Date: {formatdate(usegmt=True)}"]
    lines += [f"{name}: {value}" for name, value in (answer.headers | {"Content-Length": len(answer.body)}).items()]
    head = "\r\n".join([*lines, "\r\n"]).encode("latin-1")
    portion = max(int(bytes_per_s * PACE_S), 1) if bytes_per_s else body_bytes
    if not body_bytes:
        before_last()
    connection.sendall(head, socket.MSG_MORE if body_bytes else 0)
    body = memoryview(answer.body)
    started = time.monotonic()
    for start in range(0, body_bytes, portion or 1):
        if start + portion >= body_bytes:
            before_last()
        connection.sendall(body[start : min(start + portion, body_bytes)])
        if bytes_per_s:
            time.sleep(max(0.0, started + (start + portion) / bytes_per_s - time.monotonic()))


class S3Server:
    """The server as a process of its own while `with` lasts; `synthetic` has (keys, directories[, file]) by bucket."""

    def __init__(
        self, folder: Path | None = None, synthetic: Mapping[str, tuple[Any, ...]] | None = None, **settings: Any
    ) -> None:
        self.command = [sys.executable, __file__] + ([str(folder)] if folder else [])
        for bucket, numbers in (synthetic or {}).items():
            self.command += ["--synthetic", ":".join(map(str, (bucket, *numbers)))]
        self.settings = settings

    def __enter__(self) -> S3Server:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.set(**self.settings)
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.terminate()
        self.process.communicate()

    def set(self, **settings: Any) -> None:
        """Settings from now on; those not named return to their defaults. The counters restart from 0."""
        self._ask("/_settings", json.dumps(dataclasses.asdict(Settings(**settings))).encode())
        self.reset()

    def reset(self) -> None:
        self._ask("/_reset", b"")

    def stats(self) -> dict[str, Any]:
        """`Store.stats` since the last reset."""
        return self._ask("/_stats")

    def environment(self) -> dict[str, str]:
        """Variables by which obstore, boto3 and GDAL ask this server."""
        return {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_S3_ENDPOINT": self.url.removeprefix("http://"),
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
        }

    def _ask(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        with urlopen(HttpRequest(f"{self.url}{path}", body), timeout=60) as answer:
            return json.load(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description="A slow and faulty S3 for tests.")
    parser.add_argument("folder", type=Path, nargs="?", help="each folder in it is a bucket")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--settings", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--synthetic", action="append", default=[], metavar="BUCKET:KEYS:DIRECTORIES[:FILE]")
    options = parser.parse_args()
    synthetic: dict[str, Bucket] = {}
    for description in options.synthetic:
        bucket, keys, directories, *file = description.split(":", 3)
        synthetic[bucket] = SyntheticBucket(int(keys), int(directories), *map(Path, file))
    with socket.create_server(("127.0.0.1", options.port), backlog=512) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        serve(Store(options.folder, synthetic, Settings(**options.settings)), listener)


if __name__ == "__main__":
    main()
