"""Finds settings with which a batch fits into the device's memory, after it did not. Called by `step` and `check`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch

from robosat_pink.config import Config
from robosat_pink.errors import ContractError

T = TypeVar("T")


def with_advice(
    config: Config,
    world_size: int,
    samples: int,
    size: tuple[int, int],
    work: Callable[[int], T],
    before_retry: Callable[[], object] = lambda: None,
) -> T:
    """The result of `work`, which computes `samples` tiles of `size` (H, W) in runtime.accumulation micro-batches.

    If the device runs out of memory, raises ContractError with settings that fit. To find them, it calls `before_retry`
    and then `work` with more micro-batches. These calls may spoil the run's state, which is no longer needed.
    """
    micro_batches = config.runtime.accumulation
    try:
        return work(micro_batches)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error)
    # Outside of `except`, where the error would keep the tensors of its frames alive.
    height, width = size
    fewest = math.ceil(samples / micro_batches)
    problem = f"the memory does not suffice for {fewest} tile(s) of {height} x {width} at a time"
    cheaper = _cheaper_settings(config)
    if world_size > 1 and fewest > 1:  # the other ranks would have to take part in a retry
        # Synchronised batch norm excludes micro-batches.
        is_synchronised = config.model.batch_norm == "synchronised"
        way = "a smaller model.batch_size" if is_synchronised else f"runtime.accumulation = {2 * micro_batches}"
        raise ContractError(f"{problem}; try {way}, or more processes; {cheaper}. {reason}")
    fitting = _fitting_micro_batches(samples, micro_batches, work, before_retry) if world_size == 1 else None
    if fitting is None:
        raise ContractError(
            f"{problem}, not even for one; {cheaper}, or a smaller model.tile_size, or a machine with more. {reason}"
        )
    fewer = math.ceil(samples / fitting)
    raise ContractError(
        f"{problem}; {fewer} fit: set runtime.accumulation = {fitting}, which learns from the same {samples} tiles a "
        f"step (batch norm sees {fewer} of them at a time), or model.batch_size = {fewer}; {cheaper}. {reason}"
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch ran out of memory, for which it raises a plain RuntimeError on a CPU."""
    on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return isinstance(error, torch.OutOfMemoryError) or on_cpu


def _cheaper_settings(config: Config) -> str:
    settings = "runtime.precision = bf16 or fp16 needs less; in training, so does runtime.recompute = norms or blocks"
    return f"{settings} without runtime.compile" if config.runtime.compile else settings


def _fitting_micro_batches(
    samples: int, micro_batches: int, work: Callable[[int], object], before_retry: Callable[[], object]
) -> int | None:
    """Double the number of micro-batches until `work` fits. None if it does not fit even with one sample in each."""
    while micro_batches < samples:
        micro_batches = min(2 * micro_batches, samples)
        before_retry()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            work(micro_batches)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            return micro_batches
    return None
