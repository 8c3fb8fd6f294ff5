"""The metrics of one phase (train, val, holdout) of an epoch: loss, confusion, time, traffic.

Called by `loop`, `state` and `progress`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robosat_pink.config import Config
from robosat_pink.datasets.batch import Batch
from robosat_pink.distributed.process_group import World
from robosat_pink.errors import DataError, RobosatError
from robosat_pink.training import metrics
from robosat_pink.training.metrics import Confusion

log = logging.getLogger(__name__)

MOST = 2**53  # exclusive limit of COUNTS and seconds in a resume point
FORMATS = {"seconds": ".2f", "tiles_per_s": ".2f", "waited": ".3f", "megabytes": ".2f"}  # of numbers in the log

ONE_CLASS = (
    "every valid pixel of the {} tiles is of one class, so their metrics mean nothing; do the masks declare another "
    "class's value as nodata?"
)


def has_one_class(counts: np.ndarray) -> bool:
    """Whether the pixels that a confusion matrix (K, K) counts are all of one class."""
    return int((counts.sum(axis=1) > 0).sum()) == 1


class PhaseMetrics:
    """The sums of one rank. Those of losses and pixels stay on the device until they are asked for."""

    COUNTS = ("empty", "cached", "fetched", "fetched_bytes", "retries")

    def __init__(self, config: Config, device: torch.device, phase: str, epoch: int, steps: int) -> None:
        self.config, self.phase, self.epoch = config, phase, epoch
        self.class_names = [class_.name for class_ in config.classes]
        self.confusion = Confusion(config.num_classes, device)
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # sum of losses, number of samples
        self.is_nonfinite = torch.zeros(steps, dtype=torch.bool, device=device)  # by step: loss is NaN or inf
        self.reported_steps: set[int] = set()  # steps that `new_nonfinite_steps` has returned
        self.empty = self.cached = self.fetched = self.fetched_bytes = self.retries = 0
        self.waited_s = self.compile_s = 0.0
        self.is_compiling = False
        self.started = time.monotonic()

    def content(self) -> dict[str, Any]:
        """The metrics so far, for a resume point. Its keys never change; `compile_s` came later, and may be missing."""
        return {
            "counts": self.confusion.counts.cpu(),
            "sums": self.sums.cpu(),
            "is_unfit": self.is_nonfinite.cpu(),
            **{name: getattr(self, name) for name in (*self.COUNTS, "waited_s", "compile_s")},
            "seconds": time.monotonic() - self.started,
        }

    def restore(self, content: Mapping[str, Any]) -> None:
        """Add the metrics of this phase that an earlier process saved. Raises ValueError for impossible numbers."""
        self.confusion.counts += content["counts"].to(self.sums.device)
        self.sums += content["sums"].to(self.sums.device)
        self.is_nonfinite |= content["is_unfit"].to(self.sums.device)
        self.reported_steps |= set(content["is_unfit"].nonzero().flatten().tolist())
        if not self.sums.isfinite().all() or (self.confusion.counts < 0).any():
            raise ValueError("negative counts, NaN or inf")
        content = {"compile_s": 0.0, **content}
        for name in (*self.COUNTS, "waited_s", "compile_s", "seconds"):
            if not 0 <= content[name] < MOST:
                raise ValueError(f"{name} below 0, {MOST:,} or more, or NaN")
        for name in (*self.COUNTS, "waited_s", "compile_s"):
            setattr(self, name, getattr(self, name) + content[name])
        self.started = min(self.started, time.monotonic() - content["seconds"])

    def add(
        self,
        batch: Batch,
        loss: Tensor,
        logits: Tensor,
        mask: Tensor,
        is_finite: Tensor | None = None,
        step: int = 0,
    ) -> None:
        """Add a batch; `loss` is its mean over samples. Training steps with a non-finite loss do not enter `sums`."""
        sums = torch.stack([loss.double() * len(batch), torch.full_like(self.sums[0], len(batch))])
        if is_finite is not None:
            sums = torch.where(is_finite, sums, torch.zeros_like(sums))
            self.is_nonfinite[step] = ~is_finite
        self.sums += sums
        if len(batch):
            self.confusion.add(logits, mask)

    def new_nonfinite_steps(self) -> list[int]:
        """The steps with a non-finite loss that were not returned before. Waits for the device."""
        steps = [step for step in self.is_nonfinite.nonzero().flatten().tolist() if step not in self.reported_steps]
        self.reported_steps.update(steps)
        return steps

    def current(self) -> tuple[float, float]:
        """This rank's mean loss and IoU so far, for the progress bar. Waits for the device."""
        loss_sum, samples = self.sums.tolist()
        loss = loss_sum / max(samples, 1)
        return loss, metrics.scores(self.confusion.counts.cpu().numpy(), self.class_names, loss)["iou"]

    def timed(
        self, batches: Iterable[Batch], compiles: Callable[[Batch], bool] = lambda batch: False
    ) -> Iterator[Batch]:
        """Yield the batches; sum up the time of waiting for them, that of steps that compile, and the traffic."""
        iterator = iter(batches)
        while True:
            asked = time.monotonic()
            batch = next(iterator, None)
            self.waited_s += time.monotonic() - asked
            if batch is None:
                return
            self.empty += batch.empty
            self.cached += batch.cached
            self.fetched += len(batch) + batch.empty - batch.cached
            self.fetched_bytes += batch.fetched_bytes
            self.retries += batch.retries
            self.is_compiling, given = compiles(batch), time.monotonic()
            yield batch
            if self.is_compiling:
                self.compile_s += time.monotonic() - given

    def finish(self, world: World) -> dict[str, Any]:
        """Compute the metrics of the phase over all ranks; log and return them.

        Raises DataError if no tile has a valid pixel, RobosatError if the loss is non-finite.
        """
        world.all_reduce_sum(self.confusion.counts, self.sums)
        traffic = world.sum_over_ranks(*(getattr(self, name) for name in self.COUNTS))
        empty, cached, fetched, fetched_bytes, retries = traffic
        loss, samples = self._mean_loss(empty)
        seconds = time.monotonic() - self.started
        counts = self.confusion.counts.cpu().numpy()
        self._warn_of_absent_classes(counts)
        values = metrics.scores(counts, self.class_names, loss)
        more = {
            "tiles": samples,
            "empty": empty,
            "seconds": seconds,
            "tiles_per_s": samples / seconds,
            "waited": self.waited_s / seconds,
            "requests": 2 * fetched + retries,
            "retries": retries,
            "megabytes": fetched_bytes / 1e6,
            "cached": cached,
        }
        shown = {name: f"{value:{FORMATS.get(name, '')}}" for name, value in more.items()}
        log.info(metrics.log_line(self.phase, self.epoch, self.config.model.epochs, values, **shown))
        not_logged = {"waited_s": self.waited_s} | ({"compile_s": self.compile_s} if self.compile_s else {})
        return values | more | not_logged

    def _mean_loss(self, empty: int) -> tuple[float, int]:
        """The mean loss over the samples of all ranks, and their number."""
        loss_sum, samples = self.sums.tolist()
        if not samples and self.is_nonfinite.any():
            raise RobosatError(
                f"epoch {self.epoch}: the loss is non-finite (NaN or inf) in every step; check the tiles named above, "
                "channels[].scale, mean and std, or lower model.lr"
            )
        if not samples:
            raise DataError(f"none of the {empty} {self.phase} tiles has a pixel with both image and mask data")
        loss = loss_sum / int(samples)
        if not math.isfinite(loss):
            raise RobosatError(
                f"epoch {self.epoch}: the {self.phase} loss is {loss}; check channels[].scale, mean and std, or lower "
                "model.lr"
            )
        return loss, int(samples)

    def _warn_of_absent_classes(self, counts: np.ndarray) -> None:
        pixels = counts.sum(axis=1)
        if has_one_class(counts):
            log.warning("warning: %s", ONE_CLASS.format(self.phase))
        elif self.phase == "train" and self.epoch == 1 and not pixels.all():
            # Only with several classes: for a single class, a row without pixels is the case above.
            absent = [name for name, count in zip(self.class_names, pixels, strict=True) if not count]
            log.warning("warning: no pixel that epoch 1 has trained on is %s", ", ".join(absent))
