"""One batch at a time: in micro-batches, in fewer bits, and when the memory does not suffice."""

import contextlib
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from robosat_pink.config import ModelConfig, RuntimeConfig, SamplingConfig
from robosat_pink.datasets.batch import Batch
from robosat_pink.datasets.transforms import EvaluationTransform
from robosat_pink.distributed.launcher import ProcessRank
from robosat_pink.distributed.process_group import World
from robosat_pink.errors import ContractError
from robosat_pink.losses import build_loss
from robosat_pink.models import MODELS, build_model
from robosat_pink.models.blocks import Execution, choose_execution
from robosat_pink.training import out_of_memory, step
from robosat_pink.training.state import State


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


class Experiment:
    """As much of a Config as a step asks for."""

    num_channels = 2

    def __init__(self, accumulation: int) -> None:
        self.runtime = RuntimeConfig(accumulation=accumulation)
        self.model = ModelConfig(name="albunet", tile_size=16)
        self.sampling = SamplingConfig()


def setup(model: nn.Module, accumulation: int = 1, autocast: torch.dtype | None = None) -> tuple[State, Any]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    scaler = GradScaler("cpu", enabled=autocast == torch.float16)
    transform = EvaluationTransform((0.0, 0.0), (1.0, 1.0))
    task = SimpleNamespace(
        config=Experiment(accumulation),
        objective=SimpleNamespace(wrapped_model=model, loss=build_loss("lovasz", num_classes=1), compiled_sizes=set()),
        data=SimpleNamespace(training_transform=transform, evaluation_transform=transform),
        compute=SimpleNamespace(
            device=torch.device("cpu"), precision=autocast, memory_format=torch.contiguous_format, world=World()
        ),
    )
    return State(model, optimizer, scaler), task


def batch(samples: int = 7) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    image = torch.randn(samples, 2, 16, 16, generator=random)
    return image, (torch.rand(samples, 16, 16, generator=random) < 0.3).to(torch.uint8)


def batch_of(image: Tensor, mask: Tensor) -> Batch:
    rows = tuple(range(len(image)))
    sizes = ((image.shape[2], image.shape[3]),) * len(image)
    return Batch(image, mask, torch.ones(len(image), image.shape[1]), (0,) * len(image), rows, sizes, 0, 0, 0, 0)


@pytest.mark.parametrize("micro_batches", [2, 3, 5, 7, 20])
def test_micro_batches_have_the_loss_logits_and_gradients_of_the_whole(micro_batches: int) -> None:
    torch.manual_seed(0)
    model = Small()
    found = []
    for number in (1, micro_batches):
        state, task = setup(model)
        loss, logits = step.backward(state, task, *batch(), 7, number)
        assert model.conv.weight.grad is not None
        found.append((loss, logits, model.conv.weight.grad))
    assert max(model.seen[1:]) == math.ceil(7 / min(micro_batches, 7))
    for part, whole in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("most", "accumulation", "fewer"), [(4, 2, 4), (2, 4, 2), (1, 7, 1)])
def test_memory_that_does_not_suffice_is_an_error_that_names_what_fits(
    most: int, accumulation: int, fewer: int
) -> None:
    state, task = setup(Small(most))
    with pytest.raises(ContractError) as caught:
        step.training_step(state, task, batch_of(*batch()), 7)
    message = str(caught.value)
    assert "does not suffice for 7 tile(s) of 16 x 16" in message
    assert f"runtime.accumulation = {accumulation}," in message
    assert f"model.batch_size = {fewer};" in message
    assert "Tried to allocate 20 MiB" in message
    state, task = setup(Small(most), accumulation)
    step.training_step(state, task, batch_of(*batch()), 7)


@pytest.mark.parametrize(
    ("batch_norm", "way"), [("batch", "runtime.accumulation = 4"), ("synchronised", "a smaller model.batch_size")]
)
def test_several_processes_are_told_of_what_they_may_do_where_memory_does_not_suffice(
    batch_norm: Literal["batch", "synchronised"], way: str
) -> None:
    state, task = setup(Small(2), 2)
    task.config.model = replace(task.config.model, batch_norm=batch_norm)
    task.compute.world = World(ProcessRank(0, 2))
    with pytest.raises(ContractError, match=f"for 4 tile.* at a time; try {way}, or more processes; ") as caught:
        step.training_step(state, task, batch_of(*batch()), 14)
    assert ("accumulation" in str(caught.value)) == (batch_norm == "batch")


