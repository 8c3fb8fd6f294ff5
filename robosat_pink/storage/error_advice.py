"""The meaning of an object store's errors: which are retried, and what the user should check. Called by `location`.

A 403 is reported at once with the profile or role in use ("AccessDenied" in ADVICE), unless its code asks to try later
(TRANSIENT_CODES). A 404 becomes NotFound.
"""

from __future__ import annotations

import html
import os
import re
from typing import NamedTuple

from obstore import exceptions

from robosat_pink.errors import DataError
from robosat_pink.storage import redirects
from robosat_pink.storage.credentials import is_anonymous

INSTANCE_METADATA = "/latest/api/token"  # the client requests credentials there if it has no others
FOLDER_DENIED = "Permission denied"  # in the client's error if it cannot list a folder
MAX_STORE_CHARACTERS = 300  # of the store's own message
READING, WRITING = "s3:ListBucket and s3:GetObject", "s3:PutObject"  # permissions
PERMANENT_ERRORS = (
    FileNotFoundError,
    PermissionError,
    exceptions.NotFoundError,
    exceptions.PermissionDeniedError,
    exceptions.UnauthenticatedError,
    exceptions.InvalidPathError,
    exceptions.NotSupportedError,
)
# The 4xx answers of S3 and similar stores that are worth a retry.
TRANSIENT_STATUSES = (408, 429)
TRANSIENT_CODES = {
    "BandwidthLimitExceeded",
    "OperationAborted",
    "PriorRequestNotComplete",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestTimeout",
    "RequestTimeoutException",
    "SlowDown",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "TooManyRequestsException",
}
OTHER_REGION = "{bucket} is in another region; set AWS_REGION to the bucket's"
EXPIRED = "the credentials have expired; get new ones (aws sso login, AWS_* variables) and start again"
# Keys are S3's error codes, or our own names for errors without a code.
ADVICE = {
    "NoSuchBucket": "the bucket {bucket} does not exist; check its name (a folder begins with / or ./)",
    "NoSuchKey": "not found; check bucket, prefix and name",
    "AccessDenied": "access denied (403); check that {identity} may {actions} in {bucket}{payer}",
    "InvalidAccessKeyId": "the access key does not exist; check AWS_ACCESS_KEY_ID, or the profile that holds it",
    "SignatureDoesNotMatch": "the secret key is not the access key's; check AWS_SECRET_ACCESS_KEY or the profile",
    "ExpiredToken": EXPIRED,
    "TokenRefreshRequired": EXPIRED,
    "InvalidToken": "the session token is not valid; check AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock is off by more than 15 minutes; set it",
    "AuthorizationHeaderMalformed": OTHER_REGION,
    "PermanentRedirect": OTHER_REGION,
    "TemporaryRedirect": OTHER_REGION,
    "IllegalLocationConstraintException": OTHER_REGION,
    "IncorrectEndpoint": OTHER_REGION,
    "Unreachable": "the store cannot be reached; check dataset.endpoint_url, AWS_ENDPOINT_URL, network and proxy",
    "InvalidObjectState": "archived; restore it (aws s3api restore-object) or copy it to a class that is read at once",
    "KMS": "its KMS key cannot be used; check that the key is enabled and not about to be deleted",
    "KMSDenied": "access denied (403) to its KMS key; check that {identity} may {kms} with it",
    "CustomerKey": "encrypted by a key of its owner (SSE-C); set AWS_SERVER_SIDE_ENCRYPTION=sse-c and "
    "AWS_SSE_CUSTOMER_KEY_BASE64, or copy it without",
    "AllAccessDisabled": "all access to it is disabled; ask {bucket}'s owner",
    "AccountProblem": "the account has a problem that only its owner and Amazon can solve",
    "NotSignedUp": "the account is not signed up for S3; sign it up, or use credentials of another account",
    "Redirected": redirects.ADVICE,
    "Certificate": "the store's certificate is not accepted ({flaw}); if its authority is unknown here, set "
    "AWS_CA_BUNDLE to the authority's file (PEM)",
    "NoLength": "the answer does not say how many bytes it has; check the proxy or gateway before the store",
}
# For errors in which the client quotes no code of S3. The keys are parts of the client's text; the first match counts.
ADVICE_BY_TEXT = {
    f"{redirects.NOWHERE},": "Redirected",
    "Received redirect": "PermanentRedirect",
    "is wrong; expecting": "AuthorizationHeaderMalformed",
    "InvalidCertificate(": "Certificate",
    "Content-Length Header missing": "NoLength",
    "403 Forbidden": "AccessDenied",
    "error sending request": "Unreachable",
    "404 Not Found": "NoSuchKey",
}
REDIRECTS = {code for code, advice in ADVICE.items() if advice == OTHER_REGION} | {"Redirected"}
NO_CREDENTIALS = (
    "no credentials for {bucket}; give the job a role, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name an "
    "aws_profile, or set AWS_NO_SIGN_REQUEST=YES for a public bucket (a file or folder begins with / or ./)"
)
PAYER = "; if {bucket} is one whose requesters pay, set AWS_REQUEST_PAYER=requester"


