"""What a store's errors mean and what to check: 403, 404, wrong region, expired credentials. Called by `storage`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from obstore import exceptions

from robosat_pink.credentials import is_anonymous
from robosat_pink.errors import DataError

INSTANCE_METADATA = "/latest/api/token"  # where credentials are asked for when nothing else has any
REFUSED_FOLDER = "Permission denied"  # what a folder's listing says
PERMANENT = (
    FileNotFoundError,
    PermissionError,
    exceptions.NotFoundError,
    exceptions.PermissionDeniedError,
    exceptions.UnauthenticatedError,
    exceptions.InvalidPathError,
    exceptions.NotSupportedError,
)
ADVICE = {
    "NoSuchBucket": "the bucket {bucket} does not exist; check its name (a folder begins with / or ./)",
    "NoSuchKey": "not found; check bucket, prefix and name",
    "AccessDenied": "access denied (403); check that {identity} may s3:ListBucket and s3:GetObject in {bucket}",
    "InvalidAccessKeyId": "the access key does not exist; check AWS_ACCESS_KEY_ID, or the profile that holds it",
    "SignatureDoesNotMatch": "the secret key is not the access key's; check AWS_SECRET_ACCESS_KEY or the profile",
    "ExpiredToken": "the credentials have expired; get new ones (aws sso login, AWS_* variables) and start again",
    "InvalidToken": "the session token is not valid; check AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock is off by more than 15 minutes; set it",
    "AuthorizationHeaderMalformed": "{bucket} is in another region; set AWS_REGION to the bucket's",
    "Unreachable": "the store cannot be reached; check dataset.endpoint_url, AWS_ENDPOINT_URL, network and proxy",
    "PermanentRedirect": "{bucket} is in another region; set AWS_REGION to the bucket's",
}
SIGNS = {
    "Received redirect": "PermanentRedirect",
    "is wrong; expecting": "AuthorizationHeaderMalformed",
    "403 Forbidden": "AccessDenied",
    "error sending request": "Unreachable",
    "404 Not Found": "NoSuchKey",
}
NO_CREDENTIALS = (
    "no credentials for {bucket}; give the job a role, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name an "
    "aws_profile, or set AWS_NO_SIGN_REQUEST=YES for a public bucket"
)


class NotFound(DataError):
    """No such object, bucket or folder."""


@contextmanager
def explained(where: str, bucket: str | None, profile: str | None, tried: str = "") -> Iterator[None]:
    """Turn the client's errors into a DataError that names the place and says what to check."""
    try:
        yield
    except (exceptions.BaseError, OSError) as error:
        absent = isinstance(error, FileNotFoundError | exceptions.NotFoundError) or "404 Not Found" in str(error)
        refusal = NotFound if absent else DataError
        raise refusal(f"{where}: {_explanation(error, bucket, profile)}{tried}") from error


def may_pass(error: Exception) -> bool:
    """Whether the same request may well be answered later: not where the store has said what is wrong with it."""
    is_refused = isinstance(error, PERMANENT) or REFUSED_FOLDER in str(error)
    return not is_refused and _code(str(error)) in (None, "Unreachable")


def broke_off(error: Exception) -> bool:
    """Whether an answer began and did not end: what the client does not try again by itself."""
    return "response body" in str(error)


def _explanation(error: BaseException, bucket: str | None, profile: str | None) -> str:
    """What went wrong and what to check, from S3's error code; the client's own first line if it has none."""
    text = str(error)
    if bucket is None and (isinstance(error, PermissionError) or REFUSED_FOLDER in text):
        return "no permission to read it"
    if bucket is None and isinstance(error, FileNotFoundError | exceptions.NotFoundError):
        return "not found; check folder and name"
    code = _code(text)
    advice = NO_CREDENTIALS if INSTANCE_METADATA in text else ADVICE[code] if code else ""
    who = "anybody" if is_anonymous() else f"profile {profile}" if profile else "the role or key in use"
    return advice.format(bucket=bucket, identity=who) if advice else text.split("\n")[0]


def _code(text: str) -> str | None:
    """S3's error code, read or inferred, if there is advice for it."""
    code = re.search(r"<Code>(\w+)</Code>", text)
    return code[1] if code and code[1] in ADVICE else next((SIGNS[sign] for sign in SIGNS if sign in text), None)
