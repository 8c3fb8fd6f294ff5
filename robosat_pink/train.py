"""Trains: `python -m robosat_pink.train [--config FILE] [--check [FILE]] [KEY=VALUE ...]`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robosat_pink import command
from robosat_pink.container.contract import Container
from robosat_pink.container.failure_file import user_message
from robosat_pink.container.stop_request import Stopped, StopRequest
from robosat_pink.errors import RobosatError

if TYPE_CHECKING:
    from robosat_pink.config import Config
    from robosat_pink.distributed.launcher import ProcessRank
    from robosat_pink.training.run import RunOutcome

log = logging.getLogger("robosat_pink")


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the container's experiment file says. Returns the exit code; on failure, writes the failure file."""
    return command.main(TRAIN, argv)


def train(process: ProcessRank, config: Config, container: Container, stop: StopRequest) -> None:
    """Train as one of the ranks. Rank 0 makes the report."""
    with stop.postponed():
        from robosat_pink.distributed import process_group
        from robosat_pink.training import run
    command.log_as(process)
    with process_group.joined(container, process, config.runtime.peer_timeout_s, stop) as world:
        outcome = run.run(config, container, stop, world)
        world.release()
        if world.is_rank_zero:
            evaluate_and_report(outcome, container, stop)
            outcome.loggers.close()
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
        outcome.loggers.worst_tiles(container.output_data / "tiles", outcome.state.best_epoch)
    except Stopped:
        log.warning("warning: stopped by a signal before the report was made; model and metrics are complete")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # obstore's panics do not derive from Exception
        is_defect = not isinstance(error, RobosatError)
        message = user_message(error)
        log.warning("warning: no report: %s; model and metrics are complete", message, exc_info=is_defect)


def check(config: Config, container: Container, stop: StopRequest) -> None:
    with stop.postponed():
        from robosat_pink import check
    check.check(config, container)


def resumes(container: Container) -> str:
    """How to go on after a stop: a run resumes only from the points that it left."""
    try:
        folder = container.checkpoints
        if folder is None:
            return f"there is no folder {container.base / 'checkpoints'} for resume points: {command.STARTS_AGAIN}"
        has_points = any(folder.glob("resume-*.pth"))
    except (OSError, RobosatError):  # the next start says why
        has_points = False
    return f"the same command resumes from {folder}" if has_points else command.STARTS_AGAIN


TRAIN = command.Verb(
    name="train",
    purpose="Train as the experiment file in /opt/ml/input/data/config says. SAGEMAKER_BASE_DIR moves /opt/ml.",
    checks="train nothing, but say what a run would find and take",
    example="SAGEMAKER_BASE_DIR=$PWD/job bash start.sh train model.epochs=20",
    resumes=resumes,
    run=train,
    check=check,
    trains=True,
)

if __name__ == "__main__":
    command.leave(main)
