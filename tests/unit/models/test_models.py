"""The networks: the reference's function, and one contract that every entry of the registry keeps."""

import io
import math
from typing import Any

import pytest
import torch
from torch import nn

from fingerprint import Fingerprint
from robosat_pink.errors import ConfigError
from robosat_pink.models import MODELS, build_model
from robosat_pink.models.blocks import Execution, choose_execution
from robosat_pink.models.recomputation import Upsampling, conv_of

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {"encoder": encoder}) for name, entry in MODELS.items() for encoder in entry.encoders),
    ("ternausnetv2", {"is_deconv": True}),
]
SMALL = [(name, {"encoder": entry.encoders[0]}) for name, entry in MODELS.items()]
SMALL += [("ternausnetv2", {"is_deconv": True}), ("albunet", {"encoder": "resnet18"})]
IDS = [" ".join([name, *map(str, options.values())]) for name, options in SMALL]
every_network = pytest.mark.parametrize(("name", "options"), SMALL, ids=IDS)


def small(name: str, options: dict[str, Any], num_classes: int = 1, num_channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, num_classes=num_classes, num_channels=num_channels, num_filters=4, **options)


def image(num_channels: int = 3, height: int = 64, width: int = 64, samples: int = 2) -> torch.Tensor:
    return torch.randn(samples, num_channels, height, width, generator=torch.Generator().manual_seed(1))


def test_names_are_frozen() -> None:
    assert {"ternausnetv2", "albunet", "unet"} <= set(MODELS)
    assert MODELS["ternausnetv2"].encoders == ("wideresnet38",)
    assert set(MODELS["albunet"].encoders) == {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152"}


EXECUTIONS = [
    Execution("plain", "none"),
    Execution("transposed", "none"),
    Execution("plain", "norms"),
    Execution("transposed", "norms"),
    Execution("auto", "blocks"),
]
# In float64 the first and the last of them, which have all forms in them; it takes ten times as long.
every_execution = pytest.mark.parametrize(
    ("execution", "dtype", "tolerance"),
    [(each, torch.float32, 1e-3) for each in EXECUTIONS]
    + [(each, torch.float64, 1e-6) for each in (EXECUTIONS[0], EXECUTIONS[-1])],
    ids=lambda each: f"{each.upsampling}-{each.recompute}" if isinstance(each, Execution) else None,
)


@every_execution
def test_albunet_computes_the_reference_function(dtype: torch.dtype, tolerance: float, execution: Execution) -> None:
    model = build_model("albunet", num_classes=1, num_channels=4, encoder="resnet50")
    choose_execution(model, execution)
    Fingerprint("albunet_resnet50_4ch").check(model, dtype, tolerance, unused=("resnet.fc.",))


@pytest.mark.slow
@every_execution
@pytest.mark.parametrize(
    ("fingerprint", "options"),
    [
        ("ternausnetv2_11ch", {"num_channels": 11}),
        ("ternausnetv2_4ch_deconv", {"num_channels": 4, "is_deconv": True}),
    ],
)
def test_ternausnetv2_computes_the_reference_function(
    fingerprint: str, options: dict[str, Any], dtype: torch.dtype, tolerance: float, execution: Execution
) -> None:
    model = build_model("ternausnetv2", num_classes=1, **options)
    choose_execution(model, execution)
    Fingerprint(fingerprint).check(model, dtype, tolerance, eval_tolerance=20 * tolerance)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (5, 3), (8, 8)])
def test_both_forms_of_upsampling_and_convolution_have_the_same_values_and_gradients(
    height: int, width: int, bias: bool
) -> None:
    random = torch.Generator().manual_seed(3)
    shapes = [(2, 3, height, width), (4, 3, 3, 3), (4,)]
    results = []
    forms: tuple[Upsampling, ...] = ("plain", "transposed")
    for form in forms:
        random.manual_seed(3)
        given = [torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_() for shape in shapes]
        found = conv_of(given[0], given[1], given[2] if bias else None, form, (1, 1), (1, 1))
        assert found.shape == (2, 4, 2 * height, 2 * width)
        (found * torch.randn(found.shape, generator=random, dtype=torch.float64)).sum().backward()
        results.append([found, *(each.grad for each in given[: 2 + bias])])
    for plain, transposed in zip(*results, strict=True):
        torch.testing.assert_close(transposed, plain, rtol=1e-12, atol=1e-12)


