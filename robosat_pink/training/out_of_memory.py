"""When the memory of the device does not suffice for a batch: what would. Called by `step` and `check`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from robosat_pink.config import Config
from robosat_pink.errors import ContractError

T = TypeVar("T")


def explained(
    config: Config,
    processes: int,
    samples: int,
    size: tuple[int, int],
    work: Callable[[int], T],
    forget: Callable[[], object] = lambda: None,
) -> T:
    """work(parts), on so many tiles of this height and width, in as many parts as the experiment says.

    Where the memory does not suffice, ContractError with the settings that fit. They are found by the same work in
    ever more parts; before each trial `forget` is called, for the run has failed and its state is of no more use.
    """
    parts = config.runtime.accumulation
    try:
        return work(parts)
    except Exception as error:
        if not is_exhausted(error):
            raise
        reason = str(error)
    # Not before the error is gone, and what it held with it.
    height, width = size
    at_once = -(-samples // parts)
    what = f"the memory does not suffice for {at_once} tile(s) of {height} x {width} at a time"
    less = "runtime.precision = bf16 or fp16 takes less, and so does, in training, runtime.recompute = blocks"
    less += " without runtime.compile" * config.runtime.compile
    if processes > 1 and at_once > 1:  # the others would have to take part in a trial
        is_synchronised = config.model.batch_norm == "synchronised"  # and so is not computed in parts
        way = "a smaller model.batch_size" if is_synchronised else f"runtime.accumulation = {2 * parts}"
        raise ContractError(f"{what}; try {way}, or more processes; {less}. {reason}")
    more = _more_parts(samples, parts) if processes == 1 else []
    fitting = next((each for each in more if _fits(work, forget, each)), None)
    if fitting is None:
        raise ContractError(
            f"{what}, nor for one; {less} or a smaller model.tile_size; or take a machine with more. {reason}"
        )
    fewer = -(-samples // fitting)
    raise ContractError(
        f"{what}; {fewer} fit: set runtime.accumulation = {fitting}, which learns from the same {samples} tiles a step "
        f"(batch norm sees {fewer} of them at a time), or model.batch_size = {fewer}; {less}. {reason}"
    )


def is_exhausted(error: Exception) -> bool:
    """Whether an error says that there is no memory left; on a CPU torch has no kind of its own for that."""
    on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return isinstance(error, torch.OutOfMemoryError) or on_cpu


def _more_parts(samples: int, parts: int) -> list[int]:
    """Twice as many parts, and so on, to one sample each."""
    found = []
    while parts < samples:
        parts = min(2 * parts, samples)
        found.append(parts)
    return found


def _fits(work: Callable[[int], object], forget: Callable[[], object], parts: int) -> bool:
    forget()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        work(parts)
    except Exception as error:
        if not is_exhausted(error):
            raise
        return False
    return True
