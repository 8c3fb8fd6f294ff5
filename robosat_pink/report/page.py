"""Renders the report as one HTML page, from plain data and templates/report.html.j2. Called by `build`.

The page makes no requests: its pictures are embedded, its fonts are the reader's, and its content policy forbids any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robosat_pink.container.quantities import duration
from robosat_pink.report import previews, templating
from robosat_pink.report.error_map import NOT_EVALUATED, ErrorMap
from robosat_pink.report.plots import metric_name
from robosat_pink.report.scenes import SCENE_METRICS, Scene, confusion_labels
from robosat_pink.training import metrics
from robosat_pink.training.intervals import INTERVAL_METRICS

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_SCENES = 200  # scenes in the page's tables; scenes.csv contains all
SPLIT_COLORS = {"train": "#a6bddb", "val": "#d55e00", "holdout": "#1d2127", "evaluated": "#d55e00"}
SPLIT_NAMES = {"train": "trained on", "val": "validation", "holdout": "held-out", "evaluated": "evaluated"}
DESCRIPTIONS = {
    "loss": "what training minimises; mean over tiles",
    "iou": "intersection over union of the class; several classes: their mean",
    "miou": "mean IoU over the classes; one class: with the background's",
    "precision": "share of the pixels predicted as the class that are of the class",
    "recall": "share of the pixels of the class that are predicted as the class",
    "f1": "harmonic mean of precision and recall",
    "accuracy": "share of pixels that are predicted correctly",
    "mcc": "Matthews correlation coefficient: 0 for guessing, 1 for perfect",
    "kappa": "Cohen's kappa: agreement beyond chance",
}
HEADLINE = ("iou", "miou", "precision", "recall", "f1", "accuracy")
DARKEST = (66, 146, 198)  # darkest confusion cell; text has a contrast of 4.7 on it, and more on lighter cells


@dataclass(frozen=True)
class TilePreview:
    """An example tile."""

    number: int  # from 1, through all kinds
    iou: float
    id: str
    zxy: str
    map_link: str
    bands: str  # the bands that the image shows
    panels: Mapping[str, str]  # data URIs by name


@dataclass(frozen=True)
class SplitResult:
    """The results of the model on the tiles of one split."""

    scores: Mapping[str, Any]  # as in metrics.json, below `best`, with NaN where it has null
    confusion: Sequence[Sequence[int]]  # (K, K) pixels, truth by prediction
    scenes: Sequence[Scene]
    largest_difference: float  # between a score here and the same score as measured during the run

    @property
    def pixels(self) -> int:
        return sum(map(sum, self.confusion))


@dataclass(frozen=True)
class History:
    """What a training run adds to the page."""

    epochs: int
    best_epoch: int
    curves: Mapping[str, str]  # data URIs by metric
    has_symmetries: bool  # predictions on held-out and val tiles are averages over the symmetries of the square


@dataclass(frozen=True)
class Report:
    """The content of the page. Secrets are redacted; nothing is escaped."""

    title: str
    source: str
    ended: str  # when, and why if it was stopped
    history: History | None  # None for an evaluation without training
    about: Mapping[str, str]  # what was evaluated and how, by name; empty after a training
    class_names: Sequence[str]
    class_colors: Sequence[str]
    metrics: Mapping[str, Mapping[str, Any]]  # by column title, held-out tiles first
    baseline: str  # a sentence about the first column, or empty
    splits: Mapping[str, SplitResult]  # holdout, if it was evaluated, and val; or `evaluated`. The last one is shown
    threshold_curve: str | None  # a data URI; None for several classes
    threshold_sentences: str
    threshold: float | None  # to compare with 0.5; None without one, and for several classes
    reliability_curve: str  # a data URI
    meanings: Mapping[str, str]  # a sentence by name, as `trust.sentences` writes them
    tiles: Mapping[str, Sequence[TilePreview]]  # best, median and worst tiles; a kind without tiles has no key
    error_map: ErrorMap
    split_map: str  # SVG
    bounds: str
    dataset: Mapping[str, int | str]
    remarks: Sequence[str]  # remarks on the tiles, as in the log
    split_sizes: Mapping[str, int]
    seconds: Mapping[str, float]  # by activity
    hardware: Sequence[str]
    config_yaml: str


def render(report: Report) -> str:
    is_single = len(report.class_names) == 1
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            headline_metrics=HEADLINE if is_single else HEADLINE[1:],
            metric_descriptions={name: DESCRIPTIONS[name] for name in metrics.NAMES},
            class_metrics=list(metrics.CLASS_NAMES),
            scene_metrics=list(SCENE_METRICS),
            interval_metrics=list(INTERVAL_METRICS),
            confusion_labels=confusion_labels(report.class_names),
            max_scenes=MAX_SCENES,
            not_evaluated_color=NOT_EVALUATED,
            split_colors=SPLIT_COLORS,
            split_names=SPLIT_NAMES,
            previews=previews,
        )
    )


def environment() -> Environment:
    html = templating.html_environment()
    html.filters |= {
        "duration": duration,
        "heat_color": heat_color,
        "metric_name": metric_name,
        "sentence": _sentence,
        "split_title": lambda split: f"{SPLIT_NAMES[split]} tiles",
        "values_at": lambda mapping, keys: [mapping[key] for key in keys],
        "worst_first": _worst_first,
    }
    return html


def heat_color(share: float | None) -> str:
    """The background of a confusion cell: the larger its share of the row, the darker."""
    return f"rgb({','.join(str(round(255 + (share or 0.0) * (darkest - 255))) for darkest in DARKEST)})"


def _worst_first(scenes: Sequence[Scene]) -> list[Scene]:
    """The scenes by ascending IoU; scenes without an IoU come last."""
    return sorted(scenes, key=lambda scene: math.inf if math.isnan(scene.scores["iou"]) else scene.scores["iou"])


def _sentence(remark: str) -> str:
    return f"{remark[0].upper()}{remark[1:]}."