def test_memory_that_does_not_suffice_for_one_tile_is_an_error_with_the_ways_out() -> None:
    state, task = setup(Small(0), accumulation=3)
    with pytest.raises(
        ContractError, match=r"for 3 tile.* not even for one; .*recompute = norms or blocks.* model\.tile_size"
    ):
        step.training_step(state, task, batch_of(*batch()), 7)


@pytest.mark.parametrize("autocast", [None, torch.float16])
def test_memory_that_ends_while_adam_makes_its_moments_is_explained(
    monkeypatch: pytest.MonkeyPatch, autocast: torch.dtype | None
) -> None:
    made = []

    def zeros_like(tensor: Tensor, **options: Any) -> Tensor:
        made.append(tensor)
        if len(made) == 2:  # of the first parameter's moments the second
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return torch.empty_like(tensor, **options).zero_()

    monkeypatch.setattr(torch, "zeros_like", zeros_like)
    state, task = setup(Small(), autocast=autocast)
    with pytest.raises(ContractError, match=r"runtime\.accumulation = 2,"):
        step.training_step(state, task, batch_of(*batch()), 7)
    assert len(made) == 6  # those of both parameters, in the trial


def test_memory_that_does_not_suffice_for_whole_tiles_is_explained_by_their_size() -> None:
    image, mask = (each.repeat_interleave(2, -1) for each in batch())
    state, task = setup(Small(3))
    with pytest.raises(
        ContractError, match=r"for 7 tile\(s\) of 16 x 32 at a time; 2 fit: set runtime\.accumulation = 4,"
    ):
        step.evaluation_step(state.model, task, batch_of(image, mask))


@pytest.mark.parametrize("micro_batches", [2, 3, 7, 20])
def test_evaluation_in_micro_batches_has_the_loss_logits_and_mask_of_the_whole(micro_batches: int) -> None:
    model = Small().eval()
    whole, found = (
        step.evaluation_step(model, setup(model, accumulation)[1], batch_of(*batch()))
        for accumulation in (1, micro_batches)
    )
    assert max(model.seen[1:]) == math.ceil(7 / min(micro_batches, 7))
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_other_errors_of_the_network_are_not_taken_for_a_lack_of_memory() -> None:
    state, task = setup(nn.Conv2d(3, 1, 1))
    with pytest.raises(RuntimeError, match="expected input"):
        step.training_step(state, task, batch_of(*batch()), 7)
    assert out_of_memory.is_out_of_memory(
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
    )


def test_float16_scales_the_loss_and_not_the_step() -> None:
    weights = {}
    for dtype in (None, torch.float16):
        torch.manual_seed(0)
        model = Small()
        state, task = setup(model, autocast=dtype)
        for _ in range(3):
            step.backward(state, task, *batch(), 7, 1)
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


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
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
            loss, _ = step.backward(state, task, image.double().contiguous(memory_format=layout), mask, 2, 1)
            state.optimizer.step()
            losses.append(loss)
        found.append(torch.stack(losses))
    assert found[0][-1] < found[0][0]
    assert (found[0] - found[1]).abs().max() < 1e-6


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(2), nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.conv(self.norm(image))
        return found


