"""torchvision's ImageNet weights for the encoder: where they come from."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from robosat_pink.errors import CheckpointError
from robosat_pink.models import build_model


@pytest.fixture
def encoder() -> dict[str, Any]:
    torch.manual_seed(3)
    weights: dict[str, Any] = torchvision.models.resnet18(weights=None).state_dict()
    return weights


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty TORCH_HOME, and no way out for downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    folder = tmp_path / "hub/checkpoints"
    folder.mkdir(parents=True)
    return folder


def albunet(num_channels: int, pretrained: Any) -> Any:
    return build_model("albunet", num_classes=1, num_channels=num_channels, encoder="resnet18", pretrained=pretrained)


@pytest.mark.parametrize("name", ["resnet18-f37072fd.pth", "resnet18-5c106cde.pth"])
def test_true_takes_the_file_in_torch_home_be_it_of_torchvision_s_old_or_new_name(
    torch_home: Path, encoder: dict[str, Any], name: str
) -> None:
    torch.save(encoder, torch_home / name)
    weights = albunet(3, True).state_dict()
    for key, value in encoder.items():
        if not key.startswith("fc."):
            assert torch.equal(weights[f"resnet.{key}"], value), key


def test_weights_that_cannot_be_had_are_an_error_with_every_way_to_give_them(torch_home: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        albunet(3, True)
    for way in (
        str(torch_home),
        "resnet18",
        "/folder/file.pth",
        "s3://",
        "channel:NAME",
        "TORCH_HOME",
        "pretrained: false",
    ):
        assert way in str(caught.value), way
    assert list(torch_home.iterdir()) == []


def test_damaged_file_in_torch_home_is_an_error_that_names_its_folder(torch_home: Path) -> None:
    (torch_home / "resnet18-f37072fd.pth").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match=str(torch_home)):
        albunet(3, True)


def test_weights_given_serve_without_any_file(torch_home: Path, encoder: dict[str, Any]) -> None:
    assert torch.equal(albunet(3, encoder).resnet.layer1[0].conv1.weight, encoder["layer1.0.conv1.weight"])
