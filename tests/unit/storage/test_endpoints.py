"""Where a store is, as experiment, environment and profile say, and how its buckets and certificates are named."""

import base64
import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from robosat_pink.errors import ConfigError, DataError
from robosat_pink.storage import Location
from robosat_pink.storage.endpoints import Endpoint, endpoint
from s3_answers import Store, forget_credentials, give_keys, listed, served

PROFILES = """
[default]
region = eu-west-3
endpoint_url = https://default.example

[profile own]
endpoint_url = https://own.example
ca_bundle = {folder}/authority.pem
s3 =
  addressing_style = virtual

[profile served]
services = here
endpoint_url = https://not-this.example

[profile plain]
region = eu-west-3

[services here]
s3 =
  endpoint_url = https://service.example
ec2 =
  endpoint_url = https://ec2.example
"""


@pytest.fixture(autouse=True)
def lonely(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_credentials(monkeypatch, tmp_path)
    give_keys(monkeypatch)


@pytest.fixture
def profiles(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(PROFILES.format(folder=tmp_path))
    (tmp_path / "authority.pem").write_text("-----BEGIN CERTIFICATE-----\n")


def test_experiment_goes_before_the_environment_and_that_before_the_profile(
    profiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert endpoint(None, "served").url == "https://service.example"
    for name in ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, f"https://{name.lower().replace('_', '-')}.example")
        assert endpoint(None, "served").url == f"https://{name.lower().replace('_', '-')}.example"
    assert endpoint("https://experiment.example", "served").url == "https://experiment.example"


def test_variable_for_s3_alone_does_not_go_before_the_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    with served() as right, served() as wrong:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", wrong.url)
        assert Location.parse(f"asked-{right.server.server_port}", endpoint_url=right.url).directories() == []
        assert len(right.asked) == 1
        assert not wrong.asked


@pytest.mark.parametrize(
    ("profile", "url"),
    [
        ("own", "https://own.example"),
        ("served", "https://service.example"),
        ("plain", None),
        (None, "https://default.example"),
    ],
)
def test_profile_s_endpoint_counts_and_that_of_its_service_before_it(
    profiles: None, profile: str | None, url: str | None
) -> None:
    assert endpoint(None, profile).url == url


def test_profile_s_endpoint_is_ignored_where_the_user_says_so(profiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert endpoint(None, "own").url is None


def test_bucket_is_read_from_the_endpoint_of_its_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with served() as store:
        (tmp_path / "config").write_text(
            f"[profile mine]\naws_access_key_id = MINE\naws_secret_access_key = secret\nendpoint_url = {store.url}\n"
        )
        store.listing = listed(prefixes=("scene/",))
        assert Location.parse(f"mine-{store.server.server_port}", profile="mine").directories() == ["scene"]
        assert store.asked_as() == "MINE"


@pytest.mark.parametrize("text", ["[profile odd]\nservices = no\ns3 = 1\nendpoint_url =\n", "[profile odd", ""])
def test_odd_files_of_profiles_say_nothing_of_the_endpoint(tmp_path: Path, text: str) -> None:
    (tmp_path / "config").write_text(text)
    assert endpoint(None, "odd") == Endpoint(None, False, None)


def test_profile_says_how_buckets_are_addressed_and_whose_certificates_are_trusted(profiles: None) -> None:
    assert endpoint(None, "own") == Endpoint("https://own.example", True, b"-----BEGIN CERTIFICATE-----\n")
    assert endpoint(None, "served") == Endpoint("https://service.example", False, None)


@pytest.mark.parametrize("where", ["dataset.endpoint_url", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "profile"])
def test_endpoint_with_a_password_is_refused_and_the_password_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    url = "https://me:hush@word@store.example:9000"
    if where == "profile":
        (tmp_path / "config").write_text(f"[default]\nendpoint_url = {url}\n")
    elif where.startswith("AWS"):
        monkeypatch.setenv(where, url)
    given = url if where.startswith("dataset") else None
    with pytest.raises(ConfigError, match=rf"{where}.* = https://\*\*\*@store\.example:9000: has a user or") as caught:
        Location.parse("password", endpoint_url=given).read("1.tif")
    assert "hush" not in str(caught.value)
    assert "word@" not in str(caught.value)


def test_endpoint_of_a_profile_that_is_no_address_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[default]\nendpoint_url = store.example\n")
    with pytest.raises(ConfigError, match=r"^profile: endpoint_url = 'store.example': accepted: an address"):
        Location.parse("no-address").directories()


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("https://store.example:9000", "https://snow.store.example:9000"),
        ("https://snow.store.example/", "https://snow.store.example"),
    ],
)
def test_virtual_hosted_bucket_is_in_the_host_s_name_once(
    monkeypatch: pytest.MonkeyPatch, url: str, asked: str
) -> None:
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    options = endpoint(url, None).options("snow")
    assert options == {"virtual_hosted_style_request": True, "endpoint": asked}


def test_virtual_hosted_bucket_is_asked_by_the_host_s_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server stands for a proxy, so that no name need be looked up."""
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    with served() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        name = f"snow-{proxy.server.server_port}"
        assert Location.parse(name, endpoint_url="http://store.example:9000").read("scene/1.tif") == b""
        assert [each.path for each in proxy.asked] == [f"http://{name}.store.example:9000/scene/1.tif"]


def test_requester_pays_where_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with served() as store:
        for value, header in ((None, None), ("requester", "requester")):
            if value:
                monkeypatch.setenv("AWS_REQUEST_PAYER", value)
            place = Location.parse(f"payer-{value}-{store.server.server_port}".lower(), endpoint_url=store.url)
            for ask in (place.directories, lambda place=place: place.read("1.tif")):
                ask()
                assert store.asked[-1].headers.get("x-amz-request-payer") == header


def test_key_of_objects_that_their_owner_encrypted_is_given_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SERVER_SIDE_ENCRYPTION", "sse-c")
    monkeypatch.setenv("AWS_SSE_CUSTOMER_KEY_BASE64", base64.b64encode(bytes(32)).decode())
    with served() as store:
        Location.parse(f"customer-key-{store.server.server_port}", endpoint_url=store.url).read("1.tif")
        assert store.asked[0].headers["x-amz-server-side-encryption-customer-algorithm"] == "AES256"


class Authority:
    """Signs certificates, and is known to nobody."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "authority.pem"
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "An authority")])
        self.file.write_bytes(self.sign(self.name, self.key, is_authority=True))
        own = ec.generate_private_key(ec.SECP256R1())
        pem = own.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A store")])
        (folder / "store.pem").write_bytes(pem + self.sign(name, own, is_authority=False))
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / "store.pem")

    def sign(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, is_authority: bool) -> bytes:
        today = datetime.datetime.now(datetime.UTC)
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = x509.CertificateBuilder(self.name, name, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(today - datetime.timedelta(days=1))
        builder = builder.not_valid_after(today + datetime.timedelta(days=1)).add_extension(address, critical=False)
        builder = builder.add_extension(x509.BasicConstraints(is_authority, path_length=None), critical=True)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def tls_store(authority: Authority) -> Iterator[Store]:
    with served(authority.context) as store:
        store.content = b"abc"
        yield store


def test_store_whose_certificate_nobody_knows_is_an_error_at_once_that_names_the_way_out(tls_store: Store) -> None:
    place = Location.parse(f"unknown-{tls_store.server.server_port}", endpoint_url=tls_store.url)
    for ask in (place.directories, lambda: place.read("1.tif")):
        with pytest.raises(DataError, match=r"not accepted \(UnknownIssuer\); .* set AWS_CA_BUNDLE to the .*\(PEM\)$"):
            ask()
    assert not tls_store.asked


@pytest.mark.parametrize("way", ["AWS_CA_BUNDLE", "ca_bundle"])
def test_authority_of_the_environment_or_profile_is_trusted(
    tls_store: Store, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "AWS_CA_BUNDLE":
        monkeypatch.setenv(way, str(authority.file))
    else:
        (tmp_path / "config").write_text(f"[default]\nca_bundle = {authority.file}\n")
    place = Location.parse(f"trusted-{tls_store.server.server_port}", endpoint_url=tls_store.url)
    assert place.read("1.tif") == b"abc"
    assert place.directories() == []


@pytest.mark.parametrize(("content", "message"), [(None, "No such file or directory"), ("x", "holds no certificate")])
def test_file_of_authorities_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, message: str
) -> None:
    file = tmp_path / "none.pem"
    monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=rf"^AWS_CA_BUNDLE = '{file}': {message}; accepted: a file of certificates"):
        endpoint(None, None)
