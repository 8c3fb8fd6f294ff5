"""The credentials of requests: a profile, the environment, a role, or none. Called by `location` and `datasets`.

obstore handles environment variables, web identities, container roles (SageMaker, ECS) and instance roles, and renews
credentials. Profiles and the files in ~/.aws need boto3, an extra: `pip install robosat_pink[profile]`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from robosat_pink.errors import ConfigError

log = logging.getLogger(__name__)

ANONYMOUS_VARIABLES = ("AWS_NO_SIGN_REQUEST", "AWS_SKIP_SIGNATURE")  # GDAL's name and obstore's
VALIDITY = timedelta(minutes=10)  # boto3 returns no credentials that expire sooner (obstore's provider assumes 30 min)
PROFILE_SETTINGS = ("endpoint_url", "ca_bundle", "addressing_style")
SHARED_FILES = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}


@functools.cache  # one warning per process
def usable_profile(profile: str | None) -> str | None:
    """The profile, or None for the default credentials: with a warning if this machine lacks the profile or boto3."""
    if profile is None:
        return None
    if find_spec("boto3") is None:
        log.warning(
            "warning: aws_profile %r needs boto3, which is not installed (pip install 'robosat_pink[profile]'); "
            "using the default credentials",
            profile,
        )
        return None
    from botocore.session import Session

    with _file_errors_explained():
        profiles = Session().available_profiles
    if profile not in profiles:
        log.warning(
            "warning: there is no aws_profile %r on this machine (there are: %s); using the default credentials",
            profile,
            ", ".join(profiles) or "none",
        )
        return None
    return profile


def unset_empty_variables() -> None:
    """Remove empty AWS_* variables from the environment: obstore would use them as keys and addresses."""
    for name, value in list(os.environ.items()):
        if name.startswith("AWS_") and not value.strip():
            del os.environ[name]


def profile_settings(profile: str | None) -> dict[str, str]:
    """endpoint_url, ca_bundle and addressing_style of the profile, or of the default profile if it is None.

    As in botocore, an endpoint_url for S3 in the profile's `services` takes precedence over the profile's own. boto3 is
    slow to import, so it is imported only if the files contain one of these settings.
    """
    if find_spec("boto3") is None or not any(name in _shared_text() for name in PROFILE_SETTINGS):
        return {}
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session

    try:
        session = Session(profile=profile)
        scoped, services = session.get_scoped_config(), _table(session.full_config.get("services"))
    except BotoCoreError:  # `identity` reports it
        return {}
    of_s3 = _table(_table(services.get(scoped.get("services"))).get("s3"))
    settings = {
        "endpoint_url": of_s3.get("endpoint_url") or scoped.get("endpoint_url"),
        "ca_bundle": scoped.get("ca_bundle"),
        "addressing_style": _table(scoped.get("s3")).get("addressing_style"),
    }
    if os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        del settings["endpoint_url"]
    return {name: value for name, value in settings.items() if value}


def identity(profile: str | None) -> dict[str, Any]:
    """Arguments of obstore's S3Store: `region`, and `credential_provider` or `skip_signature` if needed."""
    unset_empty_variables()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if is_anonymous():
        return {"skip_signature": True, "region": region or "us-east-1"}
    if profile is None and ("AWS_ACCESS_KEY_ID" in os.environ or not _has_shared_files() or find_spec("boto3") is None):
        return {"region": region or "us-east-1"}
    import boto3

    with _file_errors_explained():
        session = boto3.Session(profile_name=profile)
        provider = _Provider(session, profile) if session.get_credentials() else None  # files may contain only a region
    options: dict[str, Any] = {"region": region or session.region_name or "us-east-1"}
    return options | ({"credential_provider": provider} if provider else {})


@contextlib.contextmanager
def _file_errors_explained() -> Iterator[None]:
    """Turn botocore's errors into ConfigErrors without a cause, which could quote a line with a secret."""
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except BotoCoreError as error:
        raise ConfigError(
            f"AWS's files of credentials and profiles: {error}; check aws_profile, AWS_PROFILE and the files in ~/.aws"
        ) from None


def is_anonymous() -> bool:
    """Whether requests are unsigned, for public buckets."""
    return any(os.environ.get(name, "").lower() in ("yes", "true", "1") for name in ANONYMOUS_VARIABLES)


def carries_token(options: Mapping[str, Any]) -> bool:
    """Whether requests with these arguments of S3Store carry a session token. Requests of a role always do."""
    if "skip_signature" in options:
        return False
    is_static = "credential_provider" not in options and "AWS_ACCESS_KEY_ID" in os.environ
    return not is_static or "AWS_SESSION_TOKEN" in os.environ or "AWS_TOKEN" in os.environ


class _Provider:
    """The current credentials of a profile. The profile's files may be rewritten during a run."""

    def __init__(self, session: Any, profile: str | None) -> None:
        self.session, self.profile = session, profile

    def __call__(self) -> dict[str, Any]:
        """Credentials in obstore's format. obstore asks again before they expire."""
        import boto3
        from botocore.credentials import RefreshableCredentials

        if not isinstance(self.session.get_credentials(), RefreshableCredentials):
            self.session = boto3.Session(profile_name=self.profile)
        frozen = self.session.get_credentials().get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + VALIDITY,
        }


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _has_shared_files() -> bool:
    return "AWS_PROFILE" in os.environ or any(os.path.exists(path) for path in _shared_files())


def _shared_text() -> str:
    files = (path for path in _shared_files() if os.path.isfile(path) and os.access(path, os.R_OK))
    return "".join(Path(path).read_text(errors="replace") for path in files)


def _shared_files() -> list[str]:
    return [os.path.expanduser(os.environ.get(name) or default) for name, default in SHARED_FILES.items()]
