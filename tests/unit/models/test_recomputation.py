"""What is computed again in backward has the values, gradients and statistics of what is kept."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from robosat_pink.models import MODELS, build_model
from robosat_pink.models.blocks import Execution, choose_execution
from robosat_pink.models.recomputation import (
    Recompute,
    Upsampling,
    batch_norm,
    cat_conv,
    norm_act_conv,
    recomputed_in_backward,
    without_statistics,
)
from robosat_pink.models.synchronisation import synchronise

RECOMPUTED = [Execution("plain", "norms"), Execution("plain", "blocks")]
NETWORKS: list[tuple[str, dict[str, Any]]] = [
    ("albunet", {"encoder": "resnet18"}),
    ("albunet", {"encoder": "resnet50"}),
    ("ternausnetv2", {}),
    ("ternausnetv2", {"is_deconv": True}),
    ("unet", {}),
]
# At most, kept for backward of 256 x 256: in fp32 and bf16.
MEGABYTES = {"albunet": (130, 75), "ternausnetv2": (240, 140), "unet": (75, 38)}


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def norm_and_conv(training: bool, bias: bool, stride: int = 1) -> tuple[nn.BatchNorm2d, nn.Conv2d]:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, dtype=torch.float64).train(training)
    with torch.no_grad():
        for number, each in enumerate((norm.weight, norm.bias, norm.running_mean, norm.running_var)):
            assert each is not None
            each.copy_(1 + 0.3 * torch.sin(torch.arange(3.0) + number))
    return norm, nn.Conv2d(3, 4, 3, stride=stride, padding=1, bias=bias, dtype=torch.float64)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("slope", [0.0, 0.01])
def test_gradients_of_norm_activation_and_convolution_are_exact(training: bool, bias: bool, slope: float) -> None:
    norm, conv = norm_and_conv(training, bias, stride=2)

    def function(features: Tensor, *_: Tensor) -> Tensor:
        return norm_act_conv(features, norm, slope, conv)

    parameters = [*norm.parameters(), *conv.parameters()]
    assert torch.autograd.gradcheck(function, (randn(2, 3, 5, 4).requires_grad_(), *parameters))


@pytest.mark.parametrize("upsampling", ["none", "plain", "transposed"])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_concatenation_and_convolution_are_exact(upsampling: Upsampling, bias: bool) -> None:
    conv = nn.Conv2d(5, 4, 3, padding=1, bias=bias, dtype=torch.float64)

    def function(first: Tensor, second: Tensor, *_: Tensor) -> Tensor:
        return cat_conv((first, second), conv, upsampling)

    parts = randn(2, 3, 4, 3).requires_grad_(), randn(2, 2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(function, (*parts, *conv.parameters()))


@pytest.mark.parametrize("training", [True, False])
def test_norm_activation_and_convolution_equal_the_modules(training: bool) -> None:
    found = []
    for function in (
        norm_act_conv,
        lambda features, norm, slope, conv: conv(functional.leaky_relu(norm(features), slope)),
    ):
        norm, conv = norm_and_conv(training, bias=False)
        features = randn(2, 3, 6, 6).requires_grad_()
        result = function(features, norm, 0.01, conv)
        (result * randn(*result.shape)).sum().backward()
        found.append([result, features.grad, norm.weight.grad, norm.bias.grad, conv.weight.grad, *norm.buffers()])
    for ours, modules in zip(*found, strict=True):
        torch.testing.assert_close(ours, modules, rtol=1e-12, atol=1e-12)


def test_parts_that_need_no_gradient_get_none() -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1)
    cat_conv((randn(1, 3, 4, 4, dtype=torch.float32),), conv).sum().backward()
    assert conv.weight.grad is not None
    conv.requires_grad_(False)
    features = randn(1, 3, 4, 4, dtype=torch.float32).requires_grad_()
    cat_conv((features,), conv, "transposed").sum().backward()
    assert features.grad is not None


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layout_is_kept(layout: torch.memory_format) -> None:
    norm, conv = (each.float() for each in norm_and_conv(training=True, bias=False))
    features = randn(2, 3, 6, 6, dtype=torch.float32).contiguous(memory_format=layout).requires_grad_()
    conv = conv.to(memory_format=layout)  # type: ignore[call-overload]
    found = norm_act_conv(features, norm, 0.0, conv)
    found.square().sum().backward()
    assert found.is_contiguous(memory_format=layout)
    assert features.grad is not None
    assert features.grad.is_contiguous(memory_format=layout)


def test_autocast_computes_in_bf16_and_leaves_gradients_in_fp32() -> None:
    norm, conv = (each.float() for each in norm_and_conv(training=True, bias=True))
    features = randn(2, 3, 6, 6, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = norm_act_conv(features, norm, 0.0, conv)
        more = cat_conv((found, found), nn.Conv2d(8, 2, 3, padding=1), "transposed")
    assert found.dtype == more.dtype == torch.bfloat16
    (found.float().sum() + more.float().sum()).backward()
    assert {each.grad.dtype for each in (features, *norm.parameters(), *conv.parameters())} == {torch.float32}


def trained(
    name: str, options: dict[str, Any], execution: Execution, wrap: Callable[[nn.Module], Any] = lambda m: m
) -> Any:
    """Logits, gradients and buffers of one step."""
    torch.manual_seed(0)
    model = build_model(name, num_classes=1, num_channels=3, num_filters=4, **options).double()
    choose_execution(model, execution)
    logits = wrap(model)(randn(2, 3, 64, 64))
    logits.square().mean().backward()
    return {"logits": logits} | {key: each.grad for key, each in model.named_parameters()} | dict(model.named_buffers())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), NETWORKS, ids=str)
@pytest.mark.parametrize("execution", RECOMPUTED, ids=lambda each: each.recompute)
def test_networks_give_the_same_and_update_statistics_once(
    name: str, options: dict[str, Any], execution: Execution
) -> None:
    kept = trained(name, options, Execution("plain", "none"))
    again = trained(name, options, execution)
    assert kept.keys() == again.keys()
    for key, value in kept.items():
        torch.testing.assert_close(again[key], value, rtol=1e-7, atol=1e-10, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [NETWORKS[0], NETWORKS[2], NETWORKS[4]], ids=str)
def test_compiled_networks_give_the_same(name: str, options: dict[str, Any]) -> None:
    plain = trained(name, options, Execution())
    compiled = trained(
        name, options, Execution(), lambda model: torch.compile(model, backend="aot_eager", fullgraph=True)
    )
    for key, value in plain.items():
        torch.testing.assert_close(compiled[key], value, rtol=1e-7, atol=1e-10, msg=key)


def kept_bytes(name: str, channels: int, execution: Execution, is_bf16: bool) -> int:
    """Storages kept for backward of a 256 x 256 tile, each once, without those of parameters and the image.

    Nothing is computed: not every machine does that in bf16 within the hour.
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes() * (storage._cdata not in there)
        return tensor.detach()  # itself would keep its own graph for good

    with FakeTensorMode():
        model = build_model(name, num_classes=1, num_channels=channels)
        choose_execution(model, execution)
        image = torch.empty(1, channels, 256, 256)
        there = {each.untyped_storage()._cdata for each in (*model.parameters(), *model.buffers(), image)}
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=is_bf16),
        ):
            logits = model(image)
    assert logits.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize(("name", "channels"), [("albunet", 4), ("ternausnetv2", 11), ("unet", 4)])
