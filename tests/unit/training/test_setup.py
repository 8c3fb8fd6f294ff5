"""The parts of a run, made as the experiment says."""

from pathlib import Path

import pytest
import torch
import torchvision

from robosat_pink.config import ChannelConfig, ClassConfig, Config, DatasetConfig, ModelConfig
from robosat_pink.errors import CheckpointError
from robosat_pink.training.setup import make_model


def experiment(path: Path, bands: tuple[int, ...] | None) -> Config:
    return Config(
        dataset=DatasetConfig(image_bucket="imagery", mask_bucket="mask"),
        classes=(ClassConfig(name="snow"),),
        channels=(ChannelConfig(bands=(1, 2)), ChannelConfig(bands=(4,))),
        model=ModelConfig(
            name="albunet", encoder="resnet18", num_filters=4, pretrained=str(path), pretrained_bands=bands
        ),
    )


def test_encoder_starts_from_the_chosen_bands_of_a_lightning_checkpoint(tmp_path: Path) -> None:
    encoder = torchvision.models.resnet18(weights=None).state_dict()
    encoder["conv1.weight"] = torch.randn(64, 13, 7, 7)
    tensors = {f"model.encoder.{key}": value for key, value in encoder.items()}
    content = {"state_dict": tensors, "epoch": 3, "hyper_parameters": {"model": "unet"}}
    torch.save(content, tmp_path / "last.ckpt")
    model, _ = make_model(experiment(tmp_path / "last.ckpt", (2, 13, 2)), None, torch.device("cpu"), {})
    weights = model.state_dict()
    assert torch.equal(weights["resnet.conv1.weight"], encoder["conv1.weight"][:, [1, 12, 1]] * (13 / 3))
    assert torch.equal(weights["resnet.layer4.1.bn2.running_var"], encoder["layer4.1.bn2.running_var"])


def test_pretrained_file_without_tensors_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"last\.ckpt: no state dict; accepted: one, or a checkpoint with it"):
        make_model(experiment(tmp_path / "last.ckpt", None), None, torch.device("cpu"), {})
