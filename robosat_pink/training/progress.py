"""The progress of a run: a bar on a terminal, log lines elsewhere. Called by `loop` and `run`, and by `prediction`."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import nn

from robosat_pink.config import ModelConfig
from robosat_pink.container.quantities import clock, count, duration

log = logging.getLogger(__name__)

BAR_S = 1.0  # seconds between updates of loss and IoU, which wait for the device
LINE_S = 60.0  # seconds between log lines within a phase
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"  # tqdm's own rate counts compiling, too


class RunningMetrics(Protocol):
    """The mean loss and IoU of a phase so far. `current` waits for the device."""

    is_compiling: bool  # the step of the newest batch first compiles the network

    def current(self) -> tuple[float, float]: ...


class Pace:
    """How fast the batches of a phase are done, and how long the others will take. Steps that compile do not count."""

    def __init__(self, total: int, first: int) -> None:
        self.done = first
        self._total = total
        self._batches = self._tiles = 0  # that count
        self._counted_s = 0.0
        self._now = time.monotonic()

    def add(self, tiles: int, has_compiled: bool) -> float:
        """Count a batch that is done. Returns the seconds since the one before it."""
        before, self._now = self._now, time.monotonic()
        self.done += 1
        if not has_compiled:
            self._batches += 1
            self._tiles += tiles
            self._counted_s += self._now - before
        return self._now - before

    @property
    def left_s(self) -> float | None:
        """Seconds to the end of the phase; None before the first batch that counts."""
        return self._counted_s / self._batches * (self._total - self.done) if self._batches else None

    @property
    def tiles_per_s(self) -> float | None:
        return self._tiles / self._counted_s if self._counted_s else None


def bar(
    batches: Iterable[Any], total: int, phase: str, metrics: RunningMetrics | None = None, first: int = 0
) -> Iterator[Any]:
    """Yield the batches; show loss, IoU, tiles per second and time left in a bar. `first` batches were done before."""
    from tqdm import tqdm

    pace, shown = Pace(total, first), 0.0
    with tqdm(total=total, initial=first, desc=phase, leave=False, bar_format=BAR) as tqdm_bar:
        for batch in batches:
            is_compiling = bool(metrics and metrics.is_compiling)
            if is_compiling:
                tqdm_bar.set_postfix_str("compiling the network")
            yield batch
            pace.add(len(batch), is_compiling)
            tqdm_bar.update()
            now = time.monotonic()
            if now - shown > BAR_S:
                shown = now
                tqdm_bar.set_postfix_str(", ".join(_current_values(pace, metrics)))


def _current_values(pace: Pace, metrics: RunningMetrics | None) -> Iterator[str]:
    if pace.tiles_per_s is None or pace.left_s is None:
        return
    if metrics:
        loss, iou = metrics.current()
        yield f"loss={loss:.4f}, IoU={iou:.4f}"
    yield f"tiles/s={pace.tiles_per_s:.1f}"
    yield f"{duration(pace.left_s)} left"


def lines(
    batches: Iterable[Any], total: int, phase: str, metrics: RunningMetrics | None = None, first: int = 0
) -> Iterator[Any]:
    """Yield the batches; log a line per minute, without waiting for the device. `first` batches were done before."""
    pace, logged = Pace(total, first), time.monotonic()
    for batch in batches:
        is_compiling = bool(metrics and metrics.is_compiling)
        yield batch
        spent, now = pace.add(len(batch), is_compiling), time.monotonic()
        if is_compiling:
            logged = now
            log.info(
                "%s: the step that compiled the network took %s, with the wait for its tiles", phase, duration(spent)
            )
        elif now - logged >= LINE_S and pace.done < total and pace.left_s is not None:
            logged = now
            done, left = f"{count(pace.done)} of {count(total, 'batch', 'batches')}", pace.left_s
            log.info("%s: %s, %s left, until %s", phase, done, duration(left), clock(left))


def epoch_line(history: Sequence[Mapping[str, Any]], epochs: int, best_epoch: int) -> str:
    """The line after an epoch: the best epoch so far, and the end of the run if each epoch takes the median time.

    Time in which the network was compiled does not count.
    """
    last = history[-1]
    best = next((row for row in history if row["epoch"] == best_epoch), last)
    iou = f"val IoU {best['val']['iou']:.4f}"
    mark = f"new best, {iou}" if best is last else f"best so far, {iou} of epoch {best_epoch}"
    line = f"epoch {last['epoch']} of {epochs}: {mark}"
    left = (epochs - last["epoch"]) * statistics.median(
        row["train"]["seconds"] - row["train"].get("compile_s", 0.0) + row["val"]["seconds"] for row in history
    )
    return f"{line}; {duration(left)} left, until {clock(left)}" if left else line


def summary(model: nn.Module, steps: int, settings: ModelConfig) -> str:
    """The line before the first step."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    epochs = f"{count(settings.epochs, 'epoch')} of {count(steps, 'step')}, {count(settings.batch_size, 'tile')} a step"
    return f"{settings.name}, {parameters / 1e6:.1f} million parameters; {epochs}"