def test_about_half_is_kept_for_backward_and_half_of_it_in_bf16(name: str, channels: int) -> None:
    for is_bf16, most in zip((False, True), MEGABYTES[name], strict=True):
        assert kept_bytes(name, channels, Execution(), is_bf16) < most * 1e6
    blocks = kept_bytes(name, channels, Execution(recompute="blocks"), is_bf16=True)
    assert blocks < 0.6 * kept_bytes(name, channels, Execution(), is_bf16=True)


def test_nothing_is_computed_twice_where_no_gradient_is_asked_for() -> None:
    calls = []

    def block(features: Tensor) -> Tensor:
        calls.append(features)
        return features * 2

    with torch.no_grad():
        recomputed_in_backward(block, randn(1, 1, 2, 2).requires_grad_())
    assert len(calls) == 1
    recomputed_in_backward(block, randn(1, 1, 2, 2).requires_grad_()).sum().backward()
    assert len(calls) == 2


def test_norm_that_counts_nothing_does_not_in_the_thread_of_a_gpu_s_backward_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = []

    def all_gather(gathered: list[Tensor], ours: Tensor) -> None:
        counted.append(ours[2].tolist())
        gathered[0].copy_(ours)
        gathered[1].copy_(torch.tensor([[0.0] * 3, [1.0] * 3, [4.0] * 3]))  # mean, variance and number of the other

    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather", all_gather)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)
    norm, _ = norm_and_conv(training=True, bias=False)
    synchronise(norm)
    features = randn(1, 3, 2, 2).requires_grad_()

    def step() -> None:
        loss = recomputed_in_backward(lambda features: batch_norm(features, norm).square(), features).sum()
        with ThreadPoolExecutor(1) as thread:
            thread.submit(loss.backward).result()

    with without_statistics(norm):
        step()
    step()
    assert counted == [[0.0] * 3, [0.0] * 3, [4.0] * 3, [4.0] * 3]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("recompute", ["none", "norms", "blocks"])
def test_every_norm_is_synchronised_whatever_is_computed_again(
    monkeypatch: pytest.MonkeyPatch, name: str, recompute: Recompute
) -> None:
    gathered = []
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(dist, "all_gather", lambda whole, ours: (gathered.append(ours), whole[0].copy_(ours)))
    model = build_model(name, num_classes=1, num_channels=3, num_filters=4)
    synchronise(model)
    choose_execution(model, Execution("plain", recompute))
    model(randn(1, 3, 64, 64, dtype=torch.float32))
    assert len(gathered) == sum(hasattr(each, "running_mean") for each in model.modules())
