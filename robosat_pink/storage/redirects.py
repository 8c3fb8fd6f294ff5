"""Redirects to another host, which no request may follow: the client would carry session token and key there.

Called by `storage`, and by `explanations` for where a store sends. The client follows redirects and has no switch for
it, but asks a proxy for the hosts that are not excluded from it; here the proxy is an address where nobody can listen.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
from collections.abc import Iterator
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO, TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener, getproxies, proxy_bypass

from robosat_pink.errors import DataError

if TYPE_CHECKING:
    from obstore.store import ClientConfig

NOWHERE = "127.0.0.1:0"
ADVICE = (
    "the store sends to another address, where requests do not go, for they carry credentials; if that is the store, "
    "set dataset.endpoint_url to it"
)
TIMEOUT_S = 5.0
MOST_BYTES = 1 << 16  # of an answer that says where to go
# Where credentials are asked for: containers, pods, instances. For the web identities' service see below.
CREDENTIALS = ("169.254.170.2", "169.254.170.23", "fd00:ec2::23", "169.254.169.254", "fd00:ec2::254")
ADDRESSES = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_METADATA_ENDPOINT", "AWS_ENDPOINT_URL_STS")


def blocked(url: str | None, region: str) -> ClientConfig:
    """Options for a client of this endpoint that asks no other host.

    None at all where the store lies behind a proxy, which then would have to forbid the other hosts.
    """
    host = (urlsplit(url).hostname if url else None) or f"s3.{region}.amazonaws.com"
    scheme = urlsplit(url).scheme if url else "https"
    proxies = {name: proxy for name, proxy in getproxies().items() if name in ("http", "https", "all")}
    is_proxied = (scheme in proxies or "all" in proxies) and not proxy_bypass(host)
    if is_proxied or (proxies and "AWS_WEB_IDENTITY_TOKEN_FILE" in os.environ):  # its service may need the proxy
        return {}
    return {"proxy_url": f"http://{NOWHERE}", "proxy_excludes": ",".join(_allowed(host, region))}


def _allowed(host: str, region: str) -> Iterator[str]:
    yield host
    with contextlib.suppress(UnicodeError):
        yield host.encode("idna").decode()
    with contextlib.suppress(OSError):
        yield socket.inet_ntoa(socket.inet_aton(host))  # 127.1 is spelt 127.0.0.1 by the client
    yield from (f"sts.{region}.amazonaws.com", *CREDENTIALS)
    if "AWS_S3_EXPRESS" in os.environ:
        yield f"{region}.amazonaws.com"  # and below: the bucket's zone
    for name in ADDRESSES:
        with contextlib.suppress(ValueError):
            yield urlsplit(os.environ.get(name, "")).hostname or host


def refuse(url: str, where: str) -> None:
    """Raises DataError, which names `where`, if who asks for this address is sent to another.

    For clients with a session token: they would take it to another port of the same host, which no option forbids.
    """
    said, to = destination(url)
    if to and to != _origin(url):
        raise DataError(f"{where}: {ADVICE} (the store says: {said})")


def destination(url: str) -> tuple[str, str]:
    """Where who asks for this address is sent, in words: host, endpoint and region, as far as the store says; and the
    host alone. Both empty if nowhere. Asks once, unsigned.
    """
    with contextlib.suppress(OSError, ValueError, HTTPException):
        status, headers, body = _answer(url)
        if 300 <= status < 400:
            to = _origin(headers.get("Location", ""))
            names = {
                "host": to,
                "endpoint": _element("Endpoint", body),
                "region": headers.get("x-amz-bucket-region") or _element("Region", body),
            }
            return ", ".join(f"{name} {value}" for name, value in names.items() if value), to
    return "", ""


def _origin(url: str) -> str:
    address = urlsplit(url)
    host = address.netloc.rpartition("@")[2].lower().removesuffix(":443" if address.scheme == "https" else ":80")
    return f"{address.scheme}://{host}" if host else ""


def _element(name: str, body: str) -> str:
    found = re.search(rf"<{name}>([\w.:-]{{1,200}})</{name}>", body)
    return found[1] if found else ""


class _Stays(HTTPRedirectHandler):
    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        """No further request: the redirect is what was asked for."""


def _answer(url: str) -> tuple[int, Any, str]:
    context = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE") or None)
    opener = build_opener(_Stays, HTTPSHandler(context=context))
    answer: HTTPResponse | HTTPError
    try:
        answer = opener.open(url, timeout=TIMEOUT_S)
    except HTTPError as error:
        answer = error
    with answer:
        return answer.status or 0, answer.headers, answer.read1(MOST_BYTES).decode(errors="replace")
