"""Secrets are shown nowhere; what only looks like one is left alone."""

import logging

import pytest

from robosat_pink.masking import MaskingFormatter, masked


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
        ("model.lr = 0.1; s3://bucket/key@2", "model.lr = 0.1; s3://bucket/key@2"),
    ],
)
def test_value_of_a_secret_name_is_not_shown(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_value_of_a_secret_variable_is_not_shown_wherever_it_turns_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/run/token")
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    assert masked("got wJalrXUtnFEMI in us-west-2 from /run/token") == "got *** in us-west-2 from /run/token"


def test_log_lines_are_masked_with_their_arguments_and_tracebacks() -> None:
    formatter = MaskingFormatter("%(message)s")
    error = ValueError("password=abc")
    record = logging.LogRecord("name", logging.INFO, "", 0, "token: %s", ("abc",), (ValueError, error, None))
    assert formatter.format(record) == "token: ***\nValueError: password=***"
