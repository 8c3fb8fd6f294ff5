"""The options with which `storage` reads any file that an experiment names. Called by `pairs`, `run` and `check`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robosat_pink.config import DatasetConfig
from robosat_pink.storage.credentials import usable_profile


def store_options(dataset: DatasetConfig, input_channels: Mapping[str, Path]) -> dict[str, Any]:
    """Input channels, credentials and endpoint, as keyword arguments of `Location.parse` and `read_file`."""
    return {
        "channels": input_channels,
        "profile": usable_profile(dataset.aws_profile),
        "endpoint_url": dataset.endpoint_url,
        "verify_md5": dataset.verify_md5,
    }
