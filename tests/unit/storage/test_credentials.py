"""Who asks an object store, and what is said when it refuses: a server that answers as S3 does and keeps headers."""

import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from botocore.credentials import RefreshableCredentials

from robosat_pink.container.failure_file import failure_text
from robosat_pink.errors import ConfigError, DataError
from robosat_pink.storage import Location, credentials
from robosat_pink.storage.credentials import usable_profile
from robosat_pink.storage.location import NotFound
from s3_answers import Store, forget_credentials, give_keys, served


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """A store, on a machine that knows no credentials at all."""
    forget_credentials(monkeypatch, tmp_path)
    usable_profile.cache_clear()
    with served() as store:
        yield store


def bucket(store: Store, name: str, profile: str | None = None) -> Location:
    """Names differ from test to test: clients are kept for as long as the process lives."""
    return Location.parse(f"{name}-{store.server.server_port}", profile=profile, endpoint_url=store.url)


def test_keys_in_the_environment_sign(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    give_keys(monkeypatch)
    assert bucket(store, "environment").directories() == []
    assert store.asked_as() == "ENVKEY"


def test_role_of_the_container_signs(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("token")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{store.url}/role")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
    assert bucket(store, "role").directories() == []
    assert store.asked_as() == "ROLEKEY"


def test_bucket_that_fails_and_has_the_name_of_a_folder_is_said_to_be_no_folder(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_keys(monkeypatch)
    store.status, store.code = 403, "AccessDenied"
    monkeypatch.chdir(tmp_path)
    tiles = bucket(store, "tiles")
    with pytest.raises(DataError, match=f"^s3://{tiles.name}: access denied"):
        tiles.directories()
    (tmp_path / tiles.name).mkdir()
    with pytest.raises(DataError, match=rf"^there is a folder ./{tiles.name} \(a folder begins with / or ./\), but"):
        tiles.directories()


@pytest.fixture
def profiles(store: Store, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = DEFAULTKEY\naws_secret_access_key = secret\n"
        "[esip]\naws_access_key_id = ESIPKEY\naws_secret_access_key = secret\n"
    )


@pytest.mark.usefixtures("profiles")
def test_named_profile_signs(store: Store) -> None:
    assert usable_profile("esip") == "esip"
    assert bucket(store, "profile", "esip").directories() == []
    assert store.asked_as() == "ESIPKEY"


@pytest.mark.usefixtures("profiles")
def test_default_profile_signs_where_nothing_else_is_said_and_the_environment_goes_before_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket(store, "default").directories()
    assert store.asked_as() == "DEFAULTKEY"
    give_keys(monkeypatch)
    bucket(store, "before-default").directories()
    assert store.asked_as() == "ENVKEY"


@pytest.mark.usefixtures("profiles")
@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"])
def test_variable_that_is_set_and_empty_counts_as_absent(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "")
    assert bucket(store, f"empty-{name.lower().replace('_', '-')}").directories() == []
    assert store.asked_as() == "DEFAULTKEY"
    assert "x-amz-security-token" not in store.asked[-1].headers


def test_half_of_a_pair_of_keys_is_an_error_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ENVKEY")
    with pytest.raises(ConfigError, match=r"^s3://half-\d+: .*Missing SecretAccessKey; check the AWS_\* variables"):
        bucket(store, "half").read("a.tif")


@pytest.mark.usefixtures("profiles")
def test_profile_that_does_not_exist_is_a_warning_and_then_the_default_credentials(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert usable_profile("planet") is None
    assert "no aws_profile 'planet' on this machine (there are: default, esip); using the default" in caplog.text


@pytest.mark.usefixtures("profiles")
def test_profile_of_the_environment_that_does_not_exist_is_an_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "planet")
    with pytest.raises(
        ConfigError, match=r"AWS's files of credentials and profiles: .*planet.*; check aws_profile, AWS_PROFILE"
    ):
        bucket(store, "wrong-profile").directories()


@pytest.mark.parametrize("name", ["AWS_NO_SIGN_REQUEST", "AWS_SKIP_SIGNATURE"])
@pytest.mark.usefixtures("profiles")
def test_nobody_signs_when_requests_shall_be_anonymous(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "YES")
    assert bucket(store, name.lower().replace("_", "-")).directories() == []
    assert store.authorizations == [None]


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (400, "ExpiredToken", "the credentials have expired; get new ones"),
        (
            403,
            "AccessDenied",
            "access denied (403); check that the role or key in use may s3:ListBucket",
        ),
        (403, "InvalidAccessKeyId", "the access key does not exist; check AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "the secret key is not the access key's; check AWS_SECRET_ACCESS_KEY"),
        (403, "RequestTimeTooSkewed", "this machine's clock is off"),
        (404, "NoSuchBucket", "does not exist; check its name"),
        (301, "PermanentRedirect", "is in another region; set AWS_REGION"),
        (400, "AuthorizationHeaderMalformed", "is in another region; set AWS_REGION"),
        (403, "InvalidObjectState", "archived; restore it (aws s3api restore-object)"),
        (400, "KMS.DisabledException", "its KMS key cannot be used; check that the key is enabled"),
        (403, "AllAccessDisabled", "all access to it is disabled; ask"),
        (403, "AccountProblem", "the account has a problem"),
        (400, "TokenRefreshRequired", "the credentials have expired; get new ones"),
    ],
)
def test_each_refusal_has_its_own_words_for_lists_and_reads(
    store: Store, monkeypatch: pytest.MonkeyPatch, status: int, code: str, message: str
) -> None:
    give_keys(monkeypatch)
    store.status, store.code = status, code
    place = bucket(store, f"refused-{code.lower()}")
    for ask in (place.directories, lambda: place.pages("scene", list), lambda: place.read("scene/5/1/2.tif")):
        with pytest.raises(DataError) as caught:
            ask()
        assert str(caught.value).startswith(f"s3://{place.bucket}")
        assert message in str(caught.value)
        assert "secret" not in str(caught.value).replace("secret key", "")
        assert isinstance(caught.value, NotFound) == (status == 404)
        assert (f"(the store says: {code}: No.)" in str(caught.value)) == (status not in (301, 404))


def test_refused_write_asks_for_the_permission_to_write(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    give_keys(monkeypatch)
    store.status, store.code = 403, "AccessDenied"
    with pytest.raises(
        DataError, match=r"^s3://refused-write.*/a\.tif: access denied .* may s3:PutObject in refused-write"
    ):
        bucket(store, "refused-write").write("a.tif", b"a tile")


@pytest.mark.parametrize(
    ("status", "code", "words", "message"),
    [
        (
            403,
            "AccessDenied",
            "User: x is not authorized to perform: kms:Decrypt on resource: arn:aws:kms:eu-west-1:1:key/2",
            "access denied (403) to its KMS key; check that the role or key in use may kms:Decrypt",
        ),
        (
            400,
            "InvalidRequest",
            "The object was stored using a form of Server Side Encryption. The correct parameters must be provided to "
            "retrieve the object.",
            "encrypted by a key of its owner (SSE-C); set AWS_SERVER_SIDE_ENCRYPTION=sse-c and AWS_SSE_CUSTOMER_KEY",
        ),
        (403, "AccessDenied", "Access Denied", "whose requesters pay, set AWS_REQUEST_PAYER=requester"),
        (400, "UserKeyMustBeSpecified", "The bucket POST must name it", "the store answers 400: UserKeyMustBe"),
        (403, "SomethingNew", "Never &lt;heard&gt; of.", "SomethingNew: Never <heard> of."),
    ],
)
def test_store_s_own_code_and_message_follow_ours(
    store: Store, monkeypatch: pytest.MonkeyPatch, status: int, code: str, words: str, message: str
) -> None:
    give_keys(monkeypatch)
    store.status, store.code, store.message = status, code, words
    place = bucket(store, f"own-words-{code.lower()}-{len(words)}")
    for ask in (place.directories, lambda: place.pages("scene", list), lambda: place.read("scene/5/1/2.tif")):
        with pytest.raises(DataError) as caught:
            ask()
        assert message in str(caught.value)
        assert f"{code}: {words[:40].replace('&lt;', '<').replace('&gt;', '>')}" in str(caught.value)
        assert "tried" not in str(caught.value)


def test_page_of_a_proxy_that_refuses_is_told_without_its_tags_and_shortened(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_keys(monkeypatch)
    store.status, store.error = 403, b"<html><style>a {}</style><h1>Blocked by  policy</h1>" + b"x " * 1000 + b"</html>"
    with pytest.raises(DataError, match=r"\(the store says: Blocked by policy x x .{0,300}…\)$"):
        bucket(store, "proxy-page").read("a.tif")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        *((400, "InvalidArgument"), (401, "Unknown"), (402, ""), (405, "MethodNotAllowed"), (409, "Something")),
        *((410, ""), (416, "InvalidRange"), (451, "")),
    ],
)
def test_refusal_that_nobody_knows_is_asked_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    give_keys(monkeypatch)
    store.status, store.code = status, code
    place = bucket(store, f"unknown-{status}")
    for asked, ask in enumerate((place.directories, lambda: place.read("a.tif")), 1):
        with pytest.raises(DataError, match=f"the store answers {status}: "):
            ask()
        assert len(store.asked) == asked


@pytest.mark.parametrize(
    ("status", "code"), [(400, "RequestTimeout"), (408, ""), (429, "TooManyRequests"), (503, "SlowDown"), (500, "")]
)
def test_refusal_that_may_pass_is_asked_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    monkeypatch.setattr("robosat_pink.storage.backoff.RETRY_S", 0.5)
    give_keys(monkeypatch)
    store.status, store.code = status, code
    with pytest.raises(DataError, match=rf"the store answers {status}: .*\(tried \d+ times in [\d.]+ s\)$"):
        bucket(store, f"passing-{status}").read("a.tif")
    assert len(store.asked) > 1


def test_object_that_is_not_there_is_named_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "1")
    store.status, store.code = 404, "NoSuchKey"
    place = bucket(store, "missing")
    with pytest.raises(NotFound, match=f"^s3://{place.bucket}/scene/5/1/2.tif: not found; check bucket"):
        place.read("scene/5/1/2.tif")


def test_anonymous_reader_who_is_refused_is_told_that_nobody_may(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "1")
    store.status, store.code = 403, "AccessDenied"
    with pytest.raises(DataError, match="check that anybody may s3:ListBucket"):
        bucket(store, "private").directories()


def test_no_credentials_anywhere_is_an_error_with_every_way_to_give_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", store.url)
    with pytest.raises(DataError) as caught:
        bucket(store, "no-credentials").directories()
    for way in ("role", "AWS_ACCESS_KEY_ID", "aws_profile", "AWS_NO_SIGN_REQUEST=YES"):
        assert way in str(caught.value), way


def test_profile_whose_file_is_written_anew_signs_with_what_it_holds_now(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robosat_pink.storage.credentials.VALIDITY", timedelta(seconds=0))
    signed = []
    place = bucket(store, "written-anew", "esip")
    for key in ("FIRSTKEY", "SECONDKEY"):
        (tmp_path / "credentials").write_text(f"[esip]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")
        place.directories()
        signed.append(store.asked_as())
    assert signed == ["FIRSTKEY", "SECONDKEY"]


@pytest.fixture
def minted(tmp_path: Path) -> Path:
    """A profile, `minting`, whose keys a command makes: KEY1, KEY2 … Here is how many minutes each is good for."""
    minutes, count = tmp_path / "minutes", tmp_path / "count"
    script = tmp_path / "mint.py"
    script.write_text(f"""
import datetime, json
from pathlib import Path
count = Path({str(count)!r})
number = int(count.read_text()) + 1 if count.exists() else 1
count.write_text(str(number))
end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=float(Path({str(minutes)!r}).read_text()))
print(json.dumps({{"Version": 1, "AccessKeyId": f"KEY{{number}}", "SecretAccessKey": "secret", "SessionToken": "token",
                  "Expiration": end.isoformat()}}))
""")
    (tmp_path / "config").write_text(f"[profile minting]\ncredential_process = {sys.executable} {script}\n")
    return minutes


def test_credentials_that_are_about_to_expire_are_renewed_during_a_run_and_others_are_kept(
    store: Store, minted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robosat_pink.storage.credentials.VALIDITY", timedelta(seconds=0))
    signed = []
    for name, minutes in (("short-lived", 5), ("long-lived", 60)):
        minted.write_text(str(minutes))
        place = bucket(store, name, "minting")
        for _ in range(2):
            place.directories()
            signed.append(store.asked_as())
    assert signed[0] != signed[1]
    assert signed[2] == signed[3]


def test_credentials_are_asked_for_again_before_boto3_lets_them_expire() -> None:
    assert RefreshableCredentials._mandatory_refresh_timeout >= credentials.VALIDITY.total_seconds()


def test_places_of_aws_s_files_that_hold_none_count_as_absent(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for number, place in enumerate((tmp_path, tmp_path / "loop", "~nobody-of-this-name/credentials", "x" * 5000)):
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(place))
        assert usable_profile(None) is None
        assert credentials.profile_settings(None) == {}
        give_keys(monkeypatch)
        assert bucket(store, f"absent-{number}").directories() == []


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("content", ["AKIAHEMLOCK hemlock\n[default]\n", "[default]\naws_secret_access_key hemlock\n"])
def test_damaged_file_of_credentials_is_an_error_that_quotes_nothing_of_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "credentials").write_text(content)
    for ask in (lambda: usable_profile("esip"), lambda: credentials.identity(None)):
        with pytest.raises(ConfigError, match=r"AWS's files of credentials .*check aws_profile") as caught:
            ask()
        assert "hemlock" not in failure_text(caught.value).lower()
