"""What no log and no failure file may show: values of secret names, wherever they turn up. Called by `container`."""

from __future__ import annotations

import logging
import os
import re

NAMES = r"(?:SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|ACCESS_?KEY|PRIVATE_?KEY|API_?KEY)"
NAME = re.compile(NAMES, re.IGNORECASE)
ASSIGNMENT = re.compile(rf"([\w.\-]*{NAMES}[\w.\-]*[\"']?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s,;&]+)", re.IGNORECASE)
USER_INFO = re.compile(r"(://)[^/\s@]+@")
SHORTEST = 6  # characters; a shorter value would be found in innocent words


def masked(text: str) -> str:
    """The text with *** for values of secret environment variables, of `secret_name = value`, and in user:word@host."""
    for name, value in os.environ.items():
        if NAME.search(name) and len(value) >= SHORTEST and not value.startswith("/"):  # a path is where, not what
            text = text.replace(value, "***")
    return USER_INFO.sub(r"\1***@", ASSIGNMENT.sub(r"\1***", text))


class MaskingFormatter(logging.Formatter):
    """Lines as they are, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))
