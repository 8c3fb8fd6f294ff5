"""How far losses of a training with all levers part from those without, and what another rounding does to them.

    python tests/benchmarks/losses_apart.py [--network albunet] [--size 512] [--batch 2] [--steps 50] [--device cpu]

Training multiplies what differs: Adam's first steps have the gradients' signs alone, and norms spread a difference over
all pixels. So the straightforward step stands beside itself, too, its first weights off by 2^-23. Asserts nothing.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from machine import describe_machine
from measured_step import ALL, Levers, Step, step_arguments

ROUNDING = 2.0**-23


def round_otherwise(model: torch.nn.Module) -> None:
    """Move each weight by a rounding of float32, up or down."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + ROUNDING * torch.randn_like(parameter).sign().to(torch.float64))


def main() -> None:
    parser = step_arguments("How far losses part, levers on and off.")
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    exact = replace(ALL, bf16=False, channels_last=options.device == "cuda")  # as a run in float32 has them
    print("| beside the straightforward step | first loss | last | apart by at most |")
    print("|---|---:|---:|---:|")
    for name, levers, dtype in (
        ("all levers, float32", exact, torch.float32),
        ("itself, its first weights off by 2^-23 of them, float32", Levers(), torch.float32),
        ("all levers, float64", exact, torch.float64),
        ("itself, its first weights off by 2^-23 of them, float64", Levers(), torch.float64),
    ):
        where = (options.network, options.batch, options.size, options.device, dtype)
        base, other = Step(Levers(), *where), Step(levers, *where)
        if levers == Levers():
            round_otherwise(other.model)
        losses = [(base.run().item(), other.run().item()) for _ in range(options.steps)]
        apart = max(abs(first - second) for first, second in losses)
        print(f"| {name} | {losses[0][0]:.6f} | {losses[-1][0]:.6f} | {apart:.1e} |", flush=True)
    print(
        f"\n{describe_machine()}; {options.network}, {options.device}, {options.size} x {options.size}, "
        f"batch {options.batch}, {options.steps} steps"
    )


if __name__ == "__main__":
    main()
