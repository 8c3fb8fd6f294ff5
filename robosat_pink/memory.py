"""When the memory of the device does not suffice for a step: what would. Called by `step` and `check`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from robosat_pink.errors import ContractError


def is_exhausted(error: Exception) -> bool:
    """Whether an error says that there is no memory left; on a CPU torch has no kind of its own for that."""
    on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return isinstance(error, torch.OutOfMemoryError) or on_cpu


def explained(
    reason: str, samples: int, size: tuple[int, int], parts: int, step: Callable[[int], object] | None
) -> ContractError:
    """An error that names the accumulation and the batch size that fit, found by `step(parts)` in ever more parts.

    Without `step`, where other processes would have to take part, it names what to try.
    """
    height, width = size
    at_once = -(-samples // parts)
    what = f"the memory does not suffice for {at_once} tile(s) of {height} x {width} at a time"
    less = "runtime.recompute = blocks, or runtime.precision = bf16 or fp16, take less"
    if step is None and at_once > 1:
        return ContractError(f"{what}; try runtime.accumulation = {2 * parts}, or more processes; {less}. {reason}")
    fitting = next((each for each in _more_parts(samples, parts) if step and _fits(step, each)), None)
    if fitting is None:
        return ContractError(
            f"{what}, nor for one; {less}, and so does a smaller model.tile_size; or take a machine with more. {reason}"
        )
    fewer = -(-samples // fitting)
    return ContractError(
        f"{what}; {fewer} fit: set runtime.accumulation = {fitting}, which learns from the same {samples} tiles a step "
        f"(batch norm sees {fewer} of them at a time), or model.batch_size = {fewer}; {less}. {reason}"
    )


def _more_parts(samples: int, parts: int) -> list[int]:
    """Twice as many parts, and so on, to one sample each."""
    found = []
    while parts < samples:
        parts = min(2 * parts, samples)
        found.append(parts)
    return found


def _fits(step: Callable[[int], object], parts: int) -> bool:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        step(parts)
    except Exception as error:
        if not is_exhausted(error):
            raise
        return False
    return True
