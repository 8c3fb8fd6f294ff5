"""The /opt/ml tree of a SageMaker training container: its paths, its JSON files, the failure file.

A run gets every path below /opt/ml from here. SAGEMAKER_BASE_DIR moves the whole tree, for tests and local runs.
Source: Amazon SageMaker developer guide, "How Amazon SageMaker runs your training image".
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from robosat_pink.container.atomic_write import TEMPORARY_SUFFIX, check_writable, write_atomically
from robosat_pink.container.failure_file import failure_text
from robosat_pink.container.redaction import redacted_tree
from robosat_pink.container.regular_file import decode_text, read_regular
from robosat_pink.container.some_names import some_names
from robosat_pink.errors import ContractError

log = logging.getLogger(__name__)

EXPERIMENT_SUFFIXES = (".yml", ".yaml", ".json", ".toml")
MAX_CONFIG_BYTES = 10**6  # per JSON file; the platform writes up to 100 hyperparameters of 2,500 characters
MAX_SHOWN_NAMES, MAX_SHOWN_CHARACTERS = 20, 200  # names per message, characters per item
# A host name or an address, with the length limits of RFC 1035.
HOST = re.compile(r"(?!.{254})[A-Za-z0-9_:-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
NOT_IN_A_PATH = re.compile("[\0\ud800-\udfff]")
MAX_NAME_BYTES = 255  # per name of a file or folder


@dataclass(frozen=True)
class Container:
    """One /opt/ml tree."""

    base: Path

    @classmethod
    def here(cls) -> Container:
        return cls(Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml")))

    @property
    def model(self) -> Path:
        return self.base / "model"

    @property
    def output_data(self) -> Path:
        return self.base / "output" / "data"

    @property
    def tensorboard(self) -> Path:
        """Where SageMaker looks for TensorBoard's event files, to copy them to S3 while a job runs."""
        return self.base / "output" / "tensorboard"

    @property
    def checkpoints(self) -> Path | None:
        """The folder of resume points: the one that the job names, else /opt/ml/checkpoints if it exists, or None."""
        named = self._text("checkpointconfig", "LocalPath")
        if named:
            return Path(named)
        default = self.base / "checkpoints"
        return default if default.is_dir() else None

    def channels(self) -> dict[str, Path]:
        """The input channels by name. Without inputdataconfig.json (plain docker run), all folders that exist."""
        data = self.base / "input" / "data"
        declared = self._config("inputdataconfig")
        for name, channel in declared.items():
            if not isinstance(channel, dict | None) or not _may_be_a_path(name):
                accepted = f"a JSON object for each channel, under a valid folder name of up to {MAX_NAME_BYTES} bytes"
                raise self._refusal("inputdataconfig", name, channel, accepted)
            if (channel or {}).get("TrainingInputMode") == "Pipe":
                raise ContractError(f"channel {name!r} is in Pipe mode, which has no files; use File or FastFile mode")
        names = list(declared) or [name for name in _entries(data) or () if (data / name).is_dir()]
        return {name: data / name for name in names}

    def experiment_file(self) -> Path:
        """The only experiment file in the `config` channel."""
        folder = self.base / "input" / "data" / "config"
        entries = _entries(folder)
        if entries is None:
            raise ContractError(
                f"{folder} does not exist: put one experiment file there (for a SageMaker job: a channel named "
                "config), or name one by --config FILE"
            )
        files = [name for name in entries if name.lower().endswith(EXPERIMENT_SUFFIXES) and not name.startswith(".")]
        if len(files) != 1:
            raise ContractError(
                f"{folder} must hold exactly one experiment file ({', '.join(EXPERIMENT_SUFFIXES)}), it holds "
                f"{some_names(entries, MAX_SHOWN_NAMES, 'nothing')}; note that an S3 prefix brings every object whose "
                "key starts with it"
            )
        return folder / files[0]

    def hosts(self) -> tuple[tuple[str, ...], str]:
        """All hosts of the job, sorted, and the current one. Reads only hosts and current_host."""
        hosts = self._config("resourceconfig").get("hosts") or ["localhost"]
        are_hosts = isinstance(hosts, list) and all(isinstance(host, str) and HOST.fullmatch(host) for host in hosts)
        if not are_hosts or len(set(hosts)) < len(hosts):
            raise self._refusal("resourceconfig", "hosts", hosts, "a list of the names of all hosts, each once")
        hosts = tuple(sorted(hosts))
        current = self._text("resourceconfig", "current_host") or hosts[0]
        if current not in hosts:
            raise ContractError(
                f"resourceconfig.json: current_host {current[:MAX_SHOWN_CHARACTERS]!r} is none of the hosts "
                f"{', '.join(hosts)[:MAX_SHOWN_CHARACTERS]}"
            )
        return hosts, current

    def network_interface(self) -> str | None:
        """The interface between the hosts of the job, if the platform names one."""
        return self._text("resourceconfig", "network_interface_name")

    def hyperparameters(self) -> dict[str, str]:
        """The hyperparameters as text, by dotted key, without the names that SageMaker and its estimators reserve.

        The platform writes only text. Numbers and objects in a file that was written by hand become JSON text.
        """
        values = {name: value for name, value in self._config("hyperparameters").items() if not _is_reserved(name)}
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}

    def is_interactive(self, stream: TextIO | None = None) -> bool:
        """Whether a person watches the stream (default: stderr), a terminal. Nobody watches that of local mode."""
        return (stream or sys.stderr).isatty() and not (self.base / "input" / "config" / "resourceconfig.json").exists()

    def prepare(self, trains: bool = True) -> None:
        """Create the output folders. Remove the half-written files and the failure file of an earlier attempt.

        Only a training writes a model and resume points.
        """
        written = [folder for folder in (self.model, self.checkpoints) if folder is not None] if trains else []
        for folder in (*written, self.output_data):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ContractError(f"{folder} cannot be made: {error.strerror}; set SAGEMAKER_BASE_DIR?") from error
            check_writable(folder)
        half_written = [path for folder in written for path in folder.glob(f"*{TEMPORARY_SUFFIX}")]
        for path in (*half_written, self._failure_file):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise ContractError(f"{path} cannot be removed: {error.strerror}; set SAGEMAKER_BASE_DIR?") from error

    def write_failure(self, error: BaseException) -> None:
        """Write the failure file.

        An error that only reports another rank's failure does not replace an existing file, which contains the cause.
        """
        if getattr(error, "is_of_another_rank", False) and self._failure_file.exists():
            return
        text = failure_text(error)
        try:
            self._failure_file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._failure_file, lambda file: file.write(text.encode("ascii")))
        except (OSError, ContractError) as reason:
            log.error("error: the failure file could not be written: %s", reason)  # noqa: TRY400

    @property
    def _failure_file(self) -> Path:
        return self.base / "output" / "failure"

    def _config(self, name: str) -> Mapping[str, Any]:
        """The JSON object of a file below input/config; empty if the file is missing, empty or null."""
        path = self._config_file(name)
        try:
            data = read_regular(path, MAX_CONFIG_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise ContractError(f"{path}: cannot be read: {error.strerror}") from error
        try:
            value = json.loads(decode_text(data) or "{}")
            json.dumps(value)  # as `hyperparameters` does later: nesting too deep to encode is refused here
        except ValueError as error:
            raise ContractError(f"{path}: not readable as JSON: {error}") from error
        except RecursionError:
            raise ContractError(f"{path}: not readable as JSON: it is nested too deeply") from None
        if not isinstance(value, dict | None):
            raise ContractError(f"{path}: accepted: a JSON object, it holds {type(value).__name__}")
        return value or {}

    def _text(self, file: str, key: str) -> str | None:
        value = self._config(file).get(key)
        if not isinstance(value, str | None) or not _may_be_a_path(value or ""):
            accepted = f"text, up to {MAX_NAME_BYTES} bytes between slashes, no null character"
            raise self._refusal(file, key, value, accepted)
        return value

    def _refusal(self, file: str, key: str, value: Any, accepted: str) -> ContractError:
        shown = json.dumps(redacted_tree(value))[:MAX_SHOWN_CHARACTERS]
        return ContractError(f"{self._config_file(file)}: {key[:MAX_SHOWN_CHARACTERS]} = {shown}: accepted: {accepted}")

    def _config_file(self, name: str) -> Path:
        return self.base / "input" / "config" / f"{name}.json"


def _entries(folder: Path) -> list[str] | None:
    """The sorted names in a folder; None if it does not exist."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ContractError(f"{folder}: cannot be read: {error.strerror}; check who may read it") from error


def _may_be_a_path(text: str) -> bool:
    return not NOT_IN_A_PATH.search(text) and max(len(name.encode()) for name in text.split("/")) <= MAX_NAME_BYTES


def _is_reserved(name: str) -> bool:
    return name.startswith(("sagemaker_", "_")) or name == "default_user_module_name"