@pytest.mark.parametrize("autocast", [None, torch.float16])
@pytest.mark.parametrize("where", ["image", "loss"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_batch_with_a_non_finite_loss_changes_neither_weights_nor_moments_nor_statistics(
    autocast: torch.dtype | None, where: str, value: float
) -> None:
    """Where it comes from the loss alone, gradients are numbers all the same."""
    torch.manual_seed(0)
    model = Normed()
    state, task = setup(model, autocast=autocast)
    image, mask = batch()
    *_, is_finite = step.training_step(state, task, batch_of(image, mask), 7)
    assert is_finite

    def everything() -> list[Tensor]:
        moments = [each for entry in state.optimizer.state_dict()["state"].values() for each in entry.values()]
        floats = [each for each in model.state_dict().values() if each.is_floating_point()]
        return [each.clone() for each in (*floats, *moments)]

    before = everything()
    broken, loss = image.clone(), task.objective.loss
    if where == "image":
        broken[3, 1, 5, 5] = value
    else:
        task.objective.loss = lambda logits, mask: loss(logits, mask) + value
    *_, counted, is_finite = step.training_step(state, task, batch_of(broken, mask), 7)
    assert not is_finite
    assert (counted == 255).all()
    assert all(torch.equal(one, other) for one, other in zip(everything(), before, strict=True))
    task.objective.loss = loss
    step.training_step(state, task, batch_of(image, mask), 7)
    assert not any(torch.equal(one, other) for one, other in zip(everything(), before, strict=True))


def test_step_without_a_tile_of_its_own_adds_no_gradient_and_no_statistics() -> None:
    model = Normed()
    state, task = setup(model)
    before = {name: each.clone() for name, each in model.named_buffers()}
    step.backward_without_tiles(state, task)
    assert all((each.grad == 0).all() for each in model.parameters() if each.grad is not None)
    assert all(torch.equal(each, before[name]) for name, each in model.named_buffers())
    assert model.norm.training


def test_frozen_batch_norm_keeps_its_statistics_while_the_rest_trains() -> None:
    model = Normed()
    step.set_training_mode(model, is_frozen=True)
    assert (model.training, model.norm.training) == (True, False)
    step.set_training_mode(model, is_frozen=False)
    assert model.norm.training


@pytest.mark.parametrize(
    ("batch_size", "tiles", "place", "accumulation", "compiled"),
    [
        (7, 100, ProcessRank(), 1, {7}),
        (7, 100, ProcessRank(), 2, {4, 3}),
        (7, 5, ProcessRank(), 1, {5}),  # all there are
        (3, 100, ProcessRank(0, 2), 1, {2}),
        (3, 100, ProcessRank(1, 2), 1, {1}),
        (1, 100, ProcessRank(1, 2), 1, set()),  # this process has none
    ],
)
def test_network_is_compiled_for_the_numbers_of_samples_that_most_steps_have(
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
    tiles: int,
    place: ProcessRank,
    accumulation: int,
    compiled: set[int],
) -> None:
    stances: list[str] = []

    def set_stance(stance: str) -> contextlib.nullcontext[None]:
        stances.append(stance)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.compiler, "set_stance", set_stance)
    _, task = setup(Small(), accumulation)
    task.config.model = replace(task.config.model, batch_size=batch_size)
    task.compute.world, task.data.split = World(place), SimpleNamespace(train=range(tiles))

    def stances_of(samples: int) -> list[str]:
        stances.clear()
        with step.compile_stance(task, samples):
            return list(stances)

    assert [stances_of(samples) for samples in range(10)] == [[]] * 10
    task.config.runtime = replace(task.config.runtime, compile=True)
    assert {samples for samples in range(10) if stances_of(samples) == ["default"]} == compiled
    assert all(stances_of(samples) == ["force_eager"] for samples in set(range(10)) - compiled)


def test_step_compiles_if_it_has_a_usual_number_of_tiles_for_the_first_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "set_stance", contextlib.nullcontext)
    _, task = setup(Small(), accumulation=2)
    task.config.model = replace(task.config.model, batch_size=7)
    task.data.split = SimpleNamespace(train=range(100))
    of_a_whole_batch, of_the_last = (cast(Batch, range(samples)) for samples in (7, 2))
    assert not step.compiles(task, of_a_whole_batch)
    task.config.runtime = replace(task.config.runtime, compile=True)
    assert step.compiles(task, of_a_whole_batch)
    assert not step.compiles(task, of_the_last)  # it runs eagerly
    for samples in (4, 1):
        with step.compile_stance(task, samples):
            pass
    assert step.compiles(task, of_a_whole_batch)  # its second micro-batch has 3
    with step.compile_stance(task, 3):
        pass
    assert not step.compiles(task, of_a_whole_batch)
