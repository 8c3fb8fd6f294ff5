"""Evaluates a model: `python -m robosat_pink.evaluate [--config FILE] [--check [FILE]] [KEY=VALUE ...]`.

`--summary FOLDER [FOLDER ...]` puts several evaluations together instead, such as those of k folds.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robosat_pink import command
from robosat_pink.container.contract import Container
from robosat_pink.container.stop_request import StopRequest

if TYPE_CHECKING:
    from robosat_pink.config import Config
    from robosat_pink.distributed.launcher import ProcessRank

log = logging.getLogger("robosat_pink")


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the container's experiment file says. Returns the exit code; on failure, writes the failure file."""
    return command.main(EVALUATE, argv)


def evaluate(process: ProcessRank, config: Config, container: Container, stop: StopRequest) -> None:
    """Evaluate on rank 0: the results of single tiles are not gathered. The other ranks have nothing to do."""
    command.log_as(process)
    if process.rank:
        return
    if process.size > 1:
        log.info("evaluate takes one of the %d processes", process.size)
    with stop.postponed():
        from robosat_pink.prediction import evaluation
    evaluation.run(config, container, stop)


def check(config: Config, container: Container, stop: StopRequest) -> None:
    with stop.postponed():
        from robosat_pink.prediction import evaluation
    evaluation.check(config, container)


def summarise(folders: Sequence[str], container: Container, stop: StopRequest) -> None:
    with stop.postponed():
        from robosat_pink.prediction import comparison
    comparison.summarise(folders, container.output_data / "summary.json")


EVALUATE = command.Verb(
    name="evaluate",
    purpose="Say how good the model of the section predict is on tiles with masks. SAGEMAKER_BASE_DIR moves /opt/ml.",
    checks="evaluate nothing, but say what there is to evaluate",
    example="SAGEMAKER_BASE_DIR=$PWD/job bash start.sh evaluate predict.model=job/model predict.tiles=holdout",
    resumes=lambda container: command.STARTS_AGAIN,
    run=evaluate,
    check=check,
    summarise=summarise,
)

if __name__ == "__main__":
    command.leave(main)
