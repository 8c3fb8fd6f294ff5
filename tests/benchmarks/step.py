"""What a training step costs, ours beside a straightforward one: arithmetic, memory kept for backward, time.

    python tests/benchmarks/step.py [--network albunet] [--size 512] [--batch 2] [--rounds 3] [--device cpu]
                                    [--brief | --recomputation] [--compiled]

The straightforward step computes in float32 and NCHW, upsamples before each convolution, and loops over images for a
Lovász loss in float64 whose steps are differences. Then each lever is turned on alone, then all together, then all but
one. `torch checkpoint` and `torch selective` are torch's own ways to recompute, over the blocks of the plain network
(torch_checkpoint.py); `--recomputation` compares these with ours alone, all other levers on.
Times are medians of alternating steps, forward, loss, backward and optimizer; on a GPU of five at a time, for nothing
in training waits for it. What is kept for backward is counted once a storage, parameters aside (kept_memory.py); `peak`
is what the process, or the GPU, takes at most during a step beyond what it had before. `prepared` is what
`device.prepare` sets: freed memory is kept on a CPU; on a GPU cuDNN chooses by trial, and float32 takes TF32. bfloat16
is left out on a CPU without instructions for it. `of peak rate` is the arithmetic a second, three times the forward's,
by what the device does in a matrix product of 4096 x 4096 of that type, TF32 where the step takes it. Asserts nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from machine import describe_machine
from measured_step import ALL, Form, Levers, Recomputation, Step, prepare, step_arguments, wait_for

from robosat_pink.container.device import choose_precision

MATRIX = 4096
FORMS: tuple[Form, ...] = ("auto", "plain", "transposed")
RECOMPUTATIONS: tuple[Recomputation, ...] = ("none", "norms", "blocks", "torch checkpoint", "torch selective")
LEVER_BY_LEVER = (
    Levers(),
    Levers(form="transposed"),
    Levers(form="auto"),
    *(Levers(recompute=recompute) for recompute in RECOMPUTATIONS[1:]),
    Levers(bf16=True),
    Levers(channels_last=True),
    Levers(loss=True),
    Levers(fused=True),
    Levers(prepared=True),
    ALL,
    replace(ALL, form="plain"),
    replace(ALL, form="transposed"),
    *(replace(ALL, recompute=recompute) for recompute in RECOMPUTATIONS if recompute != ALL.recompute),
    replace(ALL, bf16=False),
    replace(ALL, channels_last=False),
    replace(ALL, loss=False),
    replace(ALL, fused=False),
    replace(ALL, prepared=False),
)
BRIEF = (Levers(), *(replace(ALL, form=form) for form in FORMS), replace(ALL, recompute="none"))
RECOMPUTATION = (Levers(), *(replace(ALL, recompute=recompute) for recompute in RECOMPUTATIONS))


class Counts(NamedTuple):
    forward_flops: int
    kept_bytes: int
    peak_bytes: int


def parse_arguments() -> argparse.Namespace:
    parser = step_arguments("What a training step costs, lever by lever.")
    parser.add_argument("--rounds", type=int, default=3)
    contenders = parser.add_mutually_exclusive_group()
    contenders.add_argument(
        "--brief", action="store_true", help="only without levers, with all, and with all but one or other"
    )
    contenders.add_argument(
        "--recomputation", action="store_true", help="only ways to recompute, ours and torch's, all other levers on"
    )
    parser.add_argument("--compiled", action="store_true", help="with all levers and compiled, too: some minutes")
    return parser.parse_args()


def contenders_of(options: argparse.Namespace) -> list[Levers]:
    """Each once. Without bfloat16 ours computes in the plain layout, too."""
    chosen = list(BRIEF if options.brief else RECOMPUTATION if options.recomputation else LEVER_BY_LEVER)
    if options.compiled:
        chosen.append(replace(ALL, recompute="none", compiled=True))
    if options.device == "cpu" and choose_precision("auto", torch.device("cpu")) != torch.bfloat16:
        chosen = [replace(levers, bf16=False, channels_last=False) for levers in chosen]
    return list(dict.fromkeys(chosen))


def measure(steps: list[Step], rounds: int, device: str) -> list[Counts]:
    """Count, then time the steps in turn: their `seconds` are those of all rounds but a first one that warms up."""
    for step in steps:
        prepare(device, step.levers.prepared)
        step.run()  # from here on Adam has its moments
    with torch.compiler.set_stance("force_eager"):  # what a compiler keeps is its own affair, and not counted
        counted = [(step.forward_flops(), step.kept_bytes()) for step in steps]
    counts = [Counts(flops, kept, step.peak_bytes()) for (flops, kept), step in zip(counted, steps, strict=True)]
    for _ in range(rounds + 1):
        for step in steps:
            step.measure()
    for step in steps:
        del step.seconds[0]
    return counts


def peak_flops(device: str, arithmetic: str) -> float:
    """Of a matrix product in a type that `Levers.arithmetic` names, a second."""
    prepare(device, arithmetic == "TF32")
    dtype = torch.bfloat16 if arithmetic == "bfloat16" else torch.float32
    first, second = (torch.randn(MATRIX, MATRIX, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        first @ second
        wait_for(device)
        seconds.append(time.perf_counter() - started)
    return 2 * MATRIX**3 / min(seconds)


def table(steps: list[Step], counts: list[Counts], peaks: dict[str, float], batch: int) -> Iterator[str]:
    yield (
        "| levers | forward GFLOP | x | kept for backward, MB | x | peak, MB | x | s | times faster | tiles/s "
        "| of peak rate |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    base_flops, base_kept, base_peak = counts[0]
    for step, (flops, kept, peak) in zip(steps, counts, strict=True):
        seconds = step.median_s
        peak_rate = peaks[step.levers.arithmetic(step.device)]
        yield (
            f"| {step.levers} | {flops / 1e9:.1f} | {flops / base_flops:.3f} | {kept / 1e6:.0f} "
            f"| {kept / base_kept:.2f} | {peak / 1e6:.0f} | {peak / base_peak:.2f} | {seconds:.3f} "
            f"| {steps[0].median_s / seconds:.2f} | {batch / seconds:.2f} | {3 * flops / seconds / peak_rate:.2f} |"
        )


def main() -> None:
    options = parse_arguments()
    device = options.device
    contenders = contenders_of(options)
    types = dict.fromkeys(levers.arithmetic(device) for levers in contenders)
    peaks = {arithmetic: peak_flops(device, arithmetic) for arithmetic in types}
    steps = [Step(levers, options.network, options.batch, options.size, device) for levers in contenders]
    counts = measure(steps, options.rounds, device)
    print(*table(steps, counts, peaks, options.batch), sep="\n")
    rates = ", ".join(f"{peak / 1e9:.0f} in {arithmetic}" for arithmetic, peak in peaks.items())
    print(
        f"\n{describe_machine()}; {options.network}, {device}, {options.size} x {options.size}, "
        f"batch {options.batch}; matrix product, GFLOP/s: {rates}"
    )


if __name__ == "__main__":
    main()
