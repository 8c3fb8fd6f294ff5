"""ImageNet weights for torchvision's encoders, fitted to any number of bands. Called by `build_model`."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from robosat_pink.errors import CheckpointError

log = logging.getLogger(__name__)

WAY_OUT = (
    "ways to give them: model.pretrained: /folder/file.pth, s3://bucket/key or channel:NAME/file (torchvision's "
    "state dict of the encoder); the file in $TORCH_HOME/hub/checkpoints; model.pretrained: false"
)


def weights_of(encoder: str) -> dict[str, Any]:
    """torchvision's IMAGENET1K_V1 weights, or any of the encoder in TORCH_HOME; downloaded if it has none."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    url = torchvision.models.get_model_weights(encoder).IMAGENET1K_V1.url
    cached = sorted(folder.glob(f"{encoder}-*.pth")) if folder.is_dir() else []
    path = folder / url.rpartition("/")[2]
    if cached and path not in cached:
        path = cached[0]
    try:
        if not path.exists():
            log.info("fetching %s", url)
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2], progress=False)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # urllib, sockets, the disk and the unpickler have their own errors
        raise CheckpointError(
            f"model.pretrained: the ImageNet weights of {encoder} cannot be had: {type(error).__name__}: {error}. "
            f"Not in {folder}, or not readable, and not from {url}; {WAY_OUT}"
        ) from error
    log.info("ImageNet weights: %s", os.fspath(path))
    return dict(weights)


def put_into(encoder: nn.Module, weights: Mapping[str, Any], name: str) -> None:
    """Load a state dict into an encoder, without the classifier and with the stem fitted to the encoder's bands."""
    expected = encoder.state_dict()
    weights = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    weights |= {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")}
    if "conv1.weight" in weights and weights["conv1.weight"].ndim == 4:
        weights["conv1.weight"] = inflate(weights["conv1.weight"], expected["conv1.weight"].shape[1])
    wrong = sorted(
        key
        for key in expected.keys() | weights.keys()
        if key not in weights or key not in expected or weights[key].shape != expected[key].shape
    )
    if wrong:
        raise CheckpointError(
            f"model.pretrained: not torchvision's weights of {name}: {len(wrong)} tensors are missing, too many or of "
            f"another shape, such as {', '.join(wrong[:5])}; {WAY_OUT}"
        )
    encoder.load_state_dict(weights)


def inflate(stem: Tensor, num_channels: int) -> Tensor:
    """A stem kernel (O, 3, h, w) as (O, num_channels, h, w): its three bands repeated and scaled to keep their sum."""
    if stem.shape[1] == num_channels:
        return stem
    if num_channels == 1:
        return stem.sum(dim=1, keepdim=True)
    repeats = math.ceil(num_channels / stem.shape[1])
    return stem.repeat(1, repeats, 1, 1)[:, :num_channels] * (stem.shape[1] / num_channels)
