"""A file shows its old content until the new one is complete, whatever happens in between."""

import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from robosat_pink.container.atomic_write import write_atomically
from robosat_pink.errors import ContractError


def test_write_shows_the_old_content_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text("old")

    def write(file: IO[bytes]) -> None:
        file.write(b"new ")
        file.flush()
        assert path.read_text() == "old"
        assert [each.name for each in tmp_path.iterdir() if not each.name.endswith(".sagemaker-ignore")] == [path.name]
        file.write(b"content")

    write_atomically(path, write)
    assert path.read_text() == "new content"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "told"), [(OSError(28, "disk full"), ContractError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
@pytest.mark.parametrize("old", [None, "old"])
def test_write_that_fails_leaves_the_folder_as_it_was(
    tmp_path: Path, error: BaseException, told: type[BaseException], old: str | None
) -> None:
    path = tmp_path / "config.yml"
    if old is not None:
        path.write_text(old)

    def write(file: IO[bytes]) -> None:
        file.write(b"new")
        raise error

    with pytest.raises(told):
        write_atomically(path, write)
    assert [each.read_text() for each in tmp_path.iterdir()] == ([] if old is None else [old])


def test_write_that_is_killed_leaves_the_old_content_and_a_file_that_the_platform_ignores(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text("old")
    script = """
import os, pathlib, signal, sys
from robosat_pink.container.atomic_write import write_atomically
write_atomically(pathlib.Path(sys.argv[1]), lambda file: (file.write(b"new"), os.kill(os.getpid(), signal.SIGKILL)))
"""
    killed = subprocess.run([sys.executable, "-c", script, str(path)], check=False, timeout=60)
    assert killed.returncode == -9
    assert path.read_text() == "old"
    assert {each.suffix for each in tmp_path.iterdir() if each != path} <= {".sagemaker-ignore"}
