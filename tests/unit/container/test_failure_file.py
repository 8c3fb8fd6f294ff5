"""The failure file: the message first, cut to what the platform keeps, then the end of the traceback."""

import pytest

from robosat_pink.container.failure_file import failure_text
from robosat_pink.errors import DataError


def raised(error: BaseException) -> BaseException:
    """The error with the traceback of having been raised in here."""
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def test_failure_starts_with_the_cause_and_ends_with_the_end_of_the_traceback() -> None:
    text = failure_text(raised(DataError("no tile matches; check image_bucket")))
    assert text.startswith("no tile matches; check image_bucket\n\nTraceback (most recent call last):\n")
    assert ", in raised\n    raise error\n" in text
    assert text.endswith("DataError: no tile matches; check image_bucket\n")


def test_failure_of_an_unforeseen_kind_starts_with_its_type() -> None:
    text = failure_text(raised(ZeroDivisionError("division by zero")))
    assert text.startswith("ZeroDivisionError: division by zero\n")


def test_failure_of_several_lines_keeps_them_in_order() -> None:
    assert failure_text(DataError("first\nsecond")).startswith("first\nsecond\n\n")


@pytest.mark.parametrize("length", [1, 899, 900, 901, 5000])
def test_cause_takes_at_most_900_of_at_most_1024_characters(length: int) -> None:
    cause = "".join(chr(ord("a") + index % 26) for index in range(length))
    text = failure_text(raised(DataError(cause)))
    assert text.startswith(f"{cause[:900]}\n\n")
    assert len(text) <= 1024
    assert text.endswith(f"{cause[-50:]}\n")


def test_deep_traceback_is_cut_from_its_beginning() -> None:
    def fall(depth: int) -> None:
        if depth == 0:
            raise KeyError("snow")
        stumble(depth)

    def stumble(depth: int) -> None:
        fall(depth - 1)

    with pytest.raises(KeyError) as caught:
        fall(100)
    text = failure_text(caught.value)
    assert len(text) == 1024
    assert text.startswith("KeyError: 'snow'\n\n")
    assert text.endswith("KeyError: 'snow'\n")


def test_failure_is_ascii_and_counted_after_escaping() -> None:
    text = failure_text(raised(DataError("scène ❄ " + "é" * 2000)))
    assert text.isascii()
    assert text.startswith(r"sc\xe8ne \u2744 \xe9\xe9")
    assert len(text) <= 1024
    assert len(text.split("\n")[0]) == 900
