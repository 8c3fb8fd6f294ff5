"""A trained network from its file, applied to images. Nothing of a run calls it: people do, as the model card shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from robosat_pink import checkpoint, models
from robosat_pink.config import Config
from robosat_pink.config.parsing import build
from robosat_pink.config.problems import Problems
from robosat_pink.datasets.normalisation import normalisation, scales_of
from robosat_pink.datasets.transforms import EvaluationTransform
from robosat_pink.errors import CheckpointError, DataError
from robosat_pink.models import build_model


def load_model(path: str | Path, device: str = "cpu", **where: Any) -> TrainedModel:
    """From best.pth or a checkpoint that a run has left: a local file or s3://bucket/key.

    Raises CheckpointError for a file that does not say how it was trained, as weights of other programs do not.
    """
    content = checkpoint.read(str(path), **where)
    tree = checkpoint.metadata_of(content).get("config")
    problems = Problems(str(path))
    config = build(Config, tree, problems) if tree else None
    if config is None or problems.lines:
        reason = "; ".join(problems.lines) or "no metadata"
        raise CheckpointError(f"{path}: does not say how it was trained ({reason}); accepted: best.pth of a run")
    return TrainedModel(config, content, str(path), torch.device(device))


class TrainedModel:
    def __init__(self, config: Config, content: dict[str, Any], name: str, device: torch.device) -> None:
        self.config, self.device = config, device
        self.bands = [band for channel in config.channels for band in channel.bands]
        self.network = build_model(
            config.model.name,
            num_classes=config.num_classes,
            num_channels=config.num_channels,
            encoder=config.model.encoder,
            **config.model.options,
        )
        checkpoint.load_weights(self.network, content, name=name)
        self.network.to(device).eval()
        self._transform = EvaluationTransform(*normalisation(config.channels)).to(device)

    @torch.inference_mode()
    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Of one class (1, H, W), of several (K, H, W), float32, from digital numbers (C, H, W) of `bands` in order.

        What is not finite is fed as 0, as in training. Where a channel's scale is `tags`, the numbers of its bands are
        those that the file's own scale and offset give. Raises DataError for another number of bands.
        """
        if image.ndim != 3 or len(image) != len(self.bands):
            raise DataError(f"image {image.shape}: accepted: (C, H, W) with the bands {self.bands} of a file, in order")
        height, width = image.shape[1:]
        multiple = models.MODELS[self.config.model.name].size_multiple
        scale = torch.from_numpy(scales_of(self.config.channels, image.dtype.name, "image")[None]).to(self.device)
        numbers = np.nan_to_num(image.astype(np.float32), posinf=0.0, neginf=0.0)
        numbers = np.pad(numbers, ((0, 0), (0, -height % multiple), (0, -width % multiple)))
        pixels = torch.from_numpy(numbers)[None].to(self.device)
        pixels, _ = self._transform(pixels, torch.empty(0), scale, ())
        logits = self.network(pixels)[0, :, :height, :width].float()
        found: np.ndarray = (logits.sigmoid() if len(logits) == 1 else logits.softmax(dim=0)).cpu().numpy()
        return found

    def classify(self, image: np.ndarray) -> np.ndarray:
        """(H, W) uint8: 1 where the only class is, 0 elsewhere; or the number of the class."""
        probabilities = self.probabilities(image)
        classes = probabilities[0] > 0.5 if len(probabilities) == 1 else probabilities.argmax(axis=0)
        return classes.astype(np.uint8)
