"""Secrets are shown nowhere; what only looks like one is left alone."""

import json
import logging
import time
from pathlib import Path

import pytest

from robosat_pink.container.redaction import RedactingFormatter, redacted, redacted_tree
from robosat_pink.errors import DataError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            'hyperparameters.json: aws_secret_access_key = "abc": no such key',
            "hyperparameters.json: aws_secret_access_key = ***: no such key",
        ),
        ('{"api_key": "abc", "lr": "0.1"}', '{"api_key": ***, "lr": "0.1"}'),
        ("AWS_SESSION_TOKEN=abc/def lr=0.1", "AWS_SESSION_TOKEN=*** lr=0.1"),
        ("https://user:word@store.example/bucket", "https://***@store.example/bucket"),
        ("https://user:wo@rd@store.example/bucket", "https://***@store.example/bucket"),
        ("got https://user:ses/ame@host/a", "got https://***@host/a"),
        (
            "AWS_SSE_CUSTOMER_KEY_BASE64=a DBPASS=a MY_KEY_V2=a",
            "AWS_SSE_CUSTOMER_KEY_BASE64=*** DBPASS=*** MY_KEY_V2=***",
        ),
        ("DBPASS=a X_KEY_PEM=a OAUTH_ID=a OAUTH2=a", "DBPASS=*** X_KEY_PEM=*** OAUTH_ID=*** OAUTH2=***"),
        ("model.lr = 0.1; s3://bucket/key@2", "model.lr = 0.1; s3://bucket/key@2"),
        ('pass = "a b", lr = 1', "pass = ***, lr = 1"),
        ("db.pass: abc", "db.pass: ***"),
        ("DB_PWD=abc ADMIN_PASSPHRASE=abc", "DB_PWD=*** ADMIN_PASSPHRASE=***"),
        ("basic_auth='a b'", "basic_auth=***"),
        ("Authorization: Bearer abc", "Authorization: ***"),
        ('{"sshKey": "abc", "dbPass": "abc", "key": "abc"}', '{"sshKey": ***, "dbPass": ***, "key": ***}'),
        ('"a \\"quoted\\" token": "a \\"b\\" c", "lr": 1', '"a \\"quoted\\" token": ***, "lr": 1'),
        ('store = "{\\"auth\\": \\"a b\\", \\"lr\\": 1}"', 'store = "{\\"auth\\": ***, \\"lr\\": 1}"'),
        ('auth = {"user": "abc", "word": ["abc"]}', "auth = ***"),
        (
            "https://b.s3.example/a.tif?X-Amz-Signature=ab&X-Amz-Security-Token=cd&x=1",
            "https://b.s3.example/a.tif?X-Amz-Signature=***&X-Amz-Security-Token=***&x=1",
        ),
        ("https://a.example/b?sv=1&sig=a%2Bb%3D", "https://a.example/b?sv=1&sig=***"),
        ("s3://b/a?AWSAccessKeyId=AKIA&token=x", "s3://b/a?AWSAccessKeyId=***&token=***"),
    ],
)
def test_value_of_a_secret_name_is_not_shown(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "author: Ann; authors = 2; keyboard=us; monkeys: 3; keys: a, b; passed: 3; compass=n; bypass = 1; sigma=2",
        "accepted: KEY=VALUE, such as model.epochs=1",
        "the key 'name' stands twice",
        "a.yml: model.epoch = 3: no such key; did you mean model.epochs?",
        "NoSuchKey: The specified key does not exist",
        "SignatureDoesNotMatch: The request is signed by another; ExpiredToken: The provided one has expired",
        "s3://bucket/20180528/key: damaged; /data/pass: no such folder",
        "  pass: 8 pairs (train 6, val 2); key: 1,000 tiles",
        "  pass: 1 pair (train 1, val 0)",
        "scene pass: 1 tile, one mosaic",
        "http://a.example:9000/b and http://c.example/d, by ann@e.example",
        "phase=val epoch=1 val_loss=1.040954",
    ],
)
def test_what_only_resembles_a_secret_name_is_shown(text: str) -> None:
    assert redacted(text) == text


def test_value_of_a_secret_variable_is_not_shown_wherever_it_turns_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/run/token")
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    assert redacted("got wJalrXUtnFEMI in us-west-2 from /run/token") == "got *** in us-west-2 from /run/token"


def test_secret_that_begins_with_a_slash_is_none_the_less_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "/JalrXUtnFEMI")
    monkeypatch.setenv("STORE_PWD", "/hemlock")
    monkeypatch.setenv("TLS_KEY", str(tmp_path))
    assert redacted(f"/JalrXUtnFEMI and /hemlock in {tmp_path}") == f"*** and *** in {tmp_path}"


def test_secrets_of_a_tree_are_found_at_any_depth_and_paths_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_PASSPHRASE", "hemlock")
    tree = {"a": [{"auth": {"user": ["x", 1]}}], "b": "s3://bucket/key=3/hemlock", "c": ("?sig=ab", 2), 3: None}
    assert redacted_tree(tree) == {
        "a": [{"auth": {"user": ["***", "***"]}}],
        "b": "s3://bucket/key=3/***",
        "c": ["?sig=***", 2],
        3: None,
    }


def test_long_lines_are_redacted_soon() -> None:
    for text in (
        "a" * 10**6,
        "key" * 10**5,
        "key=" * 10**5,
        '\\"' * 10**5,
        "://" * 10**5,
        "?a" * 10**5,
        "token" * 10**5,
    ):
        started = time.monotonic()
        redacted(text)
        assert time.monotonic() - started < 20


def test_error_s_message_is_free_of_secrets_from_the_start() -> None:
    assert str(DataError("https://user:word@store.example: 403")) == "https://***@store.example: 403"


def test_log_lines_are_redacted_with_their_arguments_and_tracebacks() -> None:
    formatter = RedactingFormatter("%(message)s")
    error = ValueError("password=abc")
    record = logging.LogRecord("name", logging.INFO, "", 0, "token: %s", ("abc",), (ValueError, error, None))
    assert formatter.format(record) == "token: ***\nValueError: password=***"


@pytest.mark.parametrize("secret", ['hem"lock', "hem\\lock", "hémlock", "hem\nlock", "hem'lock\t"])
def test_secret_variable_is_found_as_json_and_python_write_it(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("DB_PASSWORD", secret)
    for text in (secret, json.dumps({"a": secret}), json.dumps({"a": secret}, ensure_ascii=False), f"{[secret]!r}"):
        assert "lock" not in redacted(text)


def test_user_and_password_without_a_scheme_are_no_part_of_a_tree() -> None:
    tree = ["AKIA:ab/c@d@bucket/x", "channel:a/b@2x", "s3://bucket/a@2x", "/a:b@c", "ann@e.example", "(?:a|b)@2x"]
    assert redacted_tree(tree) == ["***@bucket/x", *tree[1:]]


def test_creds_are_a_secret_s_name() -> None:
    assert redacted_tree({"creds": {"k": ["abc"]}, "AWS_CREDS": "abc"}) == {"creds": {"k": ["***"]}, "AWS_CREDS": "***"}
