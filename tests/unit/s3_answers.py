"""A server that gives the answers of S3 that a test asks for, and keeps who asked."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LISTING = b"<?xml version='1.0'?><ListBucketResult><Name>snow</Name><IsTruncated>false</IsTruncated></ListBucketResult>"
ROLE = b"""{"AccessKeyId": "ROLEKEY", "SecretAccessKey": "secret", "Token": "token",
            "Expiration": "2099-01-01T00:00:00Z"}"""


class Store:
    """Answers every request with `status`, S3's error `code` and its headers, and keeps who asked."""

    def __init__(self) -> None:
        self.status, self.code, self.headers = 200, "", {}
        self.authorizations: list[str | None] = []
        store = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/role":
                    return self.answer(200, ROLE, {})
                store.authorizations.append(self.headers.get("Authorization"))
                error = f"<?xml version='1.0'?><Error><Code>{store.code}</Code><Message>No.</Message></Error>".encode()
                return self.answer(store.status, LISTING if store.status == 200 else error, store.headers)

            def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def do_PUT(self) -> None:
                """An instance without a role, asked for a token."""
                self.answer(404, b"", {})

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def asked_as(self) -> str | None:
        """The access key that signed the last request; None if nobody did."""
        signed = re.search(r"Credential=(\w+)/", self.authorizations[-1] or "")
        return signed[1] if signed else None
