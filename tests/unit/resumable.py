"""A small network with optimizer and resume points, for the tests of what is resumed."""

import copy
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from robosat_pink.config import ChannelConfig, ClassConfig, Config, DatasetConfig, ModelConfig, RuntimeConfig, to_tree
from robosat_pink.config.sections import CheckpointConfig
from robosat_pink.datasets.split import Split
from robosat_pink.training import tile_ids
from robosat_pink.training.initial_checkpoint import InitialCheckpoint
from robosat_pink.training.state import State


class Encoder(nn.Module):
    """With a classifier behind, as robosat.pink kept it, or without."""

    def __init__(self, has_classifier: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        if has_classifier:
            self.fc = nn.Linear(3, 5)


class Network(nn.Module):
    def __init__(self, has_classifier: bool = False) -> None:
        super().__init__()
        self.resnet = Encoder(has_classifier)
        self.final = nn.Conv2d(3, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.final(self.resnet.norm(self.resnet.conv(image)))
        return found


class Tiles:
    """As much of a TilePairs as a resume asks for: of a folder."""

    image_location = type("Location", (), {"bucket": None})()

    def id(self, row: int) -> str:
        return f"tile-{row}"


SPLIT = Split(np.arange(4), np.arange(4, 6), np.arange(0))


def experiment(**changes: Any) -> Config:
    return Config(
        dataset=DatasetConfig(image_bucket="imagery", mask_bucket="mask"),
        classes=(ClassConfig(name="snow"),),
        channels=(ChannelConfig(bands=(1, 2), scale="auto"),),
        model=ModelConfig(name="albunet", **changes.pop("model", {})),
        checkpoint=CheckpointConfig(**changes.pop("checkpoint", {})),
        runtime=RuntimeConfig(**changes.pop("runtime", {})),
    )


def made(model: nn.Module) -> State:
    return State(model, torch.optim.Adam(model.parameters(), lr=0.1), GradScaler("cpu", enabled=False))


def trained(model: nn.Module, steps: int = 3) -> State:
    state = made(model)
    learn(state, steps)
    return state


def learn(state: State, steps: int) -> None:
    for number in range(steps):
        image = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(number))
        state.optimizer.zero_grad()
        state.model(image).square().mean().backward()
        state.optimizer.step()


def original_checkpoint(epoch: int = 2) -> tuple[dict[str, Any], State]:
    """As robosat.pink wrote it: DataParallel's prefix, a classifier that never learnt, steps as plain numbers."""
    torch.manual_seed(0)
    state = trained(Network(has_classifier=True))
    optimizer = copy.deepcopy(state.optimizer.state_dict())
    for moments in optimizer["state"].values():
        moments["step"] = int(moments["step"])
    weights = {f"module.{key}": value for key, value in state.model.state_dict().items()}
    return {"epoch": epoch, "state_dict": weights, "optimizer": optimizer}, state


def point_of(config: Config) -> InitialCheckpoint:
    return point_with(trained(Network()).to_content(), config)


def point_with(content: dict[str, Any], config: Config, is_resume_point: bool = True) -> InitialCheckpoint:
    """A resume point of this content or, with the same weights and optimizer, the checkpoint of an epoch."""
    content = copy.deepcopy(content) | {
        "metadata": {"config": to_tree(config), "data_digest": ""},
        "ids": tile_ids.compress(tile_ids.tile_ids(Tiles(), SPLIT)),
    }
    if not is_resume_point:
        del content["history"]
    return InitialCheckpoint("resume-00001-000000.pth", content, is_resumed=True)
