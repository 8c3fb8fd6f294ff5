"""The report as one HTML page: from plain data to text, nothing else. Called by `report`.

The page asks for nothing: its pictures are within, its fonts the reader's, and a policy forbids the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from robosat_pink.report import previews
from robosat_pink.report.appearance import STYLE
from robosat_pink.report.elements import Html, anchor, html, paragraph, picture, section, swatch, table
from robosat_pink.report.findings import Facts, TilePictures
from robosat_pink.report.plots import printed
from robosat_pink.report.scenes import NAMES, truths
from robosat_pink.training import metrics
from robosat_pink.training.progress import duration

SCENES = 200  # that the page lists; scenes.csv has all
PART_COLORS = {"train": "#a6bddb", "val": "#d55e00", "holdout": "#1d2127"}
PART_WORDS = {"train": "trained on", "val": "validation", "holdout": "held-out"}
DESCRIPTIONS = {
    "loss": "what training makes small; mean over tiles",
    "iou": "intersection over union of the class; several classes: their mean",
    "miou": "mean IoU over the classes; one class: with the background's",
    "precision": "share of what was predicted that is right",
    "recall": "share of what is there that was found",
    "f1": "harmonic mean of precision and recall",
    "accuracy": "share of pixels that are right",
    "mcc": "Matthews correlation coefficient: 0 for guessing, 1 for perfect",
    "kappa": "Cohen's kappa: agreement beyond chance",
}
HELD_OUT = (
    "Trust the held-out numbers most: these tiles were looked at once, at the end. The validation tiles chose the best "
    "epoch, and so flatter it a little."
)
NOT_LOOKED_AT = (
    "The validation tiles chose the best epoch, and so flatter it a little. The held-out tiles are looked at once, "
    "after the last epoch."
)
NOT_HELD_OUT = (
    "The validation tiles chose the best epoch, and so flatter it a little. Hold tiles out, by "
    "dataset.split.test_percent, for numbers that nothing was chosen by."
)
DEEPEST = (66, 146, 198)  # of the grounds of the confusion: the page's ink has a contrast of 4.7 on it, more on others
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render(facts: Facts) -> str:
    sections = {
        "metrics": ("Metrics", _metrics(facts)),
        "curves": ("Curves", _curves(facts)),
        "confusion": ("Confusion", _confusion(facts)),
        "threshold": ("Precision and recall", _threshold(facts)),
        "scenes": ("Scenes", _scenes(facts)),
        "tiles": ("Tiles", _tiles(facts)),
        "data": ("Data", _data(facts)),
        "time": ("Time", _time(facts)),
        "run": ("Run", _run(facts)),
    }
    there = {name: (title, content) for name, (title, content) in sections.items() if content}
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, (title, _) in there.items())
    body = "".join(section(name, title, *content) for name, (title, content) in there.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{html(facts.title)}</title><style>{STYLE}</style></head><body>"
        '<a class="skip" href="#metrics">Skip to the numbers</a>'
        f"<header><h1>{html(facts.title)}</h1>{_opening(facts)}"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main>{body}</main>'
        "<footer>Made by robosat_pink. The numbers are those of metrics.json and history.csv beside the model; "
        "scenes.csv has those of the scenes.</footer></body></html>\n"
    )


def _opening(facts: Facts) -> Html:
    words, scores = next(iter(facts.numbers.items()))
    shown = ["iou"] * (len(facts.class_names) == 1) + ["miou", "precision", "recall", "f1", "accuracy"]
    boxes = "".join(f"<div><dt>{printed(name)}</dt><dd>{html(scores[name])}</dd></div>" for name in shown)
    about = f"On {words}, best epoch {facts.best_epoch} of {facts.epochs}. {facts.ended}."
    first = paragraph(f"{facts.source[0].upper()}{facts.source[1:]}.", "soft")
    warnings = "".join(paragraph(each) for each in _remarks(facts, are_warnings=True))
    return Html(f'{first}{paragraph(about, "soft")}{warnings}<dl class="headline">{boxes}</dl>')


def _remarks(facts: Facts, are_warnings: bool) -> list[str]:
    sentences = [each for each in facts.remarks if each.startswith("warning: ") == are_warnings]
    return [f"{each[0].upper()}{each[1:]}." for each in sentences]


def _metrics(facts: Facts) -> list[Html]:
    columns = list(facts.numbers.values())
    rows: list[list[Any]] = [
        [
            printed(name),
            *(scores[name] for scores in columns),
            Html(f'<span class="words">{DESCRIPTIONS.get(name, "")}</span>'),
        ]
        for name in metrics.NAMES
    ]
    is_looked_at = any(part.name == "holdout" for part in facts.parts)
    words = HELD_OUT if is_looked_at else NOT_LOOKED_AT if facts.split["holdout"] else NOT_HELD_OUT
    first, scores = next(iter(facts.numbers.items()))
    of_classes = [
        [name, *(values[each] for each in metrics.CLASS_NAMES)] for name, values in scores["per_class"].items()
    ]
    parts = [
        paragraph(f"{words} {facts.beside}".rstrip(), "soft"),
        table("All metrics", ["", *facts.numbers, Html('<span class="words">what it says</span>')], rows),
        table(f"By class, {first}", ["class", *map(printed, metrics.CLASS_NAMES)], of_classes),
    ]
    worst = max((part.differing for part in facts.parts), default=0.0)
    if worst > 0:
        again = "Confusion, scenes and tiles below come from evaluating the best weights once more"
        parts.append(paragraph(f"{again}; this device then computes scores that differ by up to {worst:.1e}.", "soft"))
    return parts


def _curves(facts: Facts) -> list[Html]:
    shown = [
        picture(uri, f"{printed(name)} of training and validation by epoch; the numbers are in history.csv")
        for name, uri in facts.curves.items()
    ]
    words = "By epoch. Training is measured along the way, on augmented crops; the grey line is the best epoch."
    return [paragraph(words, "soft"), Html(f'<div class="grid">{"".join(shown)}</div>')]


def _confusion(facts: Facts) -> list[Html]:
    names = truths(facts.class_names)
    tables = []
    for part in facts.parts:
        rows = [[name, *map(_heat, counts, _shares(counts))] for name, counts in zip(names, part.total, strict=True)]
        caption = f"{PART_WORDS[part.name].capitalize()} tiles: pixels, share of the row"
        tables.append(table(caption, ["truth \\ predicted", *names], rows))
    return [Html(f'<div class="beside">{"".join(tables)}</div>')]


def _threshold(facts: Facts) -> list[Html]:
    if facts.threshold_curve is None:
        return []
    image = picture(facts.threshold_curve, f"Precision over recall by threshold. {facts.threshold_words}")
    return [Html(f'<div class="beside">{image}<div>{paragraph(facts.threshold_words)}</div></div>')]


def _scenes(facts: Facts) -> list[Html]:
    tables = []
    for part in facts.parts:
        shown = sorted(part.scenes, key=lambda scene: _worst_first(scene.scores["iou"]))[:SCENES]
        rows = [[scene.name, scene.tiles, *_numbers(scene.counts, scene.scores)] for scene in shown]
        whole = ["all", sum(each.tiles for each in part.scenes), *_numbers(part.total, part.scores)]
        more = f", the worst {SCENES} of {len(part.scenes)}" if len(part.scenes) > SCENES else ""
        caption = f"{PART_WORDS[part.name].capitalize()} tiles by scene, a directory of tiles, the worst first{more}"
        head = ["scene", "tiles", "valid pixels", *map(printed, NAMES)]
        tables.append(table(caption, head, rows, foot=whole))
    return tables


def _tiles(facts: Facts) -> list[Html]:
    if not facts.tiles:
        return []
    if len(facts.class_names) == 1:
        keys = [
            swatch(previews.RIGHT, f"{facts.class_names[0]}, found"),
            swatch(previews.WRONG, "predicted, not there"),
            swatch(previews.MISSED, "there, overlooked"),
            swatch(previews.NOTHING, "background, seen as that"),
        ]
    else:
        keys = [swatch(color, name) for name, color in zip(facts.class_names, facts.class_colors, strict=True)]
        keys.append(swatch(previews.WRONG, "wrong, in the last picture"))
    keys.append(Html('<span class="key"><i class="hatch"></i>no data</span>'))
    parts = [
        paragraph(
            f"{PART_WORDS[facts.tiles_of].capitalize()} tiles by their IoU: the best, those in the middle, the worst. "
            "Of those with enough to see: 1 % of the tile valid, and 1 % of that of a class.",
            "soft",
        ),
        Html(f'<div class="keys">{"".join(keys)}</div>'),
    ]
    for kind in ("best", "median", "worst"):
        some = [_tile(each) for each in facts.tiles if each.kind == kind]
        parts += [Html(f"<h3>{kind.capitalize()}</h3>"), *some] if some else []
    return parts


def _tile(tile: TilePictures) -> Html:
    shown = "".join(
        picture(uri, f"{name} of tile {tile.place}", name, "smooth" if name == "image" else "crisp")
        for name, uri in tile.panels
    )
    about = f"{html(tile.tile_id)} · {html(tile.words)} · {anchor(tile.map_link, f'map of {tile.place}')}"
    return Html(
        f'<article class="tile"><h4>IoU {html(tile.score)} · {html(tile.place)}</h4>'
        f'<p class="soft">{about}</p><div class="panels">{shown}</div></article>'
    )


def _data(facts: Facts) -> list[Html]:
    keys = "".join(
        swatch(PART_COLORS[name], f"{PART_WORDS[name]}: {count:,} tiles".replace(",", "\u202f"))
        for name, count in facts.split.items()
        if count
    )
    shown = (
        f'<figure>{facts.split_map}<figcaption>{html(facts.place)}</figcaption></figure><div class="keys">{keys}</div>'
    )
    counts = table("What was found", ["", "number"], facts.data, kind="loose")
    words = [paragraph(each, "soft") for each in _remarks(facts, are_warnings=False)]
    return [Html(f'<div class="beside"><div>{shown}</div><div>{counts}</div></div>'), *words]


def _time(facts: Facts) -> list[Html]:
    whole = sum(facts.seconds.values()) or 1.0
    rows = [
        [
            *(name, duration(seconds), f"{seconds / whole:.1%}"),
            Html(f'<span class="bar"><i style="width:{seconds / whole:.1%}"></i></span>'),
        ]
        for name, seconds in facts.seconds.items()
    ]
    return [table("Where the time went", ["", "time", "share", ""], rows, foot=["all", duration(whole), "", ""])]


def _run(facts: Facts) -> list[Html]:
    machine, config = html("\n".join(facts.machine)), html(facts.config)
    return [
        Html(f'<h3>Versions and hardware</h3><pre class="wrap" tabindex="0">{machine}</pre>'),
        Html(f'<details><summary>The experiment, as it ran</summary><pre tabindex="0">{config}</pre></details>'),
    ]


def _numbers(counts: np.ndarray, scores: Mapping[str, Any]) -> list[int | float]:
    return [int(counts.sum()), *(scores[name] for name in NAMES)]


def _worst_first(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _shares(counts: np.ndarray) -> list[float]:
    total = int(counts.sum())
    return [int(each) / total if total else math.nan for each in counts]


def _heat(count: int, share: float) -> Html:
    """A cell whose ground is the darker the larger the share."""
    depth = 0.0 if math.isnan(share) else share
    ground = ",".join(f"{round(255 + depth * (each - 255))}" for each in DEEPEST)
    shown = "" if math.isnan(share) else f"<small>{share:.2%}</small>"
    return Html(f'<span class="heat" style="background:rgb({ground})">{html(int(count))}{shown}</span>')
