"""A file shows its old content until the new one is whole, whatever happens in between."""

import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import IO

import pytest

from robosat_pink.container.atomic_write import PORTION, read_regular, write_atomically
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


def test_reading_takes_no_more_memory_than_the_file_needs(tmp_path: Path) -> None:
    path = tmp_path / "resume.pth"
    path.write_bytes(bytes(range(256)) * 40)
    tracemalloc.start()
    content = read_regular(path, 8 * 10**9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert content == path.read_bytes()
    assert peak < 4 * PORTION


def test_file_is_read_up_to_what_is_accepted_even_where_it_does_not_say_its_length(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(100))
    assert read_regular(path, 100) == bytes(100)
    with pytest.raises(OSError, match="longer than the 99 bytes"):
        read_regular(path, 99)
    told = Path("/proc/self/mounts")  # of 0 bytes, it says
    assert told.stat().st_size == 0
    assert read_regular(told, 10**6) == told.read_bytes()
    with pytest.raises(OSError, match="longer than the 9 bytes"):
        read_regular(told, 9)
