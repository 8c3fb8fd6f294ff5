"""How long the transposed form of AlbuNet's upsampling blocks takes beside the plain one, forward and backward.

    python tests/benchmarks/upsampling.py [--batch 2] [--device cpu]

`blocks.MIN_TRANSPOSED_PIXELS` is chosen by this table. Asserts nothing.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from machine import describe_machine
from measured_step import prepare, seconds_of

from robosat_pink.container.device import choose_precision
from robosat_pink.models.recomputation import Upsampling, conv_of

# AlbuNet-50 on 512 x 512: channels in and out, and the size of the input.
BLOCKS = ((2048, 256, 8), (2304, 256, 16), (1280, 256, 32), (768, 64, 64), (320, 128, 128), (128, 32, 256))
FORMS: tuple[Upsampling, Upsampling] = ("plain", "transposed")
ROUNDS = 4  # the first of which warms up


def median_seconds(
    batch: int, num_in: int, num_out: int, size: int, dtype: torch.dtype, device: str
) -> tuple[float, float]:
    """Of the plain and of the transposed form, in turn."""
    features = torch.randn(batch, num_in, size, size).to(device, dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(num_out, num_in, 3, 3).to(device, dtype).to(memory_format=torch.channels_last)
    features.requires_grad_()
    weight.requires_grad_()

    def convolve(form: Upsampling) -> None:
        conv_of(features, weight, None, form, (1, 1), (1, 1)).sum().backward()

    rounds = [[seconds_of(lambda form=form: convolve(form), device) for form in FORMS] for _ in range(ROUNDS)]
    plain_s, transposed_s = (statistics.median(times[1:]) for times in zip(*rounds, strict=True))
    return plain_s, transposed_s


def main() -> None:
    parser = argparse.ArgumentParser(description="The two forms of AlbuNet's upsampling blocks.")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    device = options.device
    prepare(device, True)
    has_bf16 = choose_precision("auto", torch.device(device)) == torch.bfloat16
    dtypes = (torch.float32, torch.bfloat16) if has_bf16 else (torch.float32,)
    print("| channels | input | float32, plain, ms | transposed | x | bfloat16, plain, ms | transposed | x |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for num_in, num_out, size in BLOCKS:
        cells = []
        for dtype in dtypes:
            plain_s, transposed_s = median_seconds(options.batch, num_in, num_out, size, dtype, device)
            cells.append(f"{1e3 * plain_s:.3f} | {1e3 * transposed_s:.3f} | {transposed_s / plain_s:.2f}")
        print(f"| {num_in} to {num_out} | {size} x {size} | {' | '.join(cells)} |", flush=True)
    print(f"\n{describe_machine()}; {device}, batch {options.batch}, channels_last, forward and backward")


if __name__ == "__main__":
    main()
