"""Loads a trained network and applies it to images. Called by users, as the model card shows, not by a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from robosat_pink import checkpoint, models
from robosat_pink.config import Config
from robosat_pink.config.parsing import build
from robosat_pink.config.problems import Problems
from robosat_pink.datasets.normalisation import normalisation, scales_of
from robosat_pink.datasets.symmetry_average import predictor
from robosat_pink.datasets.transforms import EvaluationTransform
from robosat_pink.errors import CheckpointError, DataError
from robosat_pink.models import build_model


def load_model(path: str | Path, device: str = "cpu", **where: Any) -> TrainedModel:
    """Load the model from best.pth or another checkpoint of a run, at a local path or s3://bucket/key.

    Raises CheckpointError if the file does not contain its experiment, as weights from other programs do not.
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
    """A network with its experiment. Its methods expect the bands in `bands` of an image file, in this order."""

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
        chosen = content.get("threshold")
        value = chosen.get("value") if isinstance(chosen, dict) else None
        self.threshold: float | None = value if isinstance(value, float) else None
        self._predictor = predictor(self.network, config.model.symmetries)
        self._transform = EvaluationTransform(*normalisation(config.channels)).to(device)

    @torch.inference_mode()
    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Maps digital numbers (C, H, W) of `bands` to probabilities (K, H, W) float32; K = 1 for a single class.

        With `model.symmetries` in the experiment, they are means over the eight symmetries of the square.
        NaN and inf count as 0, as in training. For channels with `scale: tags`, apply the file's scale and offset
        first. Raises DataError for a different number of bands.
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
        logits = self._predictor(pixels)[0, :, :height, :width].float()
        probs = logits.sigmoid() if len(logits) == 1 else logits.softmax(dim=0)
        array: np.ndarray = probs.cpu().numpy()
        return array

    def classify(self, image: np.ndarray, threshold: float | Literal["chosen"] | None = None) -> np.ndarray:
        """Maps digital numbers (C, H, W) to class numbers (H, W) uint8. A single class is 1, its background 0.

        A pixel is of the single class above a probability of `threshold`, by default 0.5. "chosen" is `self.threshold`,
        which has the best IoU on the run's validation tiles. Raises DataError for a threshold that does not apply.
        """
        limit = self._limit(threshold)
        probs = self.probabilities(image)
        classes = probs[0] > limit if len(probs) == 1 else probs.argmax(axis=0)
        return classes.astype(np.uint8)

    def _limit(self, threshold: float | Literal["chosen"] | None) -> float:
        """The probability above which a pixel is of a single class."""
        if threshold is None:
            return 0.5
        if self.config.num_classes > 1:
            reason = f"the most probable of {self.config.num_classes} classes is taken; leave it out"
        elif threshold != "chosen":
            if not isinstance(threshold, str) and 0 <= threshold <= 1:
                return threshold
            reason = 'accepted: a number from 0 to 1, or "chosen"'
        elif self.threshold is not None:
            return self.threshold
        else:
            reason = "this file has none, unlike best.pth of a finished run; accepted: a number from 0 to 1"
        raise DataError(f"threshold = {threshold}: {reason}")
