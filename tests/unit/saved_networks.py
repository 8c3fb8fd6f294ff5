"""Checkpoints of small networks with random weights, for tests that apply or export them."""

from pathlib import Path
from typing import Any

import torch

from robosat_pink import checkpoint
from robosat_pink.config import ChannelConfig, ClassConfig, Config, DatasetConfig, ModelConfig, to_tree
from robosat_pink.models import build_model
from robosat_pink.trained import TrainedModel, load_model

# Arguments of `saved`.
NETWORKS = [
    {"name": "unet", "encoder": "none"},
    {"name": "albunet", "encoder": "resnet18"},
    {"name": "ternausnetv2", "encoder": "wideresnet38"},
]


def saved(
    folder: Path,
    classes: int = 1,
    symmetries: bool = False,
    name: str = "unet",
    encoder: str = "none",
    scale: float | str = 10_000.0,
    **content: Any,
) -> TrainedModel:
    """A small network of random weights for two bands, saved as best.pth and loaded."""
    config = Config(
        dataset=DatasetConfig(image_bucket="imagery", mask_bucket="mask"),
        classes=tuple(ClassConfig(name=f"class {number}") for number in range(classes)),
        channels=(ChannelConfig(bands=(1, 2), scale=scale, mean=(0.1, 0.2), std=(0.3, 0.4)),),
        model=ModelConfig(name=name, encoder=encoder, num_filters=2, symmetries=symmetries),
    )
    torch.manual_seed(1)
    network = build_model(name, num_classes=classes, num_channels=2, encoder=encoder, num_filters=2)
    metadata = {"config": to_tree(config)}
    content = {"epoch": 1, "state_dict": network.state_dict(), "metadata": metadata} | content
    checkpoint.save(folder / "best.pth", content)
    return load_model(folder / "best.pth")
