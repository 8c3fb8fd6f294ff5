"""Names in a message."""

import pytest

from robosat_pink.container.some_names import some_names


@pytest.mark.parametrize(
    ("names", "text"),
    [("", "none"), ("a", "a"), ("ab", "a, b"), ("abcde", "a, b, c, d, e"), ("abcdefg", "a, b, c, d, e and 2 more")],
)
def test_names_beyond_the_first_five_are_counted(names: str, text: str) -> None:
    assert some_names(list(names)) == text


def test_number_shown_separator_and_word_for_none_can_be_chosen() -> None:
    assert some_names(["a", "b", "c"], 2, separator="; ") == "a; b and 1 more"
    assert some_names([], none="nothing") == "nothing"
