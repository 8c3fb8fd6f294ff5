"""Probabilities of a batch of tiles with the border of their neighbours, by a trained network. Called by `run`."""

from __future__ import annotations

import numpy as np
import torch

from robosat_pink.container import device as devices
from robosat_pink.datasets.probabilities import probabilities_of
from robosat_pink.errors import ContractError
from robosat_pink.prediction.model import Model
from robosat_pink.prediction.rasters import NO_DATA


class Predictor:
    """A model on a device."""

    def __init__(self, model: Model, device: torch.device, precision: torch.dtype | None) -> None:
        self._device, self._precision = device, precision
        # On a CPU, too, which trains in NCHW: forward, float32 takes unet 0.77 of the time, AlbuNet 0.88, TernausNetV2
        # 0.96 (AVX2, November 2026).
        self._network, self._transform = model.network(device, torch.channels_last), model.transform(device)
        self._threshold = model.threshold if model.config.num_classes == 1 else None

    def probabilities(self, image: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """(N, K, H, W) float32 of images (N, C, H, W) in digital numbers, with the divisors (N, C) of their bands.

        A GPU takes the batch at once. A CPU takes one image after the other: for four of 640 x 640, unet in float32
        takes 0.5 GB instead of 2.0, AlbuNet on ResNet-50 0.6 instead of 1.7, in no more time, and the numbers are the
        same to the last bit (two cores, November 2026). Raises ContractError if the device runs out of memory.
        """
        at_a_time = 1 if self._device.type == "cpu" else len(image)
        starts = range(0, len(image), at_a_time)
        parts = [self._some(image[start:][:at_a_time], scale[start:][:at_a_time]) for start in starts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @torch.inference_mode()
    def _some(self, image: np.ndarray, scale: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(image).to(self._device)
        scales = torch.from_numpy(scale).to(self._device)
        pixels, _ = self._transform(pixels, torch.empty(0), scales, ())
        try:
            with devices.autocast(self._device, self._precision):
                logits = self._network(pixels.contiguous(memory_format=torch.channels_last))
        except torch.OutOfMemoryError as error:
            raise ContractError(
                f"model.batch_size = {len(image)}: so many tiles of {image.shape[3]} x {image.shape[2]} pixels, with "
                f"their borders, do not fit into the memory of {self._device}; set a smaller one"
            ) from error
        array: np.ndarray = probabilities_of(logits.float()).cpu().numpy()
        return array

    def classes(self, probabilities: np.ndarray, missing: np.ndarray) -> np.ndarray:
        """Class numbers (H, W) uint8 from probabilities (K, H, W); 255 where pixels (H, W) are missing."""
        is_binary = self._threshold is not None
        found = probabilities[0] > self._threshold if is_binary else probabilities.argmax(axis=0)
        return np.where(missing, NO_DATA, found).astype(np.uint8)
