"""The page of the report, made from plain data without a run."""

import dataclasses
import math
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from jinja2 import UndefinedError

from robosat_pink.report import page
from robosat_pink.report.error_map import ErrorMap, Shade
from robosat_pink.report.page import History, Report, SplitResult, TilePreview
from robosat_pink.report.scenes import Scene
from robosat_pink.training import metrics
from robosat_pink.training.intervals import INTERVAL_METRICS

HOSTILE = [
    "<script>alert('1')</script>",
    '"><img src="http://127.0.0.1/x.png" onerror="alert(1)">',
    "' onmouseover='alert(1)",
    "a & b &lt;i&gt;",
    "{{ 7 * 7 }} {% include 'report.css' %}",
    "two\nlines\t| and a pipe",
]


def report(text: str, classes: int = 1) -> Report:
    """A report that has the text wherever a user or a file can put one."""
    names = [f"{text} {number}" for number in range(classes)]
    size = max(classes, 2)
    confusion = np.arange(size * size).reshape(size, size)
    scores = metrics.scores(confusion, names, 0.25)
    undefined = metrics.scores(0 * confusion, names, math.nan)
    scenes = [
        Scene("val", f"better {text}", 1, 0, confusion, scores),
        Scene("val", f"worse {text}", 2345, 0, confusion, scores | {"iou": 0.0}),
        Scene("val", f"empty {text}", 0, 1, 0 * confusion, undefined),
    ]
    interval = [0.25, None] if classes == 1 else None
    numbers = scores | {
        "boundary_f1": 0.75,
        "ece": 0.125,
        "ground_tiles": 3,
        "intervals": dict.fromkeys(INTERVAL_METRICS, interval),
        "at_threshold": undefined if classes == 1 else None,
    }
    image = "data:image/png;base64,AAAA"
    tile = TilePreview(1, 0.5, text, f"15/1/{text}", f"https://www.openstreetmap.org/?{text}", text, {"image": image})
    return Report(
        title=text,
        source=f"Images of {text}",
        ended=f"Stopped {text}",
        history=History(epochs=3, best_epoch=2, curves={"loss": image}, has_symmetries=False),
        about={},
        class_names=names,
        class_colors=["#ffffff"] * size,
        metrics={"validation tiles": scores, "training, last epoch": undefined},
        baseline=f"Calling every pixel {text}.",
        splits={"val": SplitResult(numbers, confusion.tolist(), scenes, 1e-7)},
        threshold_curve=image if classes == 1 else None,
        threshold_sentences="Above 0.5.",
        threshold=0.35 if classes == 1 else None,
        reliability_curve=image,
        meanings={name: f"{name} of {text}." for name in ("interval", "boundary_f1", "ece", "threshold")},
        tiles={"best": [tile]},
        error_map=ErrorMap("<svg></svg>", "Each square is a tile.", [Shade("#fee391", "below 1 %", 2345)], 0, 7),
        split_map="<svg></svg>",
        bounds="1° N",
        dataset={"scenes": 3, "of them": text},
        remarks=[f"warning: {text}", f"note: {text}"],
        split_sizes={"train": 12345, "val": 3, "holdout": 0},
        seconds={"training": 59.94, "waiting for tiles": 0.06},
        hardware=[text, "2 CPU cores"],
        config_yaml=f"classes:\n- name: {text}\n",
    )


def test_page_without_a_training_has_no_curves_and_says_what_was_evaluated() -> None:
    whole = report("snow")
    of_training = page.render(whole)
    scores = whole.splits["val"]
    html = page.render(
        dataclasses.replace(
            whole,
            history=None,
            about={"model": "a/best.pth"},
            metrics={"evaluated tiles": scores.scores},
            splits={"evaluated": scores},
            split_sizes={"evaluated": 3},
            threshold=None,
            meanings=dict.fromkeys(("interval", "boundary_f1", "ece"), "It means."),
        )
    )
    for words in ("Curves", "best epoch 2 of 3", "The validation tiles chose", "history.csv", "classify("):
        assert words in of_training
        assert words not in html
    for words in ("<td>a/best.pth</td>", "What was evaluated", "No threshold was chosen on these tiles."):
        assert words in html
        assert words not in of_training


