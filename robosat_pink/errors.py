"""The errors that a user can mend, and their exit codes. Any other error is a defect here and exits with 1.

RobosatError         1   all that no code below covers: a loss that is NaN or inf throughout, a worker process that died
    ConfigError      2   an impossible value in the experiment file, a hyperparameter or the command line
    DataError        3   tiles, masks, or the bucket or folder that contains them
    CheckpointError  4   weights or a resume point: absent, damaged or misfit
    ContractError    5   the /opt/ml tree: a missing channel, two experiment files, a folder that cannot be written;
                       or the machine: too little memory, no GPU, no compiler

A message says where, what it got, what is accepted, and the way out. Secrets in it are redacted.
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
