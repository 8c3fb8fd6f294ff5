"""The progress of a run: a bar on a terminal, log lines elsewhere. Called by `loop`, `run`, `check` and the report."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import nn

log = logging.getLogger(__name__)

BAR_S = 1.0  # seconds between updates of loss and IoU, which wait for the device
LINE_S = 60.0  # seconds between log lines within a phase


class RunningMetrics(Protocol):
    """The mean loss and IoU of a phase so far. `current` waits for the device."""

    def current(self) -> tuple[float, float]: ...


def bar(
    batches: Iterable[Any], total: int, phase: str, metrics: RunningMetrics | None = None, first: int = 0
) -> Iterator[Any]:
    """Yield the batches; show loss, IoU, tiles per second and time left in a bar. `first` batches were done before."""
    from tqdm import tqdm

    started, shown, tiles = time.monotonic(), 0.0, 0
    with tqdm(total=total, initial=first, desc=phase, unit="batch", leave=False) as tqdm_bar:
        for batch in batches:
            yield batch
            tiles += len(batch)
            now = time.monotonic()
            if now - shown > BAR_S:
                shown = now
                values = _current_values(metrics) if metrics and tiles else {}
                tqdm_bar.set_postfix(values | {"tiles/s": f"{tiles / (now - started):.1f}"})
            tqdm_bar.update()


def _current_values(metrics: RunningMetrics) -> dict[str, str]:
    loss, iou = metrics.current()
    return {"loss": f"{loss:.4f}", "IoU": f"{iou:.4f}"}


def lines(
    batches: Iterable[Any], total: int, phase: str, metrics: RunningMetrics | None = None, first: int = 0
) -> Iterator[Any]:
    """Yield the batches; log a line per minute, without waiting for the device. `first` batches were done before."""
    started = logged = time.monotonic()
    for done, batch in enumerate(batches, first + 1):
        yield batch
        now = time.monotonic()
        if now - logged >= LINE_S and done < total:
            logged = now
            left = (now - started) / (done - first) * (total - done)
            log.info("%s: %d of %d batches, %s left, until %s", phase, done, total, duration(left), clock(left))


def epoch_line(history: Sequence[Mapping[str, Any]], epochs: int, best_epoch: int) -> str:
    """The line after an epoch: the best epoch so far, and the end of the run if each epoch takes the median time."""
    last = history[-1]
    best = next((row for row in history if row["epoch"] == best_epoch), last)
    iou = f"val IoU {best['val']['iou']:.4f}"
    mark = f"new best, {iou}" if best is last else f"best so far, {iou} of epoch {best_epoch}"
    line = f"epoch {last['epoch']} of {epochs}: {mark}"
    left = (epochs - last["epoch"]) * statistics.median(
        row["train"]["seconds"] + row["val"]["seconds"] for row in history
    )
    return f"{line}; {duration(left)} left, until {clock(left)}" if left else line


def summary(model: nn.Module, steps: int, batch_size: int, epochs: int) -> str:
    """The line before the first step."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"{parameters / 1e6:.1f} million parameters; {epochs} epochs of {steps} steps, {batch_size} tiles a step"


def duration(seconds: float) -> str:
    """`12.3 s`, `5 min 07 s` or `3 h 25 min`, for durations in logs and pages."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def clock(seconds: float) -> str:
    """The time of day, UTC, `seconds` from now; with the date if that is not today."""
    now, then = time.time(), time.time() + seconds
    is_today = time.gmtime(now).tm_yday == time.gmtime(then).tm_yday and seconds < 86400
    return time.strftime("%H:%M UTC" if is_today else "%Y-%m-%d %H:%M UTC", time.gmtime(then))
