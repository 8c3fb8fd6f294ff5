"""The entry point: `python -m robosat_pink.train [--config FILE] [--check [FILE]] [KEY=VALUE ...]`.

Modules that load torch are imported after the experiment file is checked, so that a misspelt key is reported within a
second, and a broken installation leaves a failure file.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from robosat_pink.container.contract import Container
from robosat_pink.container.failure_file import user_message
from robosat_pink.container.pid1 import run_as_init
from robosat_pink.container.redaction import SECRET_NAME, RedactingFormatter
from robosat_pink.container.stop_request import Stopped, StopRequest
from robosat_pink.distributed import launcher
from robosat_pink.errors import ConfigError, RobosatError

if TYPE_CHECKING:
    from robosat_pink.config import Config
    from robosat_pink.distributed.launcher import ProcessRank
    from robosat_pink.training.run import RunOutcome

log = logging.getLogger("robosat_pink")


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the container's experiment file says. Returns the exit code; on failure, writes the failure file."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(RedactingFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    container = Container.here()
    argv = sys.argv[1:] if argv is None else argv
    arguments = None
    try:
        with StopRequest() as stop:
            arguments = parse_arguments(argv)
            return train_or_check(arguments, argv, container, stop)
    except Stopped as stopped:
        log.info("stopped %s; the same command resumes if there is a folder for resume points", stopped.reason)
        return 0
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # including obstore's panics, which do not derive from Exception
        log.error("error: %s", user_message(error), exc_info=not isinstance(error, RobosatError))  # noqa: TRY400
        if arguments is None or arguments.check is None:
            container.write_failure(error)
        return getattr(error, "exit_code", 1)


def train_or_check(arguments: argparse.Namespace, argv: Sequence[str], container: Container, stop: StopRequest) -> int:
    if arguments.check is None:
        container.prepare()
    with stop.postponed():  # a stop inside an import of C++ code would abort the process
        from robosat_pink.config import load_config
    path = arguments.check or arguments.config or container.experiment_file()
    config = load_config(path, container.hyperparameters(), arguments.overrides)
    if arguments.check is not None:
        with stop.postponed():
            from robosat_pink import check
        check.check(config, container)
        return 0
    launcher.end_with_parent(os.environ)
    process = launcher.rank_from_environment(os.environ)
    ranks = [process] if process else launcher.ranks_of_this_host(container, config.runtime)
    if len(ranks) > 1:
        return launcher.run_ranks(ranks, argv, stop, container)
    train_as(ranks[0], config, container, stop)
    return 0


def train_as(process: ProcessRank, config: Config, container: Container, stop: StopRequest) -> None:
    """Train as one of the ranks. Rank 0 logs for all and makes the report; the others log only warnings and errors."""
    with stop.postponed():
        from robosat_pink.distributed import process_group
        from robosat_pink.training import run
    if process.rank:
        (handler,) = log.root.handlers
        handler.setFormatter(RedactingFormatter(f"rank {process.rank}: %(message)s"))
        log.root.setLevel(logging.WARNING)
    with process_group.joined(container, process, config.runtime.peer_timeout_s, stop) as world:
        outcome = run.run(config, container, stop, world)
        world.release()
        if world.is_rank_zero:
            evaluate_and_report(outcome, container, stop)
    if outcome.stopped:
        raise outcome.stopped


def evaluate_and_report(outcome: RunOutcome, container: Container, stop: StopRequest) -> None:
    """Evaluate the best weights tile by tile, and make the report of them.

    The training has succeeded by then, so that a failure here is only a warning.
    """
    try:
        from robosat_pink.training import final_evaluation

        best = final_evaluation.evaluate_best(outcome, container, stop)
        from robosat_pink.report import build  # imported late: a broken matplotlib costs only the report

        build.make_report(outcome, best, container)
    except Stopped:
        log.warning("warning: stopped by a signal before the report was made; model and metrics are complete")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # obstore's panics do not derive from Exception
        is_defect = not isinstance(error, RobosatError)
        message = user_message(error)
        log.warning("warning: no report: %s; model and metrics are complete", message, exc_info=is_defect)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; raises ConfigError. The word `train`, which SageMaker may pass, is ignored."""
    parser = _Parser(prog="robosat_pink.train", description="Train on tiles, as /opt/ml/input/data/config says.")
    parser.add_argument("--config", metavar="FILE", help="an experiment file instead of the config channel's")
    parser.add_argument(
        "--check", metavar="FILE", nargs="?", const="", help="train nothing, but say what a run would find and take"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="override a key, such as model.lr=0.001")
    arguments = parser.parse_intermixed_args([argument for argument in argv if argument != "train"])
    if "=" in (arguments.check or ""):  # an override that followed --check without a file
        arguments.overrides.append(arguments.check)
        arguments.check = ""
    for before, override in itertools.pairwise(["", *arguments.overrides]):
        if "=" not in override:  # show only one word: people also type `password abc` and `password=ab c`
            shown = "***" if SECRET_NAME.search(before.partition("=")[0]) else override.partition(" ")[0]
            raise ConfigError(f"command line: {shown}: accepted: KEY=VALUE, such as model.epochs=1")
    arguments.overrides = dict(override.split("=", 1) for override in arguments.overrides)
    return arguments


def leave(code: int) -> NoReturn:
    """End this process without waiting for its threads: a thread that retries a silent store takes another minute."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}; accepted: [--config FILE] [--check [FILE]] [KEY=VALUE ...]")


if __name__ == "__main__":
    leave(run_as_init(main))
