"""A server that gives the answers of S3 that a test asks for, and keeps who asked."""

import os
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

DATE = "2018-05-28T00:00:00.000Z"
ROLE = b"""{"AccessKeyId": "ROLEKEY", "SecretAccessKey": "secret", "Token": "token",
            "Expiration": "2099-01-01T00:00:00Z"}"""


def listed(*keys: str, etag: str = '"1"', size: int = 1, token: str = "", prefixes: tuple[str, ...] = ()) -> bytes:
    """A page of a listing; with a token, one that others follow."""
    files = "".join(
        f"<Contents><Key>{key}</Key><Size>{size}</Size><ETag>{etag}</ETag><LastModified>{DATE}</LastModified></Contents>"
        for key in keys
    )
    below = "".join(f"<CommonPrefixes><Prefix>{prefix}</Prefix></CommonPrefixes>" for prefix in prefixes)
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    truncated = str(bool(token)).lower()
    return (
        f"<?xml version='1.0'?><ListBucketResult><Name>snow</Name><IsTruncated>{truncated}</IsTruncated>{more}{files}"
        f"{below}</ListBucketResult>"
    ).encode()


class Asked(NamedTuple):
    path: str
    headers: Mapping[str, str]


class Store:
    """Answers every request with `status`, S3's error `code` and its `headers`, or with a body; keeps who asked.

    The body of a listing is `listing`, or what it makes of the request's path; of an object it is `content`.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.status, self.code, self.message = 200, "", "No."
        self.headers: dict[str, str] = {}  # an empty one is left out
        self.content = b""
        self.listing: bytes | Callable[[str], bytes] = listed()
        self.error: bytes | None = None  # a body that is not S3's
        self.asked: list[Asked] = []
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # head and body by one packet

            def do_GET(self) -> None:
                if self.path == "/role":
                    return self.answer(200, ROLE, {})
                store.asked.append(Asked(self.path, dict(self.headers)))
                return self.answer(store.status, store.body(self.path), store.headers)

            def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | dict(headers)).items():
                    if value:
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def do_PUT(self) -> None:
                """An object, or a token of an instance without a role."""
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                is_token = self.path.startswith("/latest/")
                self.answer(404 if is_token else store.status, b"" if is_token else store.body(self.path), {})

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def body(self, path: str) -> bytes:
        if self.status == 200 and "list-type" not in path:
            return self.content
        if self.status == 200:
            return self.listing(path) if callable(self.listing) else self.listing
        if self.error is not None:
            return self.error
        said = f"<Code>{self.code}</Code><Message>{self.message}</Message>"
        return f"<?xml version='1.0'?><Error>{said}</Error>".encode()

    @property
    def authorizations(self) -> list[str | None]:
        return [each.headers.get("authorization", each.headers.get("Authorization")) for each in self.asked]

    def asked_as(self) -> str | None:
        """The access key that signed the client's last request; None if nobody did. Looks for redirects have none."""
        client = [each.headers for each in self.asked if "Python-urllib" not in each.headers.get("User-Agent", "")]
        signed = re.search(r"Credential=(\w+)/", client[-1].get("authorization", ""))
        return signed[1] if signed else None


@contextmanager
def served(tls: ssl.SSLContext | None = None) -> Iterator[Store]:
    store = Store(tls)
    try:
        yield store
    finally:
        store.status = 404  # ends a listing without end, which a test may leave in a thread
        store.server.shutdown()
        store.server.server_close()


def forget_credentials(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As on a machine that knows none at all; what the test writes into the folder's `credentials` and `config` is."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # for boto3


def give_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ENVKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-told-to-anybody")
