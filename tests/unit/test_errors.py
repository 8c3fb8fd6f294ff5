"""What messages of errors have in common."""

from robosat_pink.errors import some_of


def test_some_of_names_says_how_many_are_left_out() -> None:
    assert some_of([]) == ""
    assert some_of(["a", "b"], 2) == "a, b"
    assert some_of(["a", "b", "c", "d"], 2) == "a, b and 2 more"
