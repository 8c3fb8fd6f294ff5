"""Drafts an experiment file for tiles: `python -m robosat_pink.init FOLDER [--to FILE] [--images …] [--masks …]`."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from robosat_pink import command
from robosat_pink.container import hardware
from robosat_pink.container.atomic_write import check_writable, write_atomically
from robosat_pink.container.contract import Container
from robosat_pink.container.stop_request import StopRequest
from robosat_pink.errors import ConfigError, RobosatError

log = logging.getLogger("robosat_pink")

DEFAULT = "mine.yml"
SUFFIXES = (".yml", ".yaml")
LAY_OUT = "mkdir -p job/input/data/config job/checkpoints; cp {file} job/input/data/config"
PACKAGE = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> int:
    """Draft an experiment, check it, and write it if it passes. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return command.logged(lambda stop: run(argv, stop), lambda: "nothing was written")


def run(argv: Sequence[str], stop: StopRequest) -> int:
    arguments = parse_arguments(argv)
    target = Path(arguments.to)
    refuse_unwritable(target)
    hardware.share_cores()
    with stop.postponed():  # a stop inside an import of C++ code would abort the process
        from robosat_pink import check
        from robosat_pink.config import load_config
        from robosat_pink.drafting.draft import draft
        from robosat_pink.drafting.text import TODO
    drafted = draft(arguments.folder, arguments.images, arguments.masks)
    for todo in drafted.todos:
        log.warning("%s: %s", TODO, todo)
    content = drafted.text.encode()
    try:
        check.check(load_config(target, content=content), Container.here())
    except RobosatError:
        log.info("the draft does not pass this check, and is not written")
        raise
    refuse_existing(target)  # another process may have written it meanwhile
    write_atomically(target, lambda file: file.write(content))
    log.info("%s is written; its comments say why each key is so", target)
    if drafted.todos:
        log.info("what is yours to decide begins with %s there: %d", TODO, len(drafted.todos))
    log.info(
        "to train: %s; %s", LAY_OUT.format(file=shlex.quote(str(target))), train_command(PACKAGE, Path(sys.prefix))
    )
    return 0


def train_command(package: Path, environment: Path) -> str:
    """How to train in ./job: by start.sh in a clone, by docker where this is the image, else by the package."""
    base = "SAGEMAKER_BASE_DIR=$PWD/job"
    script = package.parent / "start.sh"
    if script.exists():
        shorter = min(str(script), os.path.relpath(script), key=len)
        return f"{base} bash {shlex.quote(shorter)} train"
    if (environment.parent / "start.sh").exists():
        return 'docker run --rm -v "$PWD/job:/opt/ml" IMAGE train, with --gpus all where there is a GPU'
    return f"{base} python -m robosat_pink.train"


def refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise ConfigError(f"command line: {target} exists, and is not overwritten; name another file by --to FILE")


def refuse_unwritable(target: Path) -> None:
    """Raises ConfigError or ContractError if the file cannot be written, before anything is read."""
    refuse_existing(target)
    if not target.parent.is_dir():
        raise ConfigError(f"command line: --to {target}: there is no folder {target.parent}; make it, or name another")
    check_writable(target.parent)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; raises ConfigError."""
    purpose = "Write an experiment file for tiles, with a comment for each choice, and check it."
    parser = _Parser("init", purpose, "bash start.sh init ./tiles --to mine.yml")
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="where the tiles are, or s3://BUCKET/PREFIX")
    parser.add_argument("--to", default=DEFAULT, metavar="FILE", help=f"the file to write (default: {DEFAULT})")
    parser.add_argument("--images", metavar="FOLDER", help="where the images are, if that cannot be told")
    parser.add_argument("--masks", metavar="FOLDER", help="where the masks are, if that cannot be told")
    arguments = parser.parse_args(argv)
    if not arguments.folder and not (arguments.images and arguments.masks):
        parser.error("names no folder of tiles")
    if not arguments.to.lower().endswith(SUFFIXES):
        raise ConfigError(f"command line: --to {arguments.to}: accepted: a name that ends with {' or '.join(SUFFIXES)}")
    return arguments


class _Parser(command.Parser):
    accepted = "FOLDER or s3://BUCKET/PREFIX, [--to FILE] [--images FOLDER] [--masks FOLDER]"


if __name__ == "__main__":
    command.leave(main)
