"""What a phase of training sums up to: loss, confusion, time and traffic, and its log line. Called by `loop`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from robosat_pink.config import Config
from robosat_pink.datasets.batch import Batch
from robosat_pink.distributed.process_group import World
from robosat_pink.errors import DataError, RobosatError
from robosat_pink.training import metrics
from robosat_pink.training.metrics import Confusion

log = logging.getLogger(__name__)

MOST = 2**53  # of counts and seconds that an earlier process has noted


class PhaseMetrics:
    """Of one phase, in one process; one transfer from the device, at its end."""

    COUNTS = ("empty", "cached", "fetched", "fetched_bytes", "retries")

    def __init__(self, config: Config, device: torch.device, phase: str, epoch: int, steps: int) -> None:
        self.config, self.phase, self.epoch = config, phase, epoch
        self.confusion = Confusion(config.num_classes, device)
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # of losses, and of tiles that have one
        self.is_unfit = torch.zeros(steps, dtype=torch.bool, device=device)  # steps whose loss was not a number
        self.steps_told: set[int] = set()  # of these, those that are known
        self.empty = self.cached = self.fetched = self.fetched_bytes = self.retries = 0
        self.waited_s = 0.0
        self.started = time.monotonic()

    def content(self) -> dict[str, Any]:
        return {
            "counts": self.confusion.counts.cpu(),
            "sums": self.sums.cpu(),
            "is_unfit": self.is_unfit.cpu(),
            **{name: getattr(self, name) for name in (*self.COUNTS, "waited_s")},
            "seconds": time.monotonic() - self.started,
        }

    def restore(self, content: Mapping[str, Any]) -> None:
        """Add what an earlier process of this phase had counted. Raises ValueError at numbers that none comes to."""
        self.confusion.counts += content["counts"].to(self.sums.device)
        self.sums += content["sums"].to(self.sums.device)
        self.is_unfit |= content["is_unfit"].to(self.sums.device)
        self.steps_told |= set(content["is_unfit"].nonzero().flatten().tolist())
        if not self.sums.isfinite().all() or (self.confusion.counts < 0).any():
            raise ValueError("negative counts, NaN or inf")
        for name in (*self.COUNTS, "waited_s", "seconds"):
            if not 0 <= content[name] < MOST:
                raise ValueError(f"{name} below 0, {MOST:,} or more, or NaN")
        for name in (*self.COUNTS, "waited_s"):
            setattr(self, name, getattr(self, name) + content[name])
        self.started = min(self.started, time.monotonic() - content["seconds"])

    def add(
        self,
        step: int,
        batch: Batch,
        loss: torch.Tensor,
        logits: torch.Tensor,
        mask: torch.Tensor,
        is_number: torch.Tensor | None = None,
    ) -> None:
        """`loss` is the mean over the batch's samples; if it is none, as `is_number` says, the batch counts nowhere."""
        sums = torch.stack([loss.double() * len(batch), torch.full_like(self.sums[0], len(batch))])
        if is_number is not None:
            sums = torch.where(is_number, sums, torch.zeros_like(sums))
            self.is_unfit[step] = ~is_number
        self.sums += sums
        if len(batch):
            self.confusion.add(logits, mask)

    def so_far(self) -> tuple[float, float]:
        """Mean loss and IoU until now, in this process, for a person who watches: asks the device."""
        names = [each.name for each in self.config.classes]
        summed, samples = self.sums.tolist()
        loss = summed / max(samples, 1)
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

    def finish(self, world: World) -> dict[str, Any]:
        """The metrics of the phase in all processes, logged. Raises where there is nothing to measure."""
        world.all_reduce_sum(self.confusion.counts, self.sums)
        traffic = world.sum_over_ranks(*(getattr(self, name) for name in self.COUNTS))
        empty, cached, fetched, fetched_bytes, retries = traffic
        summed, samples = self.sums.tolist()
        samples = int(samples)
        if not samples and self.is_unfit.any():
            raise RobosatError(
                f"epoch {self.epoch}: the loss is not a number in any step; check the tiles that were passed over, "
                "channels[].scale, mean and std, or lower model.lr"
            )
        if not samples:
            raise DataError(f"none of the {empty} {self.phase} tiles has a pixel with both image and mask data")
        loss = summed / samples
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
        elif self.phase == "train" and self.epoch == 1 and not counts.sum(axis=1).all():
            of_classes = zip(self.config.classes, counts.sum(axis=1), strict=True)  # several: a single one has no third
            absent = [each.name for each, pixels in of_classes if not pixels]
            log.warning("warning: no pixel that epoch 1 has trained on is %s", ", ".join(absent))
        values = metrics.scores(counts, [each.name for each in self.config.classes], loss)
        values |= {"tiles": samples, "empty": empty, "seconds": seconds, "waited_s": self.waited_s}
        log.info(
            metrics.log_line(
                self.phase,
                self.epoch,
                self.config.model.epochs,
                values,
                tiles=samples,
                empty=empty,
                seconds=f"{seconds:.2f}",
                tiles_per_s=f"{samples / seconds:.2f}",
                waited=f"{self.waited_s / seconds:.3f}",
                requests=2 * fetched + retries,
                retries=retries,
                megabytes=f"{fetched_bytes / 1e6:.2f}",
                cached=cached,
            )
        )
        return values
