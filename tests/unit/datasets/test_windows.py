"""The windows of an image, worked out by hand."""

import pytest

from robosat_pink.datasets import windows as module
from robosat_pink.datasets.windows import Window, windows


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIDE", 100)
    monkeypatch.setattr(module, "CONTEXT", 12)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, [Window(0, 16, 0, 1)]),
        (95, [Window(0, 96, 0, 95)]),
        (96, [Window(0, 96, 0, 96)]),  # 100 holds 96, a multiple of 16
        (97, [Window(0, 96, 0, 32), Window(16, 112, 32, 97)]),  # the last ends at 112, the next multiple
        (160, [Window(0, 96, 0, 80), Window(64, 160, 80, 160)]),  # 12 becomes 16: a step is 96 - 2 * 16
        (170, [Window(0, 96, 0, 80), Window(64, 160, 80, 96), Window(80, 176, 96, 170)]),
    ],
)
def test_windows_are_of_one_length_lie_on_multiples_and_keep_each_pixel_once(size: int, expected: list[Window]) -> None:
    assert windows(size, 16) == expected


@pytest.mark.parametrize("multiple", [1, 16, 32])
def test_kept_pixels_have_context_unless_the_image_ends_there(multiple: int) -> None:
    for size in range(1, 400, 7):
        axis = windows(size, multiple)
        assert [window.first for window in axis] == [0, *(window.last for window in axis[:-1])]
        assert axis[-1].last == size <= axis[-1].end
        for window in axis:
            assert window.start % multiple == window.end % multiple == 0
            assert window.first - window.start >= 12 or window.start == window.first == 0
            assert window.end - window.last >= 12 or window.last == size
