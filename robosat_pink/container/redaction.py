"""What no log, no message and no file of a run may show: values of secret names, wherever they turn up.

Called by `errors`, whose messages are free of them from the start, by `container`, `report` and `results`.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from typing import Any

# Words that stand in any name of a secret, and others that do if they are words of their own: no author, no keyboard,
# no passed tile. A key is one where the name ends with it.
_IN_ANY_NAME = (
    "(?i:SECRET|OAUTH|PASSWORD|PASSWD|PASSPHRASE|TOKEN|CREDENTIAL|CREDS|SIGNATURE|AUTHORIZATION"
    "|ACCESS[_-]?KEY|PRIVATE[_-]?KEY|API[_-]?KEY)"
)
_WORD = "(?<![A-Za-z])(?i:(?:DB)?PASS|PWD|AUTH)(?![A-Za-z])|(?<=[a-z])(?:Pass|Pwd|Auth)(?![a-z])"
_LAST_WORD = r"(?:(?<![A-Za-z])(?i:KEY|SIG)|(?<=[a-z])(?:Key|Sig))(?=\d*(?:_(?i:V\d+|PEM|DER|BASE64|B64))?(?![\w.\-]))"
SECRET_NAME = re.compile(f"{_IN_ANY_NAME}|{_WORD}|{_LAST_WORD}")
# What stores call their errors by, with a sentence behind, and what the help calls an override.
_NO_NAME = r"(?:NoSuch|Invalid|Expired|Missing)\w|\w*(?:DoesNotMatch|Required|NotSupported|Malformed|Error|Failure)\b"
_COUNT = r": \d[\d,]* (?:pairs|tiles)\b"  # what a directory that is called pass has of them
_VALUE = (
    r"""(?:(?i:Bearer|Basic)\s+)?(?:"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?|\\+(["'])(?:(?!\\+\2).)*(?:\\+\2)?"""
    r"""|[{\[].*|[^\s,;&]+)"""
)
ASSIGNMENT = re.compile(
    rf"""(?<![\w.\-/])((?!KEY=VALUE|{_NO_NAME})(?=[\w.\-]*?(?:{SECRET_NAME.pattern}))[\w.\-]+[\\"']*(?!{_COUNT})\s*[=:]\s*){_VALUE}"""
)
IN_ADDRESS = re.compile(rf"([?&](?=[\w.\-]*?(?:{SECRET_NAME.pattern}))[\w.\-]+=)[^\s&#\"']+")
USER_INFO = re.compile(r"(://)(?:[^/\s]+|[^/\s:\[]+:(?!\d+/)[^\s\"'?,;]{0,1000})@")  # a password may hold a slash
WITHOUT_SCHEME = re.compile(r"(?!(?:channel|file):)\w[\w+=.%\-]*:(?!//)\S+@")
SHORTEST = 6  # characters; a shorter value would be found in innocent words
OF_A_PATH = ("_FILE", "_PATH", "_DIR", "_SOCK")  # ends of names


def redacted(text: str) -> str:
    """The text with *** for values of secret environment variables, of `secret_name = value`, and in addresses."""
    return ASSIGNMENT.sub(r"\1***", redacted_value(text))


def redacted_value(text: str) -> str:
    """A value that stands for itself: *** for those of secret environment variables, and what is secret in addresses.

    `a/key=3/b` is a path, though it looks like an assignment.
    """
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= SHORTEST and not _is_path(name, value):
            for form in dict.fromkeys((value, *_escaped(value))):
                text = text.replace(form, "***")
    return IN_ADDRESS.sub(r"\1***", USER_INFO.sub(r"\1***@", text))


def redacted_tree(tree: Any, show: bool = True) -> Any:
    """Nested dicts and lists with *** for all that is below a secret name, and values redacted."""
    if isinstance(tree, Mapping):
        return {name: redacted_tree(each, show and not SECRET_NAME.search(str(name))) for name, each in tree.items()}
    if isinstance(tree, list | tuple):
        return [redacted_tree(each, show) for each in tree]
    if not isinstance(tree, str):
        return tree if show else "***"
    return redacted_value(_without_user(tree)) if show else "***"


def _without_user(value: str) -> str:
    """`user:password@bucket` without the first two."""
    found = WITHOUT_SCHEME.match(value)
    return f"***@{value[found.end() :]}" if found else value


def _escaped(value: str) -> list[str]:
    """As it stands in JSON, with and without letters beyond ASCII, and in Python's words."""
    return [json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]]


def _is_path(name: str, value: str) -> bool:
    """A path is where, not what; but keys may well begin with a slash."""
    return value.startswith("/") and (name.upper().endswith(OF_A_PATH) or os.path.exists(value))


class RedactingFormatter(logging.Formatter):
    """Lines as they are, without secrets; what no encoding has is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record)).encode("utf-8", "backslashreplace").decode()
