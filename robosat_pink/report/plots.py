"""Plots curves over epochs, over thresholds and over probabilities with matplotlib. Called by `build`.

matplotlib is imported at the first plot, so that training does not wait for it.
"""

from __future__ import annotations

import base64
import io
import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from robosat_pink.training import metrics
from robosat_pink.training.thresholds import ThresholdCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Color (Okabe and Ito), dashes and marker: any one of them suffices to tell the lines apart.
LINES = {"train": ("#0072b2", "--", "o"), "val": ("#d55e00", "-", "s")}
INK, FAINT = "#23272e", "#c9ced6"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "grid.color": "#e9ecef",
    "svg.fonttype": "none",
    "svg.hashsalt": "robosat_pink",
    "text.color": INK,
    "xtick.color": "#59616c",
    "ytick.color": "#59616c",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}
READER_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
SIZE = (3.5, 2.2)  # inches of 96 pixels in the page; a phone shows the width without scaling


def metric_name(name: str) -> str:
    """The name of a metric as people write it."""
    return {"iou": "IoU", "miou": "mean IoU", "f1": "F1", "mcc": "MCC"}.get(name, name)


def curves(history: Sequence[Mapping[str, Any]], best_epoch: int) -> tuple[dict[str, str], bytes]:
    """Plot each metric over epochs: data URIs of SVGs by metric, and one PNG with all metrics."""
    uris = {}
    with _style():
        for name in metrics.NAMES:
            figure = _figure(SIZE, layout="constrained")
            _draw_curve(figure.subplots(), history, name, best_epoch)
            uris[name] = _svg(figure)
        rows = math.ceil(len(metrics.NAMES) / 3)
        overview = _figure((10.5, 2.3 * rows), layout="constrained")
        for axes, name in zip(overview.subplots(rows, 3).flat, metrics.NAMES, strict=False):
            _draw_curve(axes, history, name, best_epoch)
        return uris, _png(overview)


def precision_recall(curve: ThresholdCurve, name: str) -> tuple[str, bytes]:
    """Plot precision over recall, as the data URI of an SVG and as PNG. Dots mark some thresholds, a larger one 0.5."""
    with _style():
        figure = _figure((4.6, 3.4))
        figure.subplots_adjust(left=0.13, right=0.98, top=0.93, bottom=0.13)
        axes = figure.subplots()
        axes.plot(curve.recall, curve.precision, color=LINES["val"][0], linewidth=1.8)
        _write_inside(axes, _why_empty(curve, name))
        marked: list[tuple[float, float]] = []
        for threshold in (0.5, 0.1, 0.25, 0.75, 0.9):
            position = int(abs(curve.threshold - threshold).argmin())
            x, y = float(curve.recall[position]), float(curve.precision[position])
            is_apart = all(math.dist((x, y), other) > 0.06 for other in marked)
            if math.isfinite(x) and math.isfinite(y) and is_apart:
                marked.append((x, y))
                axes.plot(x, y, "o", color=INK, markersize=6 if threshold == 0.5 else 3)
                axes.annotate(f"{threshold:g}", (x, y), (-6, -11), textcoords="offset points", ha="right", fontsize=8)
        axes.set(xlabel="recall", ylabel="precision", title=f"{name}, by threshold of probability")
        axes.set(xlim=_limits(curve.recall), ylim=_limits(curve.precision))
        axes.grid(visible=True)
        return _svg(figure), _png(figure)


def reliability(bins: Mapping[str, Sequence[Mapping[str, float]]]) -> tuple[str, bytes]:
    """Plot how often predictions came true over their probability, as the data URI of an SVG and as PNG.

    `bins` are by the name of a split, the main one last. The grey diagonal is where both are equal. The larger a dot,
    the more pixels.
    """
    with _style():
        figure = _figure((4.6, 3.4))
        figure.subplots_adjust(left=0.13, right=0.98, top=0.93, bottom=0.13)
        axes = figure.subplots()
        axes.plot((0, 1), (0, 1), color=FAINT, linewidth=1, zorder=0)
        for split, points in bins.items():
            color, dashes, marker = LINES["val" if split == list(bins)[-1] else "train"]
            probabilities, observed = ([point[name] for point in points] for name in ("probability", "observed"))
            most = max((point["pixels"] for point in points), default=1)
            sizes = [8 + 52 * point["pixels"] / most for point in points]
            axes.plot(probabilities, observed, color=color, linestyle=dashes, linewidth=1.4)
            axes.scatter(probabilities, observed, s=sizes, color=color, marker=marker, label=split)
        axes.set(xlabel="predicted probability", ylabel="share that came true", title="Probabilities and truth")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.grid(visible=True)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
        return _svg(figure), _png(figure)


def _draw_curve(axes: Axes, history: Sequence[Mapping[str, Any]], name: str, best_epoch: int) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in history]
    if best_epoch:
        axes.axvline(best_epoch, color=FAINT, linewidth=1, zorder=0)
    for phase, (color, dashes, marker) in LINES.items():
        values = [row[phase][name] for row in history]
        style: dict[str, Any] = {"color": color, "linestyle": dashes, "marker": marker if len(epochs) <= 25 else ""}
        axes.plot(epochs, values, **style, label=phase, linewidth=1.6, markersize=3)
        best = [row[phase][name] for row in history if row["epoch"] == best_epoch]
        if phase == "val" and best:
            axes.plot(best_epoch, best[0], "o", color="white", markeredgecolor=color, markersize=6, zorder=3)
    if not any(math.isfinite(row[phase][name]) for row in history for phase in LINES):
        _write_inside(axes, "undefined: nothing to divide by")
    axes.set_title(metric_name(name))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axes.grid(visible=True, axis="y")
    # Above the axes, where it covers no line.
    axes.legend(
        frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=2, handlelength=2.4
    )


def _write_inside(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center")


def _why_empty(curve: ThresholdCurve, name: str) -> str:
    """Why no threshold has both precision and recall; empty if one has."""
    if any(math.isfinite(value) for value in curve.precision + curve.recall):
        return ""
    is_absent = not any(math.isfinite(value) for value in curve.recall)
    return f"no pixel is of {name}" if is_absent else f"no probability is above {curve.threshold[0]:g}"


def _limits(values: Any) -> tuple[float, float]:
    """Limits of an axis: from about a tenth below the lowest value to 1."""
    lowest = min((float(value) for value in values if math.isfinite(value)), default=0.0)
    return max(0.0, math.floor(10 * lowest - 0.5) / 10) if lowest > 0 else -0.02, 1.02


def _figure(inches: tuple[float, float], layout: Literal["constrained"] | None = None) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=inches, layout=layout)


def _style() -> Any:
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # at INFO, matplotlib lists its fonts
    from matplotlib import rc_context

    return rc_context(STYLE)


def _svg(figure: Figure) -> str:
    """The figure as the data URI of an SVG, whose text is drawn in the reader's own fonts."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue().replace("'DejaVu Sans'", READER_FONTS)
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
