"""The page of the report: what can be said of it without a run."""

import re

from robosat_pink.report import page
from robosat_pink.report.appearance import STYLE


def luminance(red: int, green: int, blue: int) -> float:
    """Of a color of sRGB, 0 to 1: WCAG 2.2, "relative luminance"."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (red / 255, green / 255, blue / 255)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def color(text: str) -> tuple[int, int, int]:
    """#fff, #1d2127 or 66,146,198."""
    digits = text.removeprefix("#")
    if digits == text:
        red, green, blue = map(int, text.split(","))
    else:
        pairs = [2 * each for each in digits] if len(digits) == 3 else re.findall("..", digits)
        red, green, blue = (int(each, 16) for each in pairs)
    return red, green, blue


def test_ink_of_a_confusion_can_be_read_whatever_the_share() -> None:
    """A contrast of 4.5, WCAG's AA for text of any size."""
    inherited = re.search(r"--ink: (#\w+);", STYLE)
    assert inherited is not None
    grounds = []
    for thousandths in range(1001):
        cell = page._heat(1, thousandths / 1000)
        ground = re.search(r"background:rgb\(([\d,]+)\)", cell)
        assert ground is not None
        grounds.append(luminance(*color(ground[1])))
        ink = re.search(r"[;\"]color:(#\w+)", cell) or inherited
        lights = sorted((grounds[-1], luminance(*color(ink[1]))))
        assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5, thousandths
    assert grounds == sorted(grounds, reverse=True)
