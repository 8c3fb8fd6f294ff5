"""Makes a map: `python -m robosat_pink.predict [--config FILE] [--check [FILE]] [KEY=VALUE ...]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robosat_pink import command
from robosat_pink.container.contract import Container
from robosat_pink.container.stop_request import StopRequest

if TYPE_CHECKING:
    from robosat_pink.config import Config
    from robosat_pink.distributed.launcher import ProcessRank


def main(argv: Sequence[str] | None = None) -> int:
    """Predict as the container's experiment file says. Returns the exit code; on failure, writes the failure file."""
    return command.main(PREDICT, argv)


def predict(process: ProcessRank, config: Config, container: Container, stop: StopRequest) -> None:
    """Predict as one of the ranks. Rank 0 makes mosaics, manifests and page."""
    with stop.postponed():
        from robosat_pink.distributed import process_group
        from robosat_pink.prediction import run
    command.log_as(process)
    with process_group.joined(container, process, config.runtime.peer_timeout_s, stop) as world:
        run.run(config, container, stop, world)


def check(config: Config, container: Container, stop: StopRequest) -> None:
    with stop.postponed():
        from robosat_pink.prediction import run
    run.check(config, container)


PREDICT = command.Verb(
    name="predict",
    purpose="Make a map as the section predict of the experiment file says. SAGEMAKER_BASE_DIR moves /opt/ml.",
    checks="predict nothing, but say what there is to predict",
    example="SAGEMAKER_BASE_DIR=$PWD/job bash start.sh predict predict.model=job/model predict.images=my-bucket/tiles",
    resumes=lambda container: "the same command continues",
    run=predict,
    check=check,
)

if __name__ == "__main__":
    command.leave(main)
