"""What the verbs share: arguments, log, failure file, exit codes, ranks. Called by `train`, `init` and the others.

Modules that load torch are imported after the experiment file is checked, so that a misspelt key is reported within a
second, and a broken installation leaves a failure file.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from robosat_pink.container import hardware
from robosat_pink.container.contract import Container
from robosat_pink.container.failure_file import user_message
from robosat_pink.container.log_lines import ON_TERMINAL, shown_in
from robosat_pink.container.pid1 import run_as_init
from robosat_pink.container.redaction import SECRET_NAME, RedactingFormatter
from robosat_pink.container.some_names import some_names
from robosat_pink.container.stop_request import Stopped, StopRequest
from robosat_pink.distributed import launcher
from robosat_pink.errors import ConfigError, RobosatError

if TYPE_CHECKING:
    from robosat_pink.config import Config
    from robosat_pink.distributed.launcher import ProcessRank

log = logging.getLogger("robosat_pink")

STARTS_AGAIN = "the same command starts again"
OVERRIDES = "override a key, such as model.lr=0.001"


@dataclass(frozen=True)
class Verb:
    name: str
    purpose: str  # one line for --help
    checks: str  # what --check does, for --help
    example: str  # a command, for --help
    resumes: Callable[[Container], str]  # how to go on after a stop, for the log
    run: Callable[[ProcessRank, Config, Container, StopRequest], None]  # in each rank
    check: Callable[[Config, Container, StopRequest], None]
    summarise: Callable[[Sequence[str], Container, StopRequest], None] | None = None  # of results in these folders
    trains: bool = False  # it writes a model and resume points


def main(verb: Verb, argv: Sequence[str] | None = None) -> int:
    """Do as the container's experiment file says. Returns the exit code; on failure, writes the failure file."""
    container = Container.here()
    argv = sys.argv[1:] if argv is None else argv
    arguments = None

    def run(stop: StopRequest) -> int:
        nonlocal arguments
        arguments = parse_arguments(verb, argv)
        return run_or_check(verb, arguments, argv, container, stop)

    def fail(error: BaseException) -> None:
        if arguments is None or arguments.check is None:
            container.write_failure(error)

    def resumes() -> str:
        is_check = arguments is not None and arguments.check is not None
        return STARTS_AGAIN if is_check else verb.resumes(container)

    return logged(run, resumes, fail)