def test_form_follows_from_device_and_size_alone() -> None:
    forms = [Execution().form(torch.zeros(1, 2, size, size)) for size in (16, 31, 32, 64)]
    assert forms == ["plain", "plain", "transposed", "transposed"]
    assert Execution().form(torch.zeros(1, 2, 64, 64, device="meta")) == "plain"


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_any_bands_classes_and_oblong_sizes(name: str, options: dict[str, Any]) -> None:
    size = MODELS[name].size_multiple
    model = small(name, options, num_classes=3, num_channels=5).eval()
    with torch.inference_mode():
        assert model(image(5, size, 2 * size, samples=1)).shape == (1, 3, size, 2 * size)


@every_network
def test_every_parameter_gets_a_finite_gradient(name: str, options: dict[str, Any]) -> None:
    model = small(name, options)
    model(image()).square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@every_network
def test_weights_saved_and_loaded_compute_the_same(name: str, options: dict[str, Any]) -> None:
    model, file = small(name, options).eval(), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = build_model(name, num_classes=1, num_channels=3, num_filters=4, **options).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.inference_mode():
        assert torch.equal(model(image()), other(image()))


@every_network
def test_channels_last_computes_the_same(name: str, options: dict[str, Any]) -> None:
    model = small(name, options).eval().double()
    with torch.inference_mode():
        plain = model(image().double())
        last = model.to(memory_format=torch.channels_last)(image().double().to(memory_format=torch.channels_last))
    assert torch.allclose(plain, last, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@every_network
def test_bf16_autocast_computes_nearly_the_same(name: str, options: dict[str, Any]) -> None:
    model = small(name, options)
    # Training statistics of noise amplify rounding, most in unet, which has a norm after every convolution: to 0.11.
    for training, tolerance in ((True, 0.2 if name == "unet" else 0.1), (False, 0.05)):
        model.train(training)
        with torch.no_grad():
            plain = model(image())
            with torch.autocast("cpu", torch.bfloat16):
                mixed = model(image())
        assert mixed.isfinite().all()
        assert (mixed.float() - plain).norm() / plain.norm() < tolerance


@every_network
def test_a_step_of_the_optimizer_lowers_the_loss(name: str, options: dict[str, Any]) -> None:
    model = small(name, options)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(3):
        loss = (model(image()) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("name", "options"), [case for case in SMALL if MODELS[case[0]].size_multiple > 1], ids=str)
def test_size_that_the_network_cannot_take_is_refused_with_the_size_to_use(name: str, options: dict[str, Any]) -> None:
    model, multiple = small(name, options), MODELS[name].size_multiple
    assert model.size_multiple == multiple
    for height in (multiple // 2, multiple + 32 if multiple > 32 else multiple + 8, 100):
        fitting = math.ceil(height / multiple) * multiple
        with pytest.raises(ValueError, match=f"got {height} x {multiple}; pad to {fitting} x {multiple}"):
            model(image(3, height, multiple))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "segnet"}, "accepted: ternausnetv2, albunet, unet"),
        ({"name": "albunet", "encoder": "vgg16"}, "albunet accepts: resnet50"),
        ({"name": "albunet", "is_deconv": True}, "albunet has no option is_deconv"),
        (
            {"name": "ternausnetv2", "dilated": True},
            "ternausnetv2 has no option dilated; accepted: num_filters, is_deconv",
        ),
        ({"name": "ternausnetv2", "pretrained": True}, "takes no pretrained encoder; .* checkpoint.path"),
    ],
)
def test_what_a_network_does_not_have_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(**arguments, num_classes=1, num_channels=3)
