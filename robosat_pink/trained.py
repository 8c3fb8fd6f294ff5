"""Loads a trained network, applies it to images and exports it. Called by users, as the model card shows, not by runs.

`python -m robosat_pink.trained export best.pth --to model.pt2` is the command line of `TrainedModel.export`.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from robosat_pink import checkpoint, export, models
from robosat_pink.config import Config
from robosat_pink.config.parsing import build
from robosat_pink.config.problems import Problems
from robosat_pink.datasets.normalisation import scales_of
from robosat_pink.datasets.probabilities import Probabilities, probabilities_of
from robosat_pink.datasets.windows import SIDE, windows
from robosat_pink.errors import CheckpointError, DataError, RobosatError
from robosat_pink.models import build_model

log = logging.getLogger(__name__)

# The pixels that are predicted at once: a window, or several small images. With twice as many, unet took twice the
# memory and the same time per pixel (a CPU core with AVX2, November 2026).
BATCH_PIXELS = SIDE * SIDE


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
    checkpoint.warn_if_not_evaluated(content, str(path))
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
        self._probabilities = Probabilities(config, self.network).to(device).eval()

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Maps digital numbers (C, H, W) of `bands` to probabilities (K, H, W) float32; K = 1 for a single class.

        A batch (N, C, H, W) becomes (N, K, H, W). An image larger than 1024 x 1024 is predicted in overlapping windows,
        so that memory grows only by the result; `datasets/windows.py` says how exact they are. With `model.symmetries`
        in the experiment, probabilities are means over the eight symmetries of the square. NaN and inf count as 0, as
        in training; so does what pads the image on the right and below to a multiple that the network takes. For
        channels with `scale: tags`, apply the file's scale and offset first. Raises DataError for an image without
        pixels, with other axes, with another number of bands, or of other values than integers or floats.
        """
        batch = self._as_batch(image)
        probs = np.empty((len(batch), self.config.num_classes, *batch.shape[2:]), dtype=np.float32)
        for sample, rows, columns, kept in self._predict(batch):
            probs[sample, :, rows, columns] = kept
        return probs if image.ndim == 4 else probs[0]

    def classify(self, image: np.ndarray, threshold: float | Literal["chosen"] | None = None) -> np.ndarray:
        """Maps digital numbers (C, H, W) to class numbers (H, W) uint8, a batch (N, C, H, W) to (N, H, W).

        A single class is 1, its background 0. A pixel is of the single class above a probability of `threshold`, by
        default 0.5. "chosen" is `self.threshold`, which has the best IoU on the run's validation tiles. Takes images as
        `probabilities` does. Raises DataError, for a threshold that does not apply, too.
        """
        limit = self._limit(threshold)
        batch = self._as_batch(image)
        classes = np.empty((len(batch), *batch.shape[2:]), dtype=np.uint8)
        for sample, rows, columns, probs in self._predict(batch):
            classes[sample, rows, columns] = probs[0] > limit if len(probs) == 1 else probs.argmax(axis=0)
        return classes if image.ndim == 4 else classes[0]

    def export(self, path: str | Path, dtype: str | None = None) -> None:
        """Write what `probabilities` computes as a file for torch.export.load, which needs torch, not robosat_pink.

        `dtype` is that of the image files, such as "uint16"; only `scale: auto` in the experiment needs it. An existing
        file is replaced. Raises ConfigError for another dtype, ContractError if the file cannot be written.
        """
        export.export(Path(path), self.config, self.network, self.threshold, dtype)

    def _as_batch(self, image: np.ndarray) -> np.ndarray:
        """The image, or the batch of images, as (N, C, H, W); raises DataError for what cannot be predicted."""
        if not isinstance(image, np.ndarray):
            raise DataError(f"image: {type(image).__name__}: accepted: a numpy array (C, H, W) or (N, C, H, W)")
        if image.ndim not in (3, 4) or image.shape[-3] != len(self.bands):
            reason = f"with the bands {self.bands} of a file, in order"
        elif image.size == 0:
            reason = "with at least one pixel"
        elif image.dtype.kind not in "iuf":
            reason = "of integers or floats"
        else:
            return image.reshape(-1, *image.shape[-3:])
        raise DataError(f"image {image.shape} {image.dtype}: accepted: (C, H, W) or (N, C, H, W) {reason}")

    def _predict(self, batch: np.ndarray) -> Iterator[tuple[int, slice, slice, np.ndarray]]:
        """Sample, rows, columns, and the probabilities (K, rows, columns) there, until the batch is covered."""
        multiple = models.MODELS[self.config.model.name].size_multiple
        rows, columns = (windows(size, multiple) for size in batch.shape[2:])
        height, width = (axis[0].end - axis[0].start for axis in (rows, columns))
        scale = torch.from_numpy(scales_of(self.config.channels, batch.dtype.name, "image")[None]).to(self.device)
        jobs = itertools.product(range(len(batch)), rows, columns)
        while some := list(itertools.islice(jobs, max(1, BATCH_PIXELS // (height * width)))):
            numbers = np.zeros((len(some), batch.shape[1], height, width), dtype=np.float32)
            for pixels, (sample, row, column) in zip(numbers, some, strict=True):
                inside = batch[sample, :, row.start : row.end, column.start : column.end]
                pixels[:, : inside.shape[1], : inside.shape[2]] = inside
            with torch.inference_mode():
                logits = self._probabilities.logits(torch.from_numpy(numbers).to(self.device), scale)
            for predicted, (sample, row, column) in zip(logits, some, strict=True):
                kept = [slice(axis.first - axis.start, axis.last - axis.start) for axis in (row, column)]
                probs = probabilities_of(predicted[:, *kept]).cpu().numpy()
                yield sample, slice(row.first, row.last), slice(column.first, column.last), probs

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


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="robosat_pink.trained", description="Do something with a trained network.")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    what = "write it as a file that torch.export.load reads where robosat_pink is not installed"
    verb = verbs.add_parser("export", help=what, description=f"Take a trained network and {what}.")
    verb.add_argument("checkpoint", metavar="CHECKPOINT", help="best.pth of a run: a path, or s3://bucket/key")
    verb.add_argument("--to", metavar="FILE", type=Path, required=True, help="such as model.pt2; replaced if it exists")
    verb.add_argument("--dtype", help="data type of the image files, such as uint16; for `scale: auto` only")
    arguments = parser.parse_args(argv)
    try:
        load_model(arguments.checkpoint).export(arguments.to, arguments.dtype)
    except RobosatError as error:
        log.error("error: %s", error)  # noqa: TRY400
        return error.exit_code
    log.info("wrote %s", arguments.to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
