"""What the benchmarks call kept for backward, on operations whose memory is known by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks.kept_memory import kept_bytes
from benchmarks.torch_checkpoint import CHECKPOINT, SELECTIVE
from robosat_pink.models.blocks import Execution

CHANNEL_BYTES = 4 * 8 * 8 * 4  # of 4 images of 8 x 8, in float32


def test_each_storage_counts_once_and_the_batch_never() -> None:
    image = torch.ones(256, requires_grad=True)

    def squared_twice() -> Tensor:
        square = image * image  # keeps the image
        return (square * square.view(256)).sum()  # keeps the square, which is one storage

    assert kept_bytes(squared_twice, [image]) == 256 * 4


@pytest.mark.parametrize(
    ("execution", "channels"),
    [
        (Execution(recompute="none"), 3 + 3),  # the norm's input, the activated norm
        (CHECKPOINT, 0),
        (SELECTIVE, 3 + 5),  # what both convolutions return
    ],
    ids=["plain", "checkpoint", "selective"],
)
def test_a_checkpoint_keeps_its_input_and_what_its_policy_says(execution: Execution, channels: int) -> None:
    image = torch.randn(4, 2, 8, 8)
    first, norm, second = nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3), nn.Conv2d(3, 5, 1, bias=False)
    block = nn.Sequential(first, norm, nn.ReLU(), second)
    permanent = [image, *block.parameters(), *block.buffers()]
    kept = kept_bytes(lambda: execution.block(block, image).sum(), permanent)
    statistics = kept - channels * CHANNEL_BYTES
    assert 0 <= statistics <= 2 * 3 * 4  # mean and deviation of the norm's three channels


def test_checkpoints_change_no_gradient() -> None:
    image = torch.randn(4, 2, 8, 8)
    block = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 5, 1), nn.ReLU(inplace=True))

    def gradients(run: Callable[..., Tensor]) -> list[Tensor]:
        block.zero_grad()
        run(block, image).square().sum().backward()
        return [parameter.grad for parameter in block.parameters() if parameter.grad is not None]

    expected = gradients(Execution(recompute="none").block)
    for execution in (CHECKPOINT, SELECTIVE):
        assert all(map(torch.equal, gradients(execution.block), expected))
