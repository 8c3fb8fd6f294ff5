"""The /opt/ml contract at run time: where things are, what the platform says, how failure is told.

Nothing else knows a path below /opt/ml. SAGEMAKER_BASE_DIR moves the whole tree, for tests and local runs. The contract
is described in the Amazon SageMaker developer guide, "How Amazon SageMaker runs your training image".
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from robosat_pink.container.atomic_write import TEMPORARY, check_writable, read_regular, text_of, write_atomically
from robosat_pink.container.redaction import redacted, redacted_tree
from robosat_pink.container.some_names import some_names
from robosat_pink.errors import ContractError, RobosatError

log = logging.getLogger(__name__)

EXPERIMENT_SUFFIXES = (".yml", ".yaml", ".json", ".toml")
MOST_CONFIG_BYTES = 10**6  # of a file that the platform writes: 100 hyperparameters of up to 2,500 characters
SHOWN, MOST_SHOWN = 20, 200  # names, and characters of a value, in a message
# Or an address; lengths are RFC 1035's.
HOST = re.compile(r"(?!.{254})[A-Za-z0-9_:-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
UNUSABLE = re.compile("[\0\ud800-\udfff]")  # in a path
MOST_NAME_BYTES = 255  # of a file or folder
FAILURE_CAUSE_CHARACTERS = 900
FAILURE_CHARACTERS = 1024  # what the platform keeps of the failure file


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
    def checkpoints(self) -> Path | None:
        """Where resume points go: where the job says, or the usual folder if it is there; otherwise None."""
        named = self._text("checkpointconfig", "LocalPath")
        usual = self.base / "checkpoints"
        return Path(named) if named else usual if usual.is_dir() else None

    def channels(self) -> dict[str, Path]:
        """The input channels by name. Without inputdataconfig.json (plain docker), the folders that are there."""
        data = self.base / "input" / "data"
        declared = self._config("inputdataconfig")
        for name, channel in declared.items():
            if not isinstance(channel, dict | None) or not _may_be_a_path(name):
                accepted = (
                    f"a JSON object for each channel, whose name is that of a folder, up to {MOST_NAME_BYTES} bytes"
                )
                raise self._refusal("inputdataconfig", name, channel, accepted)
            if (channel or {}).get("TrainingInputMode") == "Pipe":
                raise ContractError(f"channel {name!r} is in Pipe mode, which has no files; use File or FastFile mode")
        if not declared:
            declared = {name: {} for name in _entries(data) or () if (data / name).is_dir()}
        return {name: data / name for name in declared}

    def experiment_file(self) -> Path:
        """The one experiment file in the `config` channel."""
        folder = self.base / "input" / "data" / "config"
        entries = _entries(folder)
        if entries is None:
            raise ContractError(
                f"{folder} does not exist: put one experiment file there (for a SageMaker job: a channel named "
                "config), or name one by --config FILE"
            )
        files = [name for name in entries if name.endswith(EXPERIMENT_SUFFIXES) and not name.startswith(".")]
        if len(files) != 1:
            raise ContractError(
                f"{folder} must hold exactly one experiment file ({', '.join(EXPERIMENT_SUFFIXES)}), it holds "
                f"{some_names(entries, SHOWN, 'nothing')}; "
                "note that an S3 prefix brings every object whose key starts with it"
            )
        return folder / files[0]

    def hosts(self) -> tuple[tuple[str, ...], str]:
        """All hosts of the job in order, and this one. Only the two documented keys are relied on."""
        named = self._config("resourceconfig").get("hosts") or ["localhost"]
        is_list = isinstance(named, list) and all(isinstance(host, str) and HOST.fullmatch(host) for host in named)
        if not is_list or len(set(named)) < len(named):
            raise self._refusal("resourceconfig", "hosts", named, "a list of the names of all hosts, each once")
        hosts = tuple(sorted(named))
        current = self._text("resourceconfig", "current_host") or hosts[0]
        if current not in hosts:
            raise ContractError(
                f"resourceconfig.json: current_host {current[:MOST_SHOWN]!r} is none of the hosts "
                f"{', '.join(hosts)[:MOST_SHOWN]}"
            )
        return hosts, current

    def network_interface(self) -> str | None:
        """Which the hosts of the job talk to each other over, if the platform says so."""
        return self._text("resourceconfig", "network_interface_name")

    def hyperparameters(self) -> dict[str, str]:
        """Dotted keys to text, without the names that SageMaker and its estimators reserve.

        The platform writes nothing but text; a file written by hand may hold numbers and objects.
        """
        found = {name: value for name, value in self._config("hyperparameters").items() if not _is_reserved(name)}
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items()}

    def is_interactive(self) -> bool:
        """Whether a person watches: on a terminal, but not on the one that SageMaker's local mode attaches."""
        return sys.stderr.isatty() and not (self.base / "input" / "config" / "resourceconfig.json").exists()

    def prepare(self) -> None:
        """Make the output folders and clear what an earlier attempt left half-written or failed with."""
        for folder in filter(None, (self.model, self.output_data, self.checkpoints)):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ContractError(f"{folder} cannot be made: {error.strerror}; set SAGEMAKER_BASE_DIR?") from error
            check_writable(folder)
        leftovers = [
            each for folder in filter(None, (self.model, self.checkpoints)) for each in folder.glob(f"*{TEMPORARY}")
        ]
        for leftover in (*leftovers, self._failure):
            try:
                leftover.unlink(missing_ok=True)
            except OSError as error:
                raise ContractError(
                    f"{leftover} cannot be removed: {error.strerror}; set SAGEMAKER_BASE_DIR?"
                ) from error

    def write_failure(self, error: BaseException) -> None:
        """Tell the platform why: the cause first, the end of the traceback in what room is left.

        What another process of this host has told of itself says more than what is told of it here.
        """
        if getattr(error, "is_of_another", False) and self._failure.exists():
            return
        text = failure_text(error)
        try:
            self._failure.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._failure, lambda file: file.write(text.encode("ascii")))
        except (OSError, ContractError) as no_room:
            log.error("error: there is no failure file: %s", no_room)  # noqa: TRY400

    @property
    def _failure(self) -> Path:
        return self.base / "output" / "failure"

    def _config(self, name: str) -> Mapping[str, Any]:
        path = self._config_file(name)
        try:
            data = read_regular(path, MOST_CONFIG_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise ContractError(f"{path}: cannot be read: {error.strerror}") from error
        try:
            value = json.loads(text_of(data) or "{}")
            json.dumps(value)  # as `hyperparameters` does with what is in it
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
            accepted = f"text that may be a path: up to {MOST_NAME_BYTES} bytes between slashes, no null character"
            raise self._refusal(file, key, value, accepted)
        return value

    def _refusal(self, file: str, key: str, value: Any, accepted: str) -> ContractError:
        shown, key = json.dumps(redacted_tree(value))[:MOST_SHOWN], key[:MOST_SHOWN]
        return ContractError(f"{self._config_file(file)}: {key} = {shown}: accepted: {accepted}")

    def _config_file(self, name: str) -> Path:
        return self.base / "input" / "config" / f"{name}.json"


class Stopped(BaseException):
    """The platform, or a person, wants the run to end. No error, and so nothing that `except Exception` may catch."""

    BY_SIGNAL = "by a signal"  # then the platform ends the process soon; for other reasons there is time

    def __init__(self, reason: str = BY_SIGNAL, is_agreed: bool = False) -> None:
        """`is_agreed`: all processes of the run stop at the same step, and nobody has to be told."""
        super().__init__(reason)
        self.reason, self.is_agreed = reason, is_agreed


class StopRequest:
    """SIGTERM or SIGINT, as a question that the loop asks after each step.

    Before the loop, where there is nothing to save, a signal raises Stopped at once. A second one of its kind ends the
    process; of the other kind it does not, for torchrun sends SIGTERM to whom a terminal has sent SIGINT.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.requested = False
        self.waits_to_be_asked = False
        self._arrived_kinds: set[int] = set()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._arrived) for number in self.SIGNALS}
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self.SIGNALS)  # start.sh may have had them wait till now
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in getattr(self, "_before", {}).items():
            signal.signal(number, handler)

    def _arrived(self, number: int, frame: object) -> None:
        if number in self._arrived_kinds:
            os._exit(128 + number)
        self._arrived_kinds.add(number)
        self.requested = True
        if not self.waits_to_be_asked:
            raise Stopped

    @contextlib.contextmanager
    def postponed(self) -> Iterator[None]:
        """For imports: extension modules that are stopped in the middle of theirs end the process by an abort."""
        self.waits_to_be_asked = True
        yield
        self.waits_to_be_asked = False
        self.raise_if_requested()

    def raise_if_requested(self) -> None:
        if self.requested:
            raise Stopped


def _entries(folder: Path) -> list[str] | None:
    """Sorted names, or None where there is no such folder."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ContractError(f"{folder}: cannot be read: {error.strerror}; check who may read it") from error


def _may_be_a_path(text: str) -> bool:
    return not UNUSABLE.search(text) and max(len(each.encode()) for each in text.split("/")) <= MOST_NAME_BYTES


def cause_of(error: BaseException) -> str:
    """What went wrong, in words for a user; a defect also says its kind."""
    return str(error) if isinstance(error, RobosatError) else f"{type(error).__name__}: {error}"


def failure_text(error: BaseException) -> str:
    """At most 1,024 ASCII characters: the cause within the first 900, then the end of the traceback."""
    cause = redacted(cause_of(error)).encode("ascii", "backslashreplace").decode()[:FAILURE_CAUSE_CHARACTERS]
    trace = redacted("".join(traceback.format_exception(error))).encode("ascii", "backslashreplace").decode()
    room = FAILURE_CHARACTERS - len(cause) - 2
    return f"{cause}\n\n{trace[-room:]}"


def _is_reserved(name: str) -> bool:
    return name.startswith(("sagemaker_", "_")) or name == "default_user_module_name"
