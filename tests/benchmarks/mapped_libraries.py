"""Which of the installed libraries a command loads, and how much of site-packages that is: for the image's size.

    python tests/benchmarks/mapped_libraries.py [--largest 20] COMMAND [ARGUMENT ...]

Runs the command, and looks five times a second at what it and its descendants map (proc(5), maps). Files that are
opened and closed again, such as Python's own, are not seen: only libraries count. Sizes in MB, of files below the
site-packages of the Python that runs this; a library stays listed by the name of its file, links resolved.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from index_memory import descendants
from machine import describe_machine

PAUSE_S = 0.2
PACKAGES = Path(sysconfig.get_path("purelib")).resolve()


def mapped(process: int) -> set[Path]:
    """The files below site-packages that the process and its descendants map now."""
    files: set[Path] = set()
    members = [process]
    with contextlib.suppress(OSError):  # it has just ended
        members += descendants(process)
    for member in members:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{member}/maps").read_text().splitlines()
            files |= {Path(line.split(None, 5)[5]) for line in lines if line.endswith(".so") or ".so." in line}
    return {file.resolve() for file in files if file.is_relative_to(PACKAGES)}


def installed() -> dict[Path, float]:
    """Megabytes of every file below site-packages."""
    files = (path for path in PACKAGES.rglob("*") if path.is_file() and not path.is_symlink())
    return {path: path.stat().st_size / 1e6 for path in files}


def is_library(path: Path) -> bool:
    return path.suffix == ".so" or ".so." in path.name


def main() -> None:
    parser = argparse.ArgumentParser(description="Which of the installed libraries a command loads.")
    parser.add_argument("--largest", type=int, default=20, help="libraries of each list that are shown")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    loaded: set[Path] = set()
    with subprocess.Popen(options.command) as run:
        while run.poll() is None:
            loaded |= mapped(run.pid)
            time.sleep(PAUSE_S)
    if run.returncode:
        sys.exit(run.returncode)
    sizes = installed()
    libraries = {path for path in sizes if is_library(path)}
    print(
        f"site-packages: {sum(sizes.values()):.0f} MB, of which libraries {sum(map(sizes.__getitem__, libraries)):.0f}"
    )
    for name, paths in (
        ("loaded", libraries & loaded),
        ("not loaded", libraries - loaded),
        ("else", {*sizes} - libraries),
    ):
        print(f"{name}: {len(paths)} files, {sum(sizes[path] for path in paths):.0f} MB")
        for path in sorted(paths, key=sizes.__getitem__, reverse=True)[: options.largest]:
            print(f"  {sizes[path]:8.1f}  {path.relative_to(PACKAGES)}")
    print(describe_machine())


if __name__ == "__main__":
    main()
