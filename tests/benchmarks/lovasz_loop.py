"""The Lovász hinge as a loop over images, and how long it takes beside ours, forward and backward.

    python tests/benchmarks/lovasz_loop.py [--size 512] [--batch 2] [--rounds 3] [--device cpu]

The last column is how far the gradient of ours, in float32, is from the loop's, in float64. Asserts nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from machine import describe_machine
from torch import Tensor
from torch.nn import functional

from robosat_pink.losses import build_loss

POSITIVE_SHARES = (0.5, 0.1, 0.01, 0.001)


def looped_lovasz_hinge(logits: Tensor, mask: Tensor) -> Tensor:
    """Image by image, in float64, each step the difference of two Jaccard losses."""
    losses = []
    for score, truth in zip(logits[:, 0].double(), mask.double(), strict=True):
        score, truth = score.flatten(), truth.flatten()
        errors, permutation = (1 - score * (2 * truth - 1)).sort(descending=True)
        truth_by_error = truth[permutation]
        positives = truth_by_error.sum()
        jaccard = 1 - (positives - truth_by_error.cumsum(0)) / (positives + (1 - truth_by_error).cumsum(0))
        steps = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
        losses.append(functional.relu(errors) @ steps)
    return torch.stack(losses).mean()


def compare(logits: Tensor, mask: Tensor, rounds: int) -> tuple[float, float, float]:
    """Median seconds of the loop and of ours, and how far the gradient of ours is off, relative to the loop's."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(4 * rounds + 1):
        gradients = []
        for loss, times in zip((looped_lovasz_hinge, build_loss("lovasz", num_classes=1)), seconds, strict=True):
            variable = logits.clone().requires_grad_()
            started = time.perf_counter()
            loss(variable, mask).backward()
            if logits.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
            gradients.append(variable.grad.double())
    expected, computed = gradients
    looped_s, ours_s = (statistics.median(times[1:]) for times in seconds)
    return looped_s, ours_s, float((computed - expected).norm() / expected.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description="The Lovász hinge beside a loop over images.")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    batch, size, device = options.batch, options.size, options.device
    print("| positives | loop over images in float64, ms | ours in float32, ms | times faster | gradient off by |")
    print("|---:|---:|---:|---:|---:|")
    for share in POSITIVE_SHARES:
        torch.manual_seed(0)
        logits = torch.randn(batch, 1, size, size, device=device)
        mask = (torch.rand(batch, size, size, device=device) < share).to(torch.uint8)
        looped_s, ours_s, off = compare(logits, mask, options.rounds)
        print(
            f"| {share:.1%} | {1e3 * looped_s:.0f} | {1e3 * ours_s:.0f} | {looped_s / ours_s:.2f} | {off:.1e} |",
            flush=True,
        )
    print(f"\n{describe_machine()}; {device}, batch {batch} of {size} x {size}")


if __name__ == "__main__":
    main()
