"""One batch at a time: in parts, in fewer bits, and where the memory does not suffice."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from robosat_pink import loop, memory
from robosat_pink.errors import ContractError
from robosat_pink.losses import build_loss
from robosat_pink.models import build_model
from robosat_pink.models.blocks import Execution, choose_execution


class Small(nn.Module):
    """As much memory as `most` samples take, and no more."""

    def __init__(self, most: int = 100) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)
        self.most, self.seen = most, []  # type: ignore[var-annotated]

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(len(image))
        if len(image) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.")
        found: Tensor = self.conv(image)
        return found


def setup(model: nn.Module, accumulation: int = 1, autocast: torch.dtype | None = None) -> tuple[loop.State, Any]:
    @dataclasses.dataclass
    class Runtime:
        accumulation: int

    @dataclasses.dataclass
    class Experiment:
        runtime: Runtime

    @dataclasses.dataclass
    class Task:
        config: Experiment
        loss: nn.Module
        device: torch.device
        autocast: torch.dtype | None

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    scaler = GradScaler("cpu", enabled=autocast == torch.float16)
    task = Task(Experiment(Runtime(accumulation)), build_loss("lovasz", num_classes=1), torch.device("cpu"), autocast)
    return loop.State(model, optimizer, scaler), task


def batch(samples: int = 7) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    image = torch.randn(samples, 2, 16, 16, generator=random)
    return image, (torch.rand(samples, 16, 16, generator=random) < 0.3).to(torch.uint8)


@pytest.mark.parametrize("parts", [2, 3, 5, 7, 20])
def test_batch_in_parts_has_the_loss_logits_and_gradients_of_the_whole(parts: int) -> None:
    torch.manual_seed(0)
    model = Small()
    found = []
    for number in (1, parts):
        state, task = setup(model, number)
        loss, logits = loop.backward(state, task, *batch())
        assert model.conv.weight.grad is not None
        found.append((loss, logits, model.conv.weight.grad))
    assert max(model.seen[1:]) == -(-7 // min(parts, 7))
    for part, whole in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("most", "accumulation", "fewer"), [(4, 2, 4), (2, 4, 2), (1, 7, 1)])
def test_memory_that_does_not_suffice_is_an_error_that_names_what_fits(
    most: int, accumulation: int, fewer: int
) -> None:
    state, task = setup(Small(most))
    with pytest.raises(ContractError) as caught:
        loop.backward(state, task, *batch())
    message = str(caught.value)
    assert "does not suffice for 7 tile(s) of 16 x 16" in message
    assert f"runtime.accumulation = {accumulation}," in message
    assert f"model.batch_size = {fewer};" in message
    assert "Tried to allocate 20 MiB" in message
    state, task = setup(Small(most), accumulation)
    loop.backward(state, task, *batch())


def test_memory_that_does_not_suffice_for_one_tile_is_an_error_with_the_ways_out() -> None:
    state, task = setup(Small(0), accumulation=3)
    with pytest.raises(ContractError, match=r"for 3 tile.* nor for one; .*recompute = blocks.* model\.tile_size"):
        loop.backward(state, task, *batch())


def test_other_errors_of_the_network_are_not_taken_for_a_lack_of_memory() -> None:
    state, task = setup(Small())
    with pytest.raises(RuntimeError, match="expected input"):
        loop.backward(state, task, torch.zeros(1, 3, 16, 16), torch.zeros(1, 16, 16, dtype=torch.uint8))
    assert memory.is_exhausted(
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
    )


def test_float16_scales_the_loss_and_not_the_step() -> None:
    weights = {}
    for dtype in (None, torch.float16):
        torch.manual_seed(0)
        model = Small()
        state, task = setup(model, autocast=dtype)
        for _ in range(3):
            loop.backward(state, task, *batch())
            state.scaler.step(state.optimizer)
            state.scaler.update()
        assert state.scaler.is_enabled() == (dtype is not None)
        assert state.scaler.get_scale() == (65536.0 if dtype else 1.0)
        weights[dtype] = model.conv.weight.detach()
    torch.testing.assert_close(weights[torch.float16], weights[None], rtol=0.02, atol=1e-3)


def test_scale_of_the_loss_goes_into_resume_points_and_comes_back() -> None:
    state, _ = setup(Small(), autocast=torch.float16)
    state.scaler.scale(torch.zeros(()))
    state.scaler.update(1024.0)
    content = state.to_content()
    other, _ = setup(Small(), autocast=torch.float16)
    other.restore(content)
    assert other.scaler.get_scale() == 1024.0
    in_float32, _ = setup(Small())
    in_float32.restore(content)
    assert not in_float32.scaler.is_enabled()


@pytest.mark.parametrize("name", ["albunet", "ternausnetv2"])
def test_steps_give_the_same_losses_with_every_lever_and_without(name: str) -> None:
    """In float64: in float32 Adam makes whole steps of what the last bits of a gradient near zero say."""
    found = []
    for execution, layout, fused in (
        (Execution("transposed", "norms"), torch.channels_last, True),
        (Execution("plain", "none"), torch.contiguous_format, False),
    ):
        torch.manual_seed(0)
        model = build_model(name, num_classes=1, num_channels=2, num_filters=4).double()
        choose_execution(model, execution)
        model.to(memory_format=layout)  # type: ignore[call-overload]
        state, task = setup(model)
        state.optimizer = torch.optim.Adam(model.parameters(), lr=2.5e-5, fused=fused)
        image, mask = (each.repeat_interleave(4, -1).repeat_interleave(4, -2) for each in batch(2))
        losses = []
        for _ in range(4):
            loss, _ = loop.backward(state, task, image.double().contiguous(memory_format=layout), mask)
            state.optimizer.step()
            losses.append(loss)
        found.append(torch.stack(losses))
    assert found[0][-1] < found[0][0]
    assert (found[0] - found[1]).abs().max() < 1e-6
