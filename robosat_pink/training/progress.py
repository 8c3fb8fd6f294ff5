"""How far a run is, for whoever watches it: a bar on a terminal, lines elsewhere. Called by `loop` and `train`."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import nn

log = logging.getLogger(__name__)

BAR_S = 1.0  # between looks at loss and IoU, each of which waits for the device
LINE_S = 60.0  # between lines within an epoch


class Running(Protocol):
    """What a phase has summed up to so far: mean loss and IoU. Waits for the device."""

    def so_far(self) -> tuple[float, float]: ...


def bar(
    batches: Iterable[Any], total: int, phase: str, phase_metrics: Running | None = None, first: int = 0
) -> Iterator[Any]:
    """The batches, with a bar on the terminal: loss, IoU, tiles a second, the time left. `first` are done already."""
    from tqdm import tqdm

    started, shown, tiles = time.monotonic(), 0.0, 0
    with tqdm(total=total, initial=first, desc=phase, unit="batch", leave=False) as drawn:
        for batch in batches:
            yield batch
            tiles += len(batch)
            now = time.monotonic()
            if now - shown > BAR_S:
                shown = now
                rate = {"tiles/s": f"{tiles / (now - started):.1f}"}
                loss, iou = phase_metrics.so_far() if phase_metrics and tiles else (0.0, 0.0)
                numbers = {"loss": f"{loss:.4f}", "IoU": f"{iou:.4f}"} if phase_metrics and tiles else {}
                drawn.set_postfix(numbers | rate)
            drawn.update()


def lines(
    batches: Iterable[Any], total: int, phase: str, phase_metrics: Running | None = None, first: int = 0
) -> Iterator[Any]:
    """The batches, with a line a minute on where a long phase is; nothing is asked of the device.

    `first` are done already.
    """
    started = told = time.monotonic()
    for done, batch in enumerate(batches, first + 1):
        yield batch
        now = time.monotonic()
        if now - told >= LINE_S and done < total:
            told = now
            left = (now - started) / (done - first) * (total - done)
            log.info("%s: %d of %d batches, %s left, until %s", phase, done, total, spelt(left), clock(left))


def epoch_line(history: Sequence[Mapping[str, Any]], epochs: int, best_epoch: int) -> str:
    """After an epoch: the best so far, and when the run will have ended, as the epochs have been until now."""
    last = history[-1]
    best = next((row for row in history if row["epoch"] == best_epoch), last)
    mark = "new best" if best is last else "best so far"
    where = "" if best is last else f" of epoch {best_epoch}"
    told = f"epoch {last['epoch']} of {epochs}: {mark}, val IoU {best['val']['iou']:.4f}{where}"
    left = (epochs - last["epoch"]) * statistics.median(
        row["train"]["seconds"] + row["val"]["seconds"] for row in history
    )
    return f"{told}; {spelt(left)} left, until {clock(left)}" if left else told


def summary(model: nn.Module, tiles: int, batch_size: int, epochs: int) -> str:
    """Before the first step."""
    parameters = sum(each.numel() for each in model.parameters())
    steps = -(-tiles // batch_size)
    return f"{parameters / 1e6:.1f} million parameters; {epochs} epochs of {steps} steps, {batch_size} tiles a step"


def spelt(seconds: float) -> str:
    """Rounded as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def clock(seconds: float) -> str:
    """The time of day after so many seconds, with the date where that is another one."""
    now, then = time.time(), time.time() + seconds
    is_today = time.gmtime(now).tm_yday == time.gmtime(then).tm_yday and seconds < 86400
    return time.strftime("%H:%M UTC" if is_today else "%Y-%m-%d %H:%M UTC", time.gmtime(then))
