"""A redirect to another host is an error that names it, and no request goes there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from robosat_pink.errors import DataError
from robosat_pink.storage import Location
from robosat_pink.storage.redirects import NOWHERE, _origin, blocked
from s3_answers import Store, forget_credentials, give_keys, listed, served


@pytest.fixture
def lonely(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_credentials(monkeypatch, tmp_path)
    give_keys(monkeypatch)


@pytest.fixture
def store(lonely: None) -> Iterator[Store]:
    with served() as store:
        yield store


@pytest.fixture
def other(lonely: None) -> Iterator[Store]:
    with served() as store:
        store.listing, store.content = listed("scene/1.tif", prefixes=("scene/",)), b"abc"
        yield store


def bucket(store: Store) -> Location:
    return Location.parse(f"redirected-{store.server.server_port}", endpoint_url=store.url)


def ask_all(store: Store, message: str) -> None:
    place = bucket(store)
    for ask in (place.directories, lambda: place.pages("scene", list), lambda: place.read("scene/1.tif")):
        with pytest.raises(DataError, match=message) as caught:
            ask()
        assert "tried" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_redirect_to_another_host_is_not_followed_and_the_error_names_it(
    store: Store, other: Store, status: int, scheme: str
) -> None:
    address = f"{scheme}://localhost:{other.server.server_port}"
    store.status, store.headers = status, {"Location": f"{address}/secret/1.tif?signature=secret"}
    ask_all(
        store, rf"the store sends to another address, .*set dataset.endpoint_url to it \(the store says: .*{address}"
    )
    assert not other.asked


def test_session_token_is_not_taken_to_another_port_of_the_same_host(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    store.status, store.headers = 307, {"Location": f"{other.url}/elsewhere"}
    ask_all(store, rf"the store sends to another address.*host {other.url}\)")
    assert not other.asked
    assert all("token" not in str(each.headers) for each in store.asked)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://store.example:80/snow", "http://store.example"),
        ("https://me:hush@Store.example:443", "https://store.example"),
        ("http://store.example:443/", "http://store.example:443"),
        ("/snow/", ""),
    ],
)
def test_origin_is_scheme_host_and_port_without_what_goes_without_saying(url: str, origin: str) -> None:
    assert _origin(url) == origin


def test_redirect_to_another_port_of_the_same_host_carries_no_signature(store: Store, other: Store) -> None:
    store.status, store.headers = 307, {"Location": f"{other.url}/elsewhere"}
    assert bucket(store).read("scene/1.tif") == b"abc"
    assert other.authorizations == [None]


def test_redirect_within_the_store_is_followed(store: Store) -> None:
    """As of a gateway that adds a slash."""
    store.content = b"abc"
    at_first = store.body

    def body(path: str) -> bytes:
        store.status = 200  # of the next answer
        return at_first(path)

    store.body = body  # type: ignore[method-assign]
    store.status, store.headers = 307, {"Location": f"{store.url}/there"}
    assert bucket(store).read("scene/1.tif") == b"abc"
    assert len(store.asked) == 2


@pytest.mark.parametrize(
    ("headers", "words"),
    [({"x-amz-bucket-region": "eu-west-3"}, "region eu-west-3"), ({}, "endpoint snow.s3.eu-west-3.amazonaws.com")],
)
def test_bucket_of_another_region_is_an_error_that_names_the_region_or_endpoint_that_the_store_tells(
    store: Store, headers: dict[str, str], words: str
) -> None:
    store.status, store.headers = 301, headers
    store.error = b"<Error><Code>PermanentRedirect</Code><Endpoint>snow.s3.eu-west-3.amazonaws.com</Endpoint></Error>"
    ask_all(store, rf"is in another region; set AWS_REGION to the bucket's \(the store says: .*{words}\)$")


def test_region_that_a_signature_should_have_named_is_told(store: Store) -> None:
    store.status, store.error = (
        400,
        (
            b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region 'us-east-1' is wrong; expecting "
            b"'eu-west-3'</Message><Region>eu-west-3</Region></Error>"
        ),
    )
    ask_all(
        store, r"set AWS_REGION to the bucket's \(the store says: AuthorizationHeaderMalformed: .*; region eu-west-3"
    )


def test_only_the_store_and_those_who_give_credentials_are_reached(
    lonely: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://pods.example:80/role")
    options = blocked("https://Store.Example:9000", "eu-west-3")
    assert options["proxy_url"] == f"http://{NOWHERE}"
    excluded = options["proxy_excludes"].split(",")
    assert excluded[0] == "store.example"
    assert {"pods.example", "169.254.170.2", "169.254.169.254", "sts.eu-west-3.amazonaws.com"} < set(excluded)
    assert "s3.eu-west-3.amazonaws.com" in blocked(None, "eu-west-3")["proxy_excludes"].split(",")
    monkeypatch.setenv("AWS_S3_EXPRESS", "true")
    assert "eu-west-3.amazonaws.com" in blocked(None, "eu-west-3")["proxy_excludes"].split(",")
    assert "127.0.0.1" in blocked("http://127.1:9000", "x")["proxy_excludes"].split(",")
    assert "xn--bcher-kva.example" in blocked("https://bücher.example", "x")["proxy_excludes"].split(",")


def test_no_proxy_alone_is_no_proxy(lonely: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "inside.example")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/token")
    assert blocked("https://store.example", "eu-west-3")["proxy_url"] == f"http://{NOWHERE}"


def test_store_behind_a_proxy_is_reached_through_it(lonely: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "inside.example")
    assert blocked("https://store.example", "eu-west-3") == {}
    assert blocked("https://inside.example", "eu-west-3")["proxy_url"] == f"http://{NOWHERE}"
    assert blocked("http://store.example", "eu-west-3")["proxy_url"] == f"http://{NOWHERE}"
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/token")  # whose service may be outside
    assert blocked("https://inside.example", "eu-west-3") == {}
