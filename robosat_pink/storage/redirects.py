"""Keeps requests from following a redirect to another host, which would receive session token and key.

The client always follows redirects. So `location` gives it a proxy where nobody can listen, for all hosts but the
store's. `error_advice` shows the destination of a redirect.
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

NOWHERE = "127.0.0.1:0"  # nobody can listen on port 0
ADVICE = (
    "the store sends to another address, where requests do not go, for they carry credentials; if that is the store, "
    "set dataset.endpoint_url to it"
)
TIMEOUT_S = 5.0
MAX_BYTES = 1 << 16  # read from a redirect's body
# The hosts that the client asks for credentials, in containers, pods and instances.
CREDENTIAL_HOSTS = ("169.254.170.2", "169.254.170.23", "fd00:ec2::23", "169.254.169.254", "fd00:ec2::254")
CREDENTIAL_VARIABLES = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_METADATA_ENDPOINT", "AWS_ENDPOINT_URL_STS")


def blocked(url: str | None, region: str) -> ClientConfig:
    """The client options that keep requests to this endpoint from other hosts.

    Empty if the store is reached through a proxy: then only that proxy could refuse other hosts.
    """
    host = (urlsplit(url).hostname if url else None) or f"s3.{region}.amazonaws.com"
    scheme = urlsplit(url).scheme if url else "https"
    proxies = {name: proxy for name, proxy in getproxies().items() if name in ("http", "https", "all")}
    is_proxied = (scheme in proxies or "all" in proxies) and not proxy_bypass(host)
    if is_proxied or (proxies and "AWS_WEB_IDENTITY_TOKEN_FILE" in os.environ):  # STS may need the proxy
        return {}
    return {"proxy_url": f"http://{NOWHERE}", "proxy_excludes": ",".join(_allowed(host, region))}


def _allowed(host: str, region: str) -> Iterator[str]:
    yield host
    with contextlib.suppress(UnicodeError):
        yield host.encode("idna").decode()
    with contextlib.suppress(OSError):
        yield socket.inet_ntoa(socket.inet_aton(host))  # the client writes 127.1 as 127.0.0.1
    yield from (f"sts.{region}.amazonaws.com", *CREDENTIAL_HOSTS)
    if "AWS_S3_EXPRESS" in os.environ:
        yield f"{region}.amazonaws.com"  # the bucket's zone is a subdomain
    for name in CREDENTIAL_VARIABLES:
        with contextlib.suppress(ValueError):
            yield urlsplit(os.environ.get(name, "")).hostname or host


def check_none(url: str, where: str) -> None:
    """Raises DataError, which names `where`, if this address redirects to another.

    Called for clients with a session token, because no option keeps them from another port of the same host.
    """
    description, origin = destination(url)
    if origin and origin != _origin(url):
        raise DataError(f"{where}: {ADVICE} (the store says: {description})")


def destination(url: str) -> tuple[str, str]:
    """The target of an address's redirect, in words (host, endpoint, region, if the store names them), and its origin.

    Both are empty if the address does not redirect. Sends one unsigned request.
    """
    with contextlib.suppress(OSError, ValueError, HTTPException):
        status, headers, body = _answer(url)
        if 300 <= status < 400:
            origin = _origin(headers.get("Location", ""))
            parts = {
                "host": origin,
                "endpoint": _element("Endpoint", body),
                "region": headers.get("x-amz-bucket-region") or _element("Region", body),
            }
            return ", ".join(f"{name} {value}" for name, value in parts.items() if value), origin
    return "", ""


def _origin(url: str) -> str:
    address = urlsplit(url)
    host = address.netloc.rpartition("@")[2].lower().removesuffix(":443" if address.scheme == "https" else ":80")
    return f"{address.scheme}://{host}" if host else ""


def _element(name: str, body: str) -> str:
    element = re.search(rf"<{name}>([\w.:-]{{1,200}})</{name}>", body)
    return element[1] if element else ""


class _FollowsNone(HTTPRedirectHandler):
    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        """Return None, for which urllib raises the redirect itself as an HTTPError."""


def _answer(url: str) -> tuple[int, Any, str]:
    context = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE") or None)
    opener = build_opener(_FollowsNone, HTTPSHandler(context=context))
    answer: HTTPResponse | HTTPError
    try:
        answer = opener.open(url, timeout=TIMEOUT_S)
    except HTTPError as error:
        answer = error
    with answer:
        return answer.status or 0, answer.headers, answer.read1(MAX_BYTES).decode(errors="replace")
