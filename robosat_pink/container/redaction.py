"""Redaction: *** for secrets in every message, log line and file of a run. Called by every room that writes text.

A secret is the value of a name such as password or token, in text, in a tree, in an address or in the environment.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from typing import Any

# A name is secret if it contains one of _IN_ANY_NAME, if one of _WORD is a separate word in it (unlike in "author" or
# "passed"), or if it ends with one of _LAST_WORD as a separate word (unlike "keyboard").
_IN_ANY_NAME = (
    "(?i:SECRET|OAUTH|PASSWORD|PASSWD|PASSPHRASE|TOKEN|CREDENTIAL|CREDS|SIGNATURE|AUTHORIZATION"
    "|ACCESS[_-]?KEY|PRIVATE[_-]?KEY|API[_-]?KEY)"
)
_WORD = "(?<![A-Za-z])(?i:(?:DB)?PASS|PWD|AUTH)(?![A-Za-z])|(?<=[a-z])(?:Pass|Pwd|Auth)(?![a-z])"
_LAST_WORD = r"(?:(?<![A-Za-z])(?i:KEY|SIG)|(?<=[a-z])(?:Key|Sig))(?=\d*(?:_(?i:V\d+|PEM|DER|BASE64|B64))?(?![\w.\-]))"
SECRET_NAME = re.compile(f"{_IN_ANY_NAME}|{_WORD}|{_LAST_WORD}")
# Error codes of stores are no names of secrets: a colon and a sentence follow them.
_NOT_A_NAME = (
    r"(?:NoSuch|Invalid|Expired|Missing)\w|\w*(?:DoesNotMatch|Required|NotSupported|Malformed|Error|Failure)\b"
)
_COUNT = r": \d[\d,]* (?:pairs?|tiles?)\b"  # follows the name of a directory, which may be "pass"
_VALUE = (
    r"""(?:(?i:Bearer|Basic)\s+)?(?:"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?|\\+(["'])(?:(?!\\+\2).)*(?:\\+\2)?"""
    r"""|[{\[].*|[^\s,;&]+)"""
)
ASSIGNMENT = re.compile(
    rf"""(?<![\w.\-/])((?!KEY=VALUE|{_NOT_A_NAME})(?=[\w.\-]*?(?:{SECRET_NAME.pattern}))[\w.\-]+[\\"']*(?!{_COUNT})\s*[=:]\s*){_VALUE}"""
)
IN_ADDRESS = re.compile(rf"([?&](?=[\w.\-]*?(?:{SECRET_NAME.pattern}))[\w.\-]+=)[^\s&#\"']+")
USER_INFO = re.compile(r"(://)(?:[^/\s]+|[^/\s:\[]+:(?!\d+/)[^\s\"'?,;]{0,1000})@")  # a password may hold a slash
USER_WITHOUT_SCHEME = re.compile(r"(?!(?:channel|file):)\w[\w+=.%\-]*:(?!//)\S+@")
MIN_SECRET_CHARACTERS = 6  # a shorter value would also be redacted inside innocent words
PATH_SUFFIXES = ("_FILE", "_PATH", "_DIR", "_SOCK")  # of variables whose value is a path


def redacted(text: str) -> str:
    """The text with *** for secrets: in values of environment variables, in `secret_name = value`, and in addresses."""
    return ASSIGNMENT.sub(r"\1***", redacted_value(text))


def redacted_value(text: str) -> str:
    """A single value with *** for secrets. Unlike in a text, `a/key=3/b` is a path, not an assignment."""
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= MIN_SECRET_CHARACTERS and not _is_path(name, value):
            for spelling in dict.fromkeys((value, *_escaped(value))):
                text = text.replace(spelling, "***")
    return IN_ADDRESS.sub(r"\1***", USER_INFO.sub(r"\1***@", text))


def redacted_tree(tree: Any, show: bool = True) -> Any:
    """Nested dicts and lists with *** for everything below a secret name; all other text is redacted as a value."""
    if isinstance(tree, Mapping):
        return {name: redacted_tree(value, show and not SECRET_NAME.search(str(name))) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [redacted_tree(value, show) for value in tree]
    if not isinstance(tree, str):
        return tree if show else "***"
    return redacted_value(_without_user(tree)) if show else "***"


def _without_user(value: str) -> str:
    """`user:password@bucket` as `***@bucket`."""
    user = USER_WITHOUT_SCHEME.match(value)
    return f"***@{value[user.end() :]}" if user else value


def _escaped(value: str) -> list[str]:
    """The spellings of a value in JSON, with and without ASCII escapes, and in Python."""
    return [json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]]


def _is_path(name: str, value: str) -> bool:
    """Whether the value is a path to a secret, not a secret. A key may begin with a slash, but no such path exists."""
    return value.startswith("/") and (name.upper().endswith(PATH_SUFFIXES) or os.path.exists(value))


class RedactingFormatter(logging.Formatter):
    """Redacts each line, traceback included, and escapes characters that UTF-8 cannot encode."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record)).encode("utf-8", "backslashreplace").decode()
