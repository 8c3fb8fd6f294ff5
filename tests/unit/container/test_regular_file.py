"""Local files are read up to a limit, in no more memory than they need."""

import tracemalloc
from pathlib import Path

import pytest

from robosat_pink.container.regular_file import CHUNK_BYTES, read_regular


def test_reading_takes_no_more_memory_than_the_file_needs(tmp_path: Path) -> None:
    path = tmp_path / "resume.pth"
    path.write_bytes(bytes(range(256)) * 40)
    tracemalloc.start()
    content = read_regular(path, 8 * 10**9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert content == path.read_bytes()
    assert peak < 4 * CHUNK_BYTES


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
