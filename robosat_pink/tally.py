"""What a phase of training sums up to: loss, confusion, time and traffic, and its log line. Called by `loop`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from robosat_pink import metrics
from robosat_pink.config import Config
from robosat_pink.errors import DataError, RobosatError
from robosat_pink.loader import Batch
from robosat_pink.metrics import Confusion

log = logging.getLogger(__name__)


class Tally:
    """Of one phase; one transfer from the device, at its end."""

    COUNTS = ("samples", "empty", "cached", "fetched", "fetched_bytes", "retries", "waited_s")

    def __init__(
        self, config: Config, device: torch.device, phase: str, epoch: int, content: dict[str, Any] | None = None
    ) -> None:
        """`content` is that of an earlier tally, to be added to."""
        self.config, self.phase, self.epoch = config, phase, epoch
        self.confusion = Confusion(config.num_classes, device)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.samples = self.empty = self.cached = self.fetched = self.fetched_bytes = self.retries = 0
        self.waited_s = 0.0
        self.started = time.monotonic()
        if content is not None:
            self.confusion.counts += content["counts"].to(device)
            self.loss += content["loss"].to(device)
            for name in self.COUNTS:
                setattr(self, name, content[name])
            self.started -= content["seconds"]

    def content(self) -> dict[str, Any]:
        return {
            "counts": self.confusion.counts.cpu(),
            "loss": self.loss.cpu(),
            **{name: getattr(self, name) for name in self.COUNTS},
            "seconds": time.monotonic() - self.started,
        }

    def add(self, batch: Batch, loss: torch.Tensor, logits: torch.Tensor, mask: torch.Tensor) -> None:
        """`loss` is the mean over the batch's samples."""
        self.loss += loss.double() * len(batch)
        self.samples += len(batch)
        self.confusion.add(logits, mask)

    def so_far(self) -> tuple[float, float]:
        """Mean loss and IoU until now, for a person who watches: asks the device."""
        names = [each.name for each in self.config.classes]
        loss = self.loss.item() / max(self.samples, 1)
        return loss, metrics.scores(self.confusion.counts.cpu().numpy(), names, loss)["iou"]

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, while the time it takes to get each is summed up, and what it took from cache and store."""
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
            yield batch

    def finish(self) -> dict[str, Any]:
        """The metrics of the phase, logged. Raises where there is nothing to measure, or the loss is not a number."""
        if not self.samples:
            raise DataError(f"none of the {self.empty} {self.phase} tiles has a pixel with both image and mask data")
        loss = self.loss.item() / self.samples
        if not math.isfinite(loss):
            raise RobosatError(
                f"epoch {self.epoch}: the {self.phase} loss is {loss}; check channels[].scale, mean and std, "
                "or lower model.lr"
            )
        seconds = time.monotonic() - self.started
        counts = self.confusion.counts.cpu().numpy()
        if (counts.sum(axis=1) > 0).sum() == 1:
            log.warning(
                "warning: every valid pixel of the %s tiles is of one class, and so their metrics say nothing; do the "
                "masks declare another class's value as nodata?",
                self.phase,
            )
        values = metrics.scores(counts, [each.name for each in self.config.classes], loss)
        values |= {"tiles": self.samples, "empty": self.empty, "seconds": seconds, "waited_s": self.waited_s}
        log.info(
            metrics.log_line(
                self.phase,
                self.epoch,
                self.config.model.epochs,
                values,
                tiles=self.samples,
                empty=self.empty,
                seconds=f"{seconds:.2f}",
                tiles_per_s=f"{self.samples / seconds:.2f}",
                waited=f"{self.waited_s / seconds:.3f}",
                requests=2 * self.fetched + self.retries,
                retries=self.retries,
                megabytes=f"{self.fetched_bytes / 1e6:.2f}",
                cached=self.cached,
            )
        )
        return values
