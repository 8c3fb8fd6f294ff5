"""The text of /opt/ml/output/failure, which SageMaker shows as a job's FailureReason. Called by `contract`.

The log and the other ranks show an error by its `user_message`, too.
"""

from __future__ import annotations

import traceback

from robosat_pink.container.redaction import redacted
from robosat_pink.errors import RobosatError

MESSAGE_CHARACTERS = 900
FILE_CHARACTERS = 1024  # the platform cuts off the rest


def user_message(error: BaseException) -> str:
    """A RobosatError's message. Any other error is a defect, so its type's name is put before its message."""
    return str(error) if isinstance(error, RobosatError) else f"{type(error).__name__}: {error}"


def failure_text(error: BaseException) -> str:
    """At most 1,024 ASCII characters: the message, cut to 900, then the end of the traceback."""
    message = _redacted_ascii(user_message(error))[:MESSAGE_CHARACTERS]
    trace = _redacted_ascii("".join(traceback.format_exception(error)))
    room = FILE_CHARACTERS - len(message) - 2
    return f"{message}\n\n{trace[-room:]}"


def _redacted_ascii(text: str) -> str:
    return redacted(text).encode("ascii", "backslashreplace").decode()
