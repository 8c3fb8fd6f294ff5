"""torchvision's ImageNet weights: found in TORCH_HOME, or downloaded. Called by `build_model`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
import torchvision

from robosat_pink.errors import CheckpointError
from robosat_pink.models.pretrained import WAY_OUT

log = logging.getLogger(__name__)


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
