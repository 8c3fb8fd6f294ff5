"""What a store's errors mean and what to check: 403, 404, wrong region, expired credentials. Called by `storage`."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from obstore import exceptions

from robosat_pink.errors import DataError
from robosat_pink.storage import redirects
from robosat_pink.storage.credentials import is_anonymous

INSTANCE_METADATA = "/latest/api/token"  # where credentials are asked for when nothing else has any
REFUSED_FOLDER = "Permission denied"  # what a folder's listing says
SHOWN = 300  # characters of a store's own words
PERMANENT = (
    FileNotFoundError,
    PermissionError,
    exceptions.NotFoundError,
    exceptions.PermissionDeniedError,
    exceptions.UnauthenticatedError,
    exceptions.InvalidPathError,
    exceptions.NotSupportedError,
)
# Refusals (4xx) that may pass, as S3 and stores like it name them.
PASSING_STATUSES = (408, 429)
PASSING_CODES = {
    *("RequestTimeout", "RequestTimeoutException", "PriorRequestNotComplete", "OperationAborted", "SlowDown"),
    *("Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled", "RequestThrottledException"),
    *("TooManyRequests", "TooManyRequestsException", "RequestLimitExceeded", "BandwidthLimitExceeded"),
}
ELSEWHERE = "{bucket} is in another region; set AWS_REGION to the bucket's"
EXPIRED = "the credentials have expired; get new ones (aws sso login, AWS_* variables) and start again"
ADVICE = {
    "NoSuchBucket": "the bucket {bucket} does not exist; check its name (a folder begins with / or ./)",
    "NoSuchKey": "not found; check bucket, prefix and name",
    "AccessDenied": "access denied (403); check that {identity} may s3:ListBucket and s3:GetObject in {bucket}{payer}",
    "InvalidAccessKeyId": "the access key does not exist; check AWS_ACCESS_KEY_ID, or the profile that holds it",
    "SignatureDoesNotMatch": "the secret key is not the access key's; check AWS_SECRET_ACCESS_KEY or the profile",
    "ExpiredToken": EXPIRED,
    "TokenRefreshRequired": EXPIRED,
    "InvalidToken": "the session token is not valid; check AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock is off by more than 15 minutes; set it",
    "AuthorizationHeaderMalformed": ELSEWHERE,
    "PermanentRedirect": ELSEWHERE,
    "TemporaryRedirect": ELSEWHERE,
    "IllegalLocationConstraintException": ELSEWHERE,
    "IncorrectEndpoint": ELSEWHERE,
    "Unreachable": "the store cannot be reached; check dataset.endpoint_url, AWS_ENDPOINT_URL, network and proxy",
    "InvalidObjectState": "archived; restore it (aws s3api restore-object) or copy it to a class that is read at once",
    "KMS": "its KMS key cannot be used; check that the key is enabled and not about to be deleted",
    "KMSDenied": "access denied (403) to its KMS key; check that {identity} may kms:Decrypt with it",
    "CustomerKey": "encrypted by a key of its owner (SSE-C); set AWS_SERVER_SIDE_ENCRYPTION=sse-c and "
    "AWS_SSE_CUSTOMER_KEY_BASE64, or copy it without",
    "AllAccessDisabled": "all access to it is disabled; ask {bucket}'s owner",
    "AccountProblem": "the account has a problem that only its owner and Amazon can solve",
    "NotSignedUp": "the account has no S3; sign it up, or use another's credentials",
    "Redirected": redirects.ADVICE,
    "Certificate": "the store's certificate is not accepted ({flaw}); if its authority is unknown here, set "
    "AWS_CA_BUNDLE to the authority's file (PEM)",
    "NoLength": "the answer does not say how many bytes it has; check the proxy or gateway before the store",
}
SIGNS = {
    f"{redirects.NOWHERE},": "Redirected",
    "Received redirect": "PermanentRedirect",
    "is wrong; expecting": "AuthorizationHeaderMalformed",
    "InvalidCertificate(": "Certificate",
    "Content-Length Header missing": "NoLength",
    "403 Forbidden": "AccessDenied",
    "error sending request": "Unreachable",
    "404 Not Found": "NoSuchKey",
}
REDIRECTS = {code for code, advice in ADVICE.items() if advice == ELSEWHERE} | {"Redirected"}
NO_CREDENTIALS = (
    "no credentials for {bucket}; give the job a role, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name an "
    "aws_profile, or set AWS_NO_SIGN_REQUEST=YES for a public bucket (a file or folder begins with / or ./)"
)
PAYER = "; if {bucket} is one whose requesters pay, set AWS_REQUEST_PAYER=requester"


class NotFound(DataError):
    """No such object, bucket or folder."""


class Answer(NamedTuple):
    """What a store says that does not give what it is asked for."""

    status: int | None  # None: no answer at all
    code: str  # S3's; empty where it gives none
    message: str

    def words(self) -> str:
        said = " ".join(html.unescape(f"{self.code}: {self.message}").split()).strip(": ")
        return f"{said[:SHOWN]}…" if len(said) > SHOWN else said


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
    text = str(error)
    answer = _answer(text)
    if answer.code in PASSING_CODES or answer.status in PASSING_STATUSES:
        return True
    is_refused = isinstance(error, PERMANENT) or REFUSED_FOLDER in text or (answer.status or 500) < 500
    return not is_refused and _kind(text, answer) in ("", "Unreachable")


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
    answer = _answer(text)
    kind = _kind(text, answer)
    advice = NO_CREDENTIALS if INSTANCE_METADATA in text else ADVICE.get(kind, "")
    who = "anybody" if is_anonymous() else f"profile {profile}" if profile else "the role or key in use"
    payer = "" if is_anonymous() or "AWS_REQUEST_PAYER" in os.environ else PAYER.format(bucket=bucket)
    flaw = re.search(r"InvalidCertificate\(\s*(\w+)", text)
    ours = advice.format(bucket=bucket, identity=who, payer=payer, flaw=flaw[1] if flaw else "")
    sent = _destination(text) if kind in REDIRECTS or (kind == "AccessDenied" and " http://" in text) else ""
    theirs = "; ".join(filter(None, (answer.words() if answer.status != 404 else "", sent)))
    if ours:
        return f"{ours} (the store says: {theirs})" if theirs else ours
    return f"the store answers {answer.status}: {theirs or 'nothing else'}" if answer.status else text.split("\n")[0]


def _answer(text: str) -> Answer:
    """What is answered, by the client's text: its own words, the status and the body."""
    head = text.partition("\n\nDebug source")[0]
    status = re.search(r"status code: (\d{3})[^:<]*:?\s*(.*)", head, re.DOTALL)
    body = status[2] if status else head
    code, message = (re.search(f"<{name}>(.*?)</{name}>", body, re.DOTALL) for name in ("Code", "Message"))
    if status and not code:  # a proxy's page, or a store that speaks JSON
        return Answer(int(status[1]), "", re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", body, flags=re.DOTALL))
    return Answer(int(status[1]) if status else None, code[1] if code else "", message[1] if message else "")


def _kind(text: str, answer: Answer) -> str:
    """What there is advice for: S3's error code, or what is read from its message or the client's words; else ""."""
    message = answer.message.lower()
    if answer.code == "InvalidRequest" and "server side encryption" in message:
        return "CustomerKey"
    if answer.code.startswith("KMS."):
        return "KMS"
    if answer.code == "AccessDenied" and "kms:" in message:
        return "KMSDenied"
    if answer.code in ADVICE:
        return answer.code
    return next((SIGNS[sign] for sign in SIGNS if sign in text), "")


def _destination(text: str) -> str:
    """Where the store sends, as it says when it is asked once more."""
    address = re.search(r"Error performing \w+ (https?://\S+) in ", text)
    region = re.search(r"<Region>([\w-]+)</Region>", text)
    return f"region {region[1]}" if region else redirects.destination(address[1])[0] if address else ""
