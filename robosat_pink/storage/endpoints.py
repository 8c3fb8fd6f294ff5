"""The endpoint of an object store: its address, its certificate authorities, its style of bucket addresses.

Called by `location`. Precedence: experiment file, environment, profile.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from robosat_pink.config.constraints import web_address
from robosat_pink.errors import ConfigError
from robosat_pink.storage.credentials import profile_settings, unset_empty_variables

URL_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")  # the first that is set takes precedence
VIRTUAL_VARIABLE = "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"
PEM_MARK = b"-----BEGIN CERTIFICATE-----"


class Endpoint(NamedTuple):
    url: str | None  # None for Amazon's endpoint of the region
    is_virtual: bool  # https://bucket.store.example/key, not https://store.example/bucket/key
    certificates: bytes | None  # PEM; authorities that are trusted in addition to the system's

    def options(self, bucket: str) -> dict[str, Any]:
        """Arguments for obstore's S3Store."""
        options: dict[str, Any] = {"virtual_hosted_style_request": True} if self.is_virtual else {}
        if self.url:
            options["endpoint"] = self.bucket_url(bucket) if self.is_virtual else self.url
        if os.environ.get(URL_VARIABLES[0]):  # otherwise the client would use this variable
            options["aws_endpoint_url_s3"] = options["endpoint"]
        return options

    def bucket_url(self, bucket: str) -> str:
        """The address of a bucket, for an endpoint with a url."""
        url = (self.url or "").rstrip("/")
        host = urlsplit(url).netloc
        if not self.is_virtual:
            return f"{url}/{bucket}"
        return url if host.startswith(f"{bucket}.") else url.replace(host, f"{bucket}.{host}", 1)


def endpoint(given: str | None, profile: str | None) -> Endpoint:
    """The endpoint for `dataset.endpoint_url` and a profile. Raises ConfigError for a bad address or certificates."""
    unset_empty_variables()
    settings = profile_settings(profile)
    return Endpoint(_url(given, settings), _is_virtual(settings), _certificates(settings))


def _url(given: str | None, settings: dict[str, str]) -> str | None:
    urls = {"dataset.endpoint_url": given or ""}
    urls |= {f"environment: {name}": os.environ.get(name, "") for name in URL_VARIABLES}
    urls["profile: endpoint_url"] = settings.get("endpoint_url", "")
    where, url = next(((where, url) for where, url in urls.items() if url), ("", None))
    if url is None:
        return None
    before, at, after = url.rpartition("@")
    if at and "@" in urlsplit(url).netloc:
        raise ConfigError(
            f"{where} = {before.partition('//')[0]}//***@{after}: has a user or password in it; accepted: "
            f"{web_address.accepts}; give keys by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile"
        )
    if not web_address.holds(url):
        raise ConfigError(f"{where} = {url!r}: accepted: {web_address.accepts}")
    return url


def _is_virtual(settings: dict[str, str]) -> bool:
    value = os.environ.get(VIRTUAL_VARIABLE, "").lower()
    return value in ("true", "yes", "1", "on") if value else settings.get("addressing_style") == "virtual"


def _certificates(settings: dict[str, str]) -> bytes | None:
    name = "AWS_CA_BUNDLE" if os.environ.get("AWS_CA_BUNDLE") else "profile: ca_bundle"
    file = os.environ.get("AWS_CA_BUNDLE") or settings.get("ca_bundle")
    if not file:
        return None
    accepted = "accepted: a file of certificates (PEM)"
    try:
        content = Path(file).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"{name} = {file!r}: {error.strerror}; {accepted}") from error
    if PEM_MARK not in content:
        raise ConfigError(f"{name} = {file!r}: holds no certificate; {accepted}")
    return content
