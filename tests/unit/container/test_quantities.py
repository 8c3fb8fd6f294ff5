"""Durations, times, sizes and counts in words."""

import time

import pytest

from robosat_pink.container.quantities import clock, count, duration, size


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.42, "0.4 s"),
        (59.9, "59.9 s"),
        (59.97, "1 min 00 s"),
        (60, "1 min 00 s"),
        (605, "10 min 05 s"),
        (5399, "1 h 29 min"),
        (36000, "10 h 00 min"),
    ],
)
def test_duration_has_two_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_end_on_another_day_has_its_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000)  # 2027-01-15 08:00 UTC
    assert clock(3600) == "09:00 UTC"
    assert clock(20 * 3600) == "2027-01-16 04:00 UTC"


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (2**26, "67.1 MB"),
        (999_960_000, "1.0 GB"),
        (25.25e9, "25.2 GB"),
        (1234e12, "1234.0 TB"),
    ],
)
def test_size_has_a_unit_of_thousands(num_bytes: float, words: str) -> None:
    assert size(num_bytes) == words


def test_count_has_its_thousands_apart_and_its_noun_in_the_right_number() -> None:
    assert count(1234567) == "1,234,567"
    assert (count(0, "tile"), count(1, "tile"), count(1000, "tile")) == ("0 tiles", "1 tile", "1,000 tiles")
    assert (count(1, "batch", "batches"), count(2, "batch", "batches")) == ("1 batch", "2 batches")
