"""The errors a user can mend. Anything else that is raised is a defect of this package and exits with 1.

RobosatError
    ConfigError      2   the experiment file, a hyperparameter or the command line says something impossible
    DataError        3   tiles, masks or the place they are read from
    CheckpointError  4   weights or a resume point that do not fit
    ContractError    5   the /opt/ml tree: a missing channel, two experiment files, a folder that cannot be written

A message says where, what was found there, what is accepted, and the way out. It shows no secret.
"""

from robosat_pink.container.redaction import redacted


class RobosatError(Exception):
    exit_code = 1

    def __init__(self, text: str = "") -> None:
        super().__init__(redacted(text))


class ConfigError(RobosatError):
    exit_code = 2


class DataError(RobosatError):
    exit_code = 3


class CheckpointError(RobosatError):
    exit_code = 4


class ContractError(RobosatError):
    exit_code = 5
