"""Pretrained encoders: the names that other libraries give their tensors, and how their bands become ours."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from robosat_pink.errors import CheckpointError, ConfigError
from robosat_pink.models import build_model
from robosat_pink.models.pretrained import fit_stem, inflate

Weights = dict[str, Tensor]


@pytest.fixture
def encoder() -> Weights:
    torch.manual_seed(3)
    weights: Weights = torchvision.models.resnet18(weights=None).state_dict()
    return weights


def with_bands(encoder: Weights, count: int) -> Weights:
    torch.manual_seed(count)
    return encoder | {"conv1.weight": torch.randn(64, count, 7, 7)}


def albunet(num_channels: int, pretrained: Any, bands: Sequence[int] | None = None, encoder: str = "resnet18") -> Any:
    return build_model(
        "albunet",
        num_classes=1,
        num_channels=num_channels,
        encoder=encoder,
        num_filters=4,
        pretrained=pretrained,
        pretrained_bands=bands,
    )


def below(prefix: str, weights: Mapping[str, Tensor]) -> Weights:
    return {f"{prefix}{key}": value for key, value in weights.items()}


def without_classifier(weights: Weights) -> Weights:
    return {key: value for key, value in weights.items() if not key.startswith("fc.")}


DECODER = {
    "decoder.blocks.0.conv1.0.weight": torch.ones(8, 8, 3, 3),
    "decoder.blocks.0.conv1.1.running_mean": torch.ones(8),
    "segmentation_head.0.weight": torch.ones(1, 8, 3, 3),
}

# Whose file: its names. As timm 1.0.31, TorchGeo 0.8.1 and segmentation_models.pytorch 0.6.0 spell them.
FILES: dict[str, Callable[[Weights], Weights]] = {
    "torchvision, timm": lambda encoder: encoder,
    "published by TorchGeo": without_classifier,
    "smp, encoder": without_classifier,
    "smp, Unet": lambda encoder: below("encoder.", without_classifier(encoder)) | DECODER,
    "smp, Unet in DataParallel": lambda encoder: below("module.encoder.", without_classifier(encoder)),
    "TorchGeo, ClassificationTask": lambda encoder: below("model.", encoder) | {"criterion.weight": torch.ones(3)},
    "TorchGeo, SemanticSegmentationTask": lambda encoder: below(
        "model.", below("encoder.", without_classifier(encoder)) | DECODER
    ),
    "TorchGeo, MoCoTask": lambda encoder: (
        below("backbone.", without_classifier(encoder))
        | below("backbone_momentum.", {key: value + 1 for key, value in without_classifier(encoder).items()})
        | {"projection_head.layers.0.weight": torch.ones(4, 4)}
    ),
    "TorchGeo, BYOLTask": lambda encoder: (
        below("model.backbone.model.", encoder)
        | below("model.target.model.", {key: value + 1 for key, value in encoder.items()})
        | {"model.predictor.mlp.0.weight": torch.ones(4, 4)}
    ),
    "ours": lambda encoder: below("resnet.", without_classifier(encoder)) | {"final.weight": torch.ones(1, 4, 1, 1)},
    "one encoder below another name": lambda encoder: below("student.", encoder),
}


@pytest.mark.parametrize("num_bands", [3, 13])
@pytest.mark.parametrize("name", FILES)
def test_encoder_is_taken_from_the_files_of_other_libraries(encoder: Weights, name: str, num_bands: int) -> None:
    given = with_bands(encoder, num_bands)
    loaded = albunet(num_bands, FILES[name](given)).resnet.state_dict()
    assert loaded.keys() == without_classifier(given).keys()
    for key, value in loaded.items():
        assert torch.equal(value, given[key]), key


def test_what_is_left_out_of_a_file_is_counted(encoder: Weights, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    albunet(3, FILES["smp, Unet"](encoder))
    assert "pretrained encoder: 120 tensors below encoder.; the 3 others of the file are left out" in caplog.messages


@pytest.mark.parametrize("num_channels", [1, 2, 4, 6, 11])
def test_stem_is_inflated_to_any_number_of_bands(encoder: Weights, num_channels: int) -> None:
    stem = albunet(num_channels, encoder).resnet.conv1.weight
    assert stem.shape == (64, num_channels, 7, 7)
    assert torch.equal(stem, inflate(encoder["conv1.weight"], num_channels))


def test_inflated_stem_answers_a_grey_image_as_before() -> None:
    """Worked out for a kernel of 1 x 1 that holds 1, 2, 3."""
    stem = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
    assert inflate(stem, 3).flatten().tolist() == [1, 2, 3]
    assert inflate(stem, 1).flatten().tolist() == [6]
    assert inflate(stem, 6).flatten().tolist() == [0.5, 1, 1.5, 0.5, 1, 1.5]
    assert inflate(stem, 4).flatten().tolist() == [0.75, 1.5, 2.25, 0.75]


@pytest.mark.parametrize(
    ("stem", "bands", "fitted"),
    [
        ([1, 2, 3], [3, 2, 1, 1], [2.25, 1.5, 0.75, 0.75]),
        ([1, 2, 3], [3, 2, 1], [3, 2, 1]),
        ([1, 2, 3], [2], [6]),
        ([1, 2, 3, 4, 5, 6], [2, 5], [6, 15]),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13], [2, 3, 4, 8], [6.5, 9.75, 13, 26]),
        ([1, 2], [1, 2, 1, 2], [0.5, 1, 0.5, 1]),
        ([1, 2, 3, 4], None, [1, 2, 3, 4]),
    ],
)
def test_bands_are_chosen_in_order_and_scaled_by_how_many_the_encoder_has(
    stem: list[float], bands: list[int] | None, fitted: list[float]
) -> None:
    """Worked out for kernels of 1 x 1."""
    kernel = torch.tensor(stem).float().view(1, -1, 1, 1)
    assert fit_stem(kernel, len(fitted), bands).flatten().tolist() == fitted


@pytest.mark.parametrize("num_bands", [4, 13])
def test_chosen_bands_reach_the_network(encoder: Weights, num_bands: int) -> None:
    given = with_bands(encoder, num_bands)
    stem = albunet(2, given, bands=[4, 1]).resnet.conv1.weight
    assert torch.equal(stem, given["conv1.weight"][:, [3, 0]] * (num_bands / 2))


@pytest.mark.parametrize(("num_bands", "num_channels"), [(13, 4), (4, 13), (2, 3), (1, 4), (13, 3)])
def test_other_number_of_bands_is_refused_with_the_key_that_chooses(
    encoder: Weights, num_bands: int, num_channels: int
) -> None:
    with pytest.raises(CheckpointError) as caught:
        albunet(num_channels, with_bands(encoder, num_bands))
    message = str(caught.value)
    assert f"its encoder has {num_bands} input band(s), and channels[].bands name {num_channels}; " in message
    assert f"set model.pretrained_bands to a list of {num_channels} numbers from 1 to {num_bands}: " in message


@pytest.mark.parametrize("bands", [[1, 5], [0, 1]])
def test_band_that_the_encoder_lacks_is_refused(encoder: Weights, bands: list[int]) -> None:
    with pytest.raises(CheckpointError, match=r"pretrained_bands = \[., .\]: .* has 4 input .*: numbers from 1 to 4"):
        albunet(2, with_bands(encoder, 4), bands=bands)


def test_bands_for_another_number_of_channels_are_refused(encoder: Weights) -> None:
    with pytest.raises(ConfigError, match=r"pretrained_bands = \[1, 2\]: accepted: 3 numbers"):
        albunet(3, encoder, bands=[1, 2])


def test_weights_of_another_encoder_are_refused_with_its_name(encoder: Weights) -> None:
    with pytest.raises(CheckpointError) as caught:
        albunet(3, encoder, encoder="resnet50")
    message = str(caught.value)
    assert message.startswith("model.pretrained: not weights of resnet50: missing: layer1.0.bn3.bias, ")
    assert "layer1.0.conv1.weight (64, 64, 3, 3) for (64, 64, 1, 1)" in message
    assert "they are those of resnet18: set model.encoder to that" in message


def test_weights_of_a_resnext_are_refused_without_a_wrong_way_out() -> None:
    with torch.device("meta"):
        weights = torchvision.models.resnext50_32x4d(weights=None).state_dict()
    with pytest.raises(CheckpointError) as caught:
        albunet(3, weights, encoder="resnet50")
    assert "layer1.0.conv1.weight (128, 64, 1, 1) for (64, 64, 1, 1)" in str(caught.value)
    assert "they are those of" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv1.weight": None}, "missing: conv1.weight;"),
        ({"layer4.1.bn2.bias": None}, "missing: layer4.1.bn2.bias;"),
        ({"head.weight": torch.ones(3)}, "unexpected: head.weight;"),
        ({"conv1.weight": torch.ones(64, 3, 3, 3)}, r"shape: conv1.weight \(64, 3, 3, 3\) for \(64, 4, 7, 7\);"),
        ({"conv1.weight": torch.ones(64)}, r"shape: conv1.weight \(64,\) for \(64, 4, 7, 7\);"),
        ({"bn1.bias": torch.ones(64, dtype=torch.uint8)}, "not of floats: bn1.bias;"),
        ({"bn1.bias": torch.full((64,), torch.nan)}, "holds NaN or inf, in bn1.bias;"),
        ({"layer1.0.conv1.weight": None}, "missing: layer1.0.conv1.weight;"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    encoder: Weights, changes: dict[str, Tensor | None], message: str
) -> None:
    given = {key: value for key, value in (encoder | changes).items() if value is not None}
    with pytest.raises(CheckpointError, match=f"{message} .*ways to give them: "):
        albunet(4, given)


def test_file_of_two_encoders_is_refused_with_where_they_are(encoder: Weights) -> None:
    with pytest.raises(CheckpointError, match=r"holds 2 encoders, below student\., teacher\.; save the tensors of one"):
        albunet(3, below("teacher.", encoder) | below("student.", encoder))


def test_half_precision_is_widened(encoder: Weights) -> None:
    half = {key: value.half() if value.is_floating_point() else value for key, value in encoder.items()}
    model = albunet(3, half)
    assert model.resnet.conv1.weight.dtype == torch.float32
    assert torch.equal(model.resnet.conv1.weight, half["conv1.weight"].float())