def logged(
    run: Callable[[StopRequest], int],
    resumes: Callable[[], str],
    fail: Callable[[BaseException], None] = lambda error: None,
) -> int:
    """The exit code of `run`, with the log on stdout. An error is logged and given to `fail`; a stop ends with 0."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(RedactingFormatter("%(message)s"))
    handler.addFilter(shown_in("terminal" if Container.here().is_interactive(sys.stdout) else "log"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    try:
        with StopRequest() as stop:
            return run(stop)
    except Stopped as stopped:
        log.info("stopped %s; %s", stopped.reason, resumes())
        return 0
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # including obstore's panics, which do not derive from Exception
        log.error("error: %s", user_message(error), exc_info=not isinstance(error, RobosatError))  # noqa: TRY400
        fail(error)
        return getattr(error, "exit_code", 1)


def run_or_check(
    verb: Verb, arguments: argparse.Namespace, argv: Sequence[str], container: Container, stop: StopRequest
) -> int:
    if arguments.check is None:
        container.prepare(verb.trains)
    if verb.summarise and arguments.summary:
        verb.summarise(arguments.summary, container, stop)
        return 0
    if {launcher.PARENT, "RANK"}.isdisjoint(os.environ):  # else the ranks of this run would count as other programs
        hardware.share_cores()
    with stop.postponed():  # a stop inside an import of C++ code would abort the process
        from robosat_pink.config import load_config
    path = arguments.check or arguments.config or container.experiment_file()
    hyperparameters = container.hyperparameters()
    config = load_config(path, hyperparameters, arguments.overrides)
    written = container.model / "config.yml" if verb.trains and arguments.check is None else None
    origin = experiment_line(path, {**hyperparameters, **arguments.overrides}, written)
    if arguments.check is not None:
        log.info(origin, extra=ON_TERMINAL)
        verb.check(config, container, stop)
        return 0
    launcher.end_with_parent(os.environ)
    process = launcher.rank_from_environment(os.environ)
    ranks = [process] if process else launcher.ranks_of_this_host(container, config.runtime)
    if len(ranks) > 1:
        return launcher.run_ranks(f"robosat_pink.{verb.name}", ranks, argv, stop, container)
    if not ranks[0].rank:
        log.info(origin, extra=ON_TERMINAL)
    verb.run(ranks[0], config, container, stop)
    return 0


def experiment_line(path: str | Path, overridden: Iterable[str], written: Path | None) -> str:
    """Where the experiment is from, for a person; a log has its whole text. A training has `written` it, too."""
    keys = some_names(sorted(overridden), none="")
    changes = f", overridden: {keys}" if keys else ""
    return f"experiment: {path}{changes}" + (f"; as it runs, with all defaults: {written}" if written else "")


def log_as(process: ProcessRank) -> None:
    """Rank 0 logs for all; the others log only warnings and errors."""
    if process.rank:
        (handler,) = log.root.handlers
        handler.setFormatter(RedactingFormatter(f"rank {process.rank}: %(message)s"))
        log.root.setLevel(logging.WARNING)


def parse_arguments(verb: Verb, argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; raises ConfigError. The verb, which SageMaker may pass, is ignored."""
    asks_for_help = not {"-h", "--help"}.isdisjoint(argv)
    if verb.trains and list(argv[:1]) == ["--check"] and asks_for_help:  # what start.sh makes of `check --help`
        check_parser().parse_args(["--help"])
    parser = Parser(verb.name, verb.purpose, verb.example)
    parser.add_argument("--config", metavar="FILE", help="an experiment file, instead of the one in the channel config")
    parser.add_argument("--check", metavar="FILE", nargs="?", const="", help=verb.checks)
    if verb.summarise:
        summary = "instead, put the metrics.json of these folders together, such as those of k folds"
        parser.accepted = f"[--summary FOLDER ...] {parser.accepted}"
        parser.add_argument("--summary", metavar="FOLDER", nargs="+", help=summary)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    arguments = parser.parse_intermixed_args([argument for argument in argv if argument != verb.name])
    if "=" in (arguments.check or ""):  # an override that followed --check without a file
        arguments.overrides.append(arguments.check)
        arguments.check = ""
    for before, override in itertools.pairwise(["", *arguments.overrides]):
        if "=" not in override:  # show only one word: people also type `password abc` and `password=ab c`
            shown = "***" if SECRET_NAME.search(before.partition("=")[0]) else override.partition(" ")[0]
            raise ConfigError(f"command line: {shown}: accepted: KEY=VALUE, such as model.epochs=1")
    arguments.overrides = dict(override.split("=", 1) for override in arguments.overrides)
    return arguments


def check_parser() -> Parser:
    """For `start.sh check --help`; the arguments of a check are those of the other verbs after --check."""
    purpose = "Say what `train` would find and take, and train nothing: pairs, classes, bands, time, disk."
    parser = Parser("check", purpose, "bash start.sh check mine.yml model.epochs=20", module="train --check")
    parser.add_argument(
        "file", nargs="?", metavar="FILE", help="an experiment file, instead of the one in the channel config"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    return parser


def leave(work: Callable[[], int]) -> NoReturn:
    """Do it as a container's first process would, and end without waiting for threads.

    A thread that retries a silent store takes another minute.
    """
    code = run_as_init(work)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Parser(argparse.ArgumentParser):
    """Raises ConfigError, with what is `accepted`, for arguments that are wrong."""

    accepted = "[--config FILE] [--check [FILE]] [KEY=VALUE ...]"

    def __init__(self, verb: str, purpose: str, example: str, module: str = "") -> None:
        super().__init__(
            prog=f"start.sh {verb}",
            description=purpose,
            epilog=f"example:\n  {example}\n\nin an image: docker run IMAGE {verb}; where the package is installed: "
            f"python -m robosat_pink.{module or verb}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}; accepted: {self.accepted}")
