"""Synchronised batch norm in two processes, on a CPU and, where there is one, on a GPU that both share."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from robosat_pink.models.recomputation import batch_norm
from robosat_pink.models.synchronisation import synchronise

DTYPES = (torch.float32, torch.bfloat16)
LAYOUTS = (torch.channels_last, torch.contiguous_format)
COUNTS = ((True, True), (True, False))  # whether each rank adds to the statistics
CASES = list(itertools.product(DTYPES, LAYOUTS, COUNTS))


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Features and upstream gradients (2 ranks, N, C, H, W)."""
    generator = torch.Generator().manual_seed(1)
    features, gradient = (torch.randn(2, 3, 5, 9, 7, generator=generator) for _ in range(2))
    return (features * 2 + 1).to(dtype), gradient.to(dtype)


def new_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(5)
    norm.weight.data.copy_(torch.linspace(0.5, 2, 5))
    norm.bias.data.copy_(torch.linspace(-1, 1, 5))
    return norm


def normalise(rank: int, store: Path, device: str) -> None:
    """A rank's life: its results in every case, saved for the test."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    results = []
    for dtype, layout, counts in CASES:
        features, gradient = inputs(dtype)
        norm = new_norm().to(device)
        synchronise(norm)
        norm.counts = counts[rank]  # type: ignore[assignment]
        image = features[rank].to(device).to(memory_format=layout).requires_grad_()
        normed = batch_norm(image, norm)
        normed.backward(gradient[rank].to(device))
        content = {"normed": normed, "image": image.grad, "weight": norm.weight.grad, "var": norm.running_var}
        results.append({name: tensor.detach().cpu() for name, tensor in content.items()})
    torch.save(results, f"{store}-{rank}")
    dist.destroy_process_group()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_two_ranks_normalise_by_the_statistics_of_the_ranks_that_count(tmp_path: Path, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    store = tmp_path / "store"
    torch.multiprocessing.spawn(normalise, (store, device), nprocs=2)
    ranks = [torch.load(f"{store}-{rank}") for rank in (0, 1)]
    for (dtype, _, counts), *results in zip(CASES, *ranks, strict=True):
        features, gradient = (tensor.double() for tensor in inputs(dtype))
        norm = new_norm().double()
        counted = features[: sum(counts)].flatten(0, 1).requires_grad_()
        norm(counted).backward(gradient[: sum(counts)].flatten(0, 1))
        var, mean = torch.var_mean(counted.detach(), (0, 2, 3), correction=0)
        scale = (norm.weight.detach() / (var + norm.eps).sqrt())[:, None, None]
        expected = (features - mean[:, None, None]) * scale + norm.bias.detach()[:, None, None]

        tolerance = 1e-5 if dtype == torch.float32 else 0.03
        for rank, result in enumerate(results):
            torch.testing.assert_close(result["var"].double(), norm.running_var, atol=1e-6, rtol=0)
            torch.testing.assert_close(result["normed"].double(), expected[rank], atol=tolerance, rtol=0)
        if all(counts):
            weight, image = results[0]["weight"] + results[1]["weight"], [result["image"] for result in results]
            torch.testing.assert_close(weight, norm.weight.grad.float(), atol=0, rtol=tolerance)
            of_all = counted.grad.view_as(features)
            torch.testing.assert_close(torch.stack(image).double(), of_all, atol=tolerance, rtol=0)
        else:  # the statistics do not depend on rank 1, whose gradient is that of a scale and a shift
            torch.testing.assert_close(results[1]["image"].double(), gradient[1] * scale, atol=tolerance, rtol=0)