class NotFound(DataError):
    """An object, bucket or folder does not exist."""


class StoreError(NamedTuple):
    """The parts of a store's HTTP error that the client's text quotes."""

    status: int | None  # None if the store did not answer
    code: str  # S3's error code; empty if there is none
    message: str

    def text(self) -> str:
        text = " ".join(html.unescape(f"{self.code}: {self.message}").split()).strip(": ")
        return f"{text[:MAX_STORE_CHARACTERS]}…" if len(text) > MAX_STORE_CHARACTERS else text


def data_error(
    error: Exception, where: str, bucket: str | None, profile: str | None, attempts: str = "", actions: str = READING
) -> DataError:
    """The error to raise for a client's error: where, what happened, what to check, and a note on the attempts.

    `actions` are the permissions that the request takes.
    """
    is_absent = isinstance(error, FileNotFoundError | exceptions.NotFoundError) or "404 Not Found" in str(error)
    error_class = NotFound if is_absent else DataError
    return error_class(f"{where}: {_explanation(error, bucket, profile, actions)}{attempts}")


def is_transient(error: Exception) -> bool:
    """Whether a retry may succeed: after no answer, a server error (5xx), or a 4xx that asks to try later."""
    text = str(error)
    answer = _parse(text)
    if answer.code in TRANSIENT_CODES or answer.status in TRANSIENT_STATUSES:
        return True
    is_client_error = answer.status is not None and answer.status < 500
    if isinstance(error, PERMANENT_ERRORS) or FOLDER_DENIED in text or is_client_error:
        return False
    return _advice_key(text, answer) in ("", "Unreachable")


def is_truncated(error: Exception) -> bool:
    """Whether an answer broke off in its body: the only transient error that the client itself does not retry."""
    return "response body" in str(error)


def _explanation(error: BaseException, bucket: str | None, profile: str | None, actions: str) -> str:
    """The failure and what to check; without advice, the store's answer or the first line of the client's text."""
    text = str(error)
    if bucket is None and (isinstance(error, PermissionError) or FOLDER_DENIED in text):
        return "no permission to read it"
    if bucket is None and isinstance(error, FileNotFoundError | exceptions.NotFoundError):
        return "not found; check folder and name"
    answer = _parse(text)
    key = _advice_key(text, answer)
    advice = NO_CREDENTIALS if INSTANCE_METADATA in text else ADVICE.get(key, "")
    identity = "anybody" if is_anonymous() else f"profile {profile}" if profile else "the role or key in use"
    payer = "" if is_anonymous() or "AWS_REQUEST_PAYER" in os.environ else PAYER.format(bucket=bucket)
    flaw = re.search(r"InvalidCertificate\(\s*(\w+)", text)
    kms = "kms:GenerateDataKey" if actions == WRITING else "kms:Decrypt"
    values = {"bucket": bucket, "identity": identity, "payer": payer, "actions": actions, "kms": kms}
    ours = advice.format(**values, flaw=flaw[1] if flaw else "")
    destination = _destination(text) if key in REDIRECTS or (key == "AccessDenied" and " http://" in text) else ""
    theirs = "; ".join(filter(None, (answer.text() if answer.status != 404 else "", destination)))
    if ours:
        return f"{ours} (the store says: {theirs})" if theirs else ours
    return f"the store answers {answer.status}: {theirs or 'nothing else'}" if answer.status else text.split("\n")[0]


def _parse(text: str) -> StoreError:
    """Status, code and message from the client's text, which quotes the answer's body: S3's XML, or any other."""
    head = text.partition("\n\nDebug source")[0]
    status = re.search(r"status code: (\d{3})[^:<]*:?\s*(.*)", head, re.DOTALL)
    body = status[2] if status else head
    code, message = (re.search(f"<{name}>(.*?)</{name}>", body, re.DOTALL) for name in ("Code", "Message"))
    if status and not code:  # a proxy's page, or a store that answers in JSON
        return StoreError(int(status[1]), "", re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", body, flags=re.DOTALL))
    return StoreError(int(status[1]) if status else None, code[1] if code else "", message[1] if message else "")


def _advice_key(text: str, answer: StoreError) -> str:
    """The key of ADVICE, from S3's code, its message or the client's text; "" if there is no advice."""
    message = answer.message.lower()
    if answer.code == "InvalidRequest" and "server side encryption" in message:
        return "CustomerKey"
    if answer.code.startswith("KMS."):
        return "KMS"
    if answer.code == "AccessDenied" and "kms:" in message:
        return "KMSDenied"
    if answer.code in ADVICE:
        return answer.code
    return next((key for sign, key in ADVICE_BY_TEXT.items() if sign in text), "")


def _destination(text: str) -> str:
    """The target of a redirect, in words: the region in the store's answer, or else the result of one more request."""
    address = re.search(r"Error performing \w+ (https?://\S+) in ", text)
    region = re.search(r"<Region>([\w-]+)</Region>", text)
    if region:
        return f"region {region[1]}"
    return redirects.destination(address[1])[0] if address else ""
