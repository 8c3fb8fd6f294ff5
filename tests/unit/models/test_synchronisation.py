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
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.05}


def inputs(dtype: torch.dtype, counts: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
    """Features and upstream gradients (2 ranks, N, C, H, W). A channel is constant; a rank without tiles has zeros."""
    generator = torch.Generator().manual_seed(1)
    features, gradient = (torch.randn(2, 3, 5, 9, 7, generator=generator) for _ in range(2))
    features = features * 2 + 1
    features[:, :, 4] = 3
    features[~torch.tensor(counts)] = 0
    return features.to(dtype), gradient.to(dtype)


def new_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(5)
    norm.weight.data.copy_(torch.linspace(0.5, 2, 5))
    norm.bias.data.copy_(torch.linspace(-1, 1, 5))
    return norm


def wide(channels: Tensor) -> Tensor:
    return channels[:, None, None]


def content_of(norm: nn.BatchNorm2d, normed: Tensor, image: Tensor) -> dict[str, Tensor]:
    tensors = {"normed": normed, "image": image.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    tensors |= {"mean": norm.running_mean, "var": norm.running_var}
    return {name: tensor.detach().cpu().double() for name, tensor in tensors.items() if tensor is not None}


def normalise(rank: int, store: Path, device: str) -> None:
    """A rank's life: its results in every case, saved for the test."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    results = []
    for dtype, layout, counts in CASES:
        features, gradient = inputs(dtype, counts)
        norm = new_norm().to(device)
        synchronise(norm)
        norm.counts = counts[rank]  # type: ignore[assignment]
        image = features[rank].to(device).contiguous(memory_format=layout).requires_grad_()
        normed = batch_norm(image, norm)
        normed.backward(gradient[rank].to(device).contiguous(memory_format=layout))
        results.append(content_of(norm, normed, image))
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
        features, gradient = (tensor.double() for tensor in inputs(dtype, counts))
        features.requires_grad_()
        norm = new_norm().double()
        counted = features[: sum(counts)].flatten(0, 1)
        norm(counted)  # for its running statistics
        var, mean = torch.var_mean(counted, (0, 2, 3), correction=0, keepdim=True)
        normed = (features - mean) / (var + norm.eps).sqrt() * wide(norm.weight) + wide(norm.bias)
        normed.backward(gradient)
        expected = content_of(norm, normed, features)
        for name in ("mean", "var"):
            for result in results:
                torch.testing.assert_close(result[name], expected[name], atol=1e-5, rtol=1e-5)
        for name in ("normed", "image", "weight", "bias"):
            parts = torch.stack([result[name] for result in results])
            parts = parts if name in ("normed", "image") else parts.sum(0)
            torch.testing.assert_close(parts, expected[name], atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])