class Structure(HTMLParser):
    """A page's elements, with the names of their attributes, and its text and attribute values."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, *(name for name, _ in attrs)))
        self.texts += [value or "" for _, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self.elements.append((f"/{tag}",))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("classes", [1, 3])
def test_text_of_users_and_files_is_shown_and_changes_no_element(text: str, classes: int) -> None:
    shown, harmless = (Structure(page.render(report(words, classes))) for words in (text, "harmless"))
    assert shown.elements == harmless.elements
    expected = [words.replace("harmless", text) for words in harmless.texts if "harmless" in words]
    assert [words for words in shown.texts if text in words] == expected
    assert len(expected) > 20


def rows(html: str, caption: str) -> list[list[str]]:
    """The cells of a table below its head, without their elements."""
    table = html.partition(f"<span>{caption}</span>")[2].partition("</table>")[0]
    cells = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
    ]
    return [[re.sub(r"<[^>]*>", " ", cell).strip() for cell in row] for row in cells[1:]]


def test_scenes_are_listed_worst_first_and_those_without_a_score_last() -> None:
    names = [
        row[0]
        for row in rows(page.render(report("A")), "Validation tiles by scene, a directory of tiles, the worst first")
    ]
    assert names == ["worse A", "better A", "empty A", "all"]


def test_page_lists_the_worst_scenes_and_says_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_SCENES", 2)
    caption = "Validation tiles by scene, a directory of tiles, the worst first, the worst 2 of 3"
    assert [row[0] for row in rows(page.render(report("A")), caption)] == ["worse A", "better A", "all"]


def test_numbers_are_rounded_for_people_and_exact_for_programs() -> None:
    html = page.render(report("A"))
    iou = 3 / 6  # of [[0, 1], [2, 3]]
    assert f'<div><dt>IoU</dt><dd><data value="{iou}">0.5000</data></dd></div>' in html
    assert '<data value="2345">2,345</data>' in html
    assert "trained on: 12,345 tiles" in html
    assert '<data value=""><abbr title="undefined: nothing to divide by">&ndash;</abbr></data>' in html


def test_intervals_stand_beside_the_numbers_and_those_above_the_threshold() -> None:
    (iou, *_) = rows(page.render(report("A")), "Validation tiles: 95 % intervals over 3 places")
    assert iou == ["IoU", "0.5000", "0.2500", "&ndash;", "&ndash;"]
    (miou, *_) = rows(page.render(report("A", classes=3)), "Validation tiles: 95 % intervals over 3 places")
    assert len(miou) == 4
    assert rows(page.render(report("A")), "Boundaries and probabilities") == [
        ["boundary F1", "0.7500"],
        ["calibration error", "0.1250"],
    ]


def test_times_have_their_share_of_the_whole() -> None:
    assert rows(page.render(report("A")), "Where the time went") == [
        ["training", "59.9 s", "99.9%", ""],
        ["waiting for tiles", "0.1 s", "0.1%", ""],
        ["all", "1 min 00 s", "", ""],
    ]


def test_map_of_errors_has_a_legend_of_what_is_in_it() -> None:
    html = page.render(report("A"))
    assert "<p>Validation tiles. Each square is a tile. A number marks a tile that is shown below, and leads" in html
    assert '<i style="background:#fee391"></i>below 1 %: 2,345 squares</span>' in html
    assert "not evaluated: 7 squares" in html
    assert "no valid pixel" not in html
    assert '<article class="tile" id="tile-1">' in html
    assert '<a href="#square-1">1 in the map of errors</a>' in html


def test_remarks_are_sentences_and_warnings_stand_on_top() -> None:
    html = page.render(report("A"))
    assert html.index("<p>Warning: A.</p>") < html.index("<main>") < html.index('<p class="soft">Note: A.</p>')


def test_several_classes_have_their_colors_and_no_threshold() -> None:
    html = page.render(report("A", classes=3))
    assert "<dt>IoU</dt>" not in html
    assert 'id="threshold"' not in html
    assert '<span class="key"><i style="background:#ffffff"></i>A 2</span>' in html


def test_what_a_template_misses_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        page.environment().from_string("{{ titel }}").render(title="A")


def test_page_names_every_metric_in_words() -> None:
    assert set(page.DESCRIPTIONS) == set(metrics.NAMES)


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
        pairs = [2 * digit for digit in digits] if len(digits) == 3 else re.findall("..", digits)
        red, green, blue = (int(pair, 16) for pair in pairs)
    return red, green, blue


def test_ink_of_a_confusion_can_be_read_whatever_the_share() -> None:
    """A contrast of 4.5, WCAG's AA for text of any size."""
    environment = page.environment()
    elements: Any = environment.get_template("elements.html.j2").module
    inherited = re.search(r"--ink: (#\w+);", environment.get_template("report.css").render())
    assert inherited is not None
    grounds = []
    for thousandths in range(1001):
        cell = elements.heat(1, thousandths / 1000)
        ground = re.search(r"background:rgb\(([\d,]+)\)", cell)
        assert ground is not None
        grounds.append(luminance(*color(ground[1])))
        ink = re.search(r"[;\"]color:(#\w+)", cell) or inherited
        lights = sorted((grounds[-1], luminance(*color(ink[1]))))
        assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5, thousandths
    assert grounds == sorted(grounds, reverse=True)
