"""The layout of pixels in memory and in cache files: images (N, H, W, C), then masks (N, H, W) uint8. No torch.

Called by `packing` for batches, by `batch` for their tensors and by `cache_file`, where N is 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class PixelLayout(NamedTuple):
    dtype: str  # dtype of the images, as in `numpy.dtype.str`
    shape: tuple[int, int, int, int]  # (N, H, W, C)

    @property
    def image_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def size(self) -> int:
        """The bytes of images and masks together."""
        return self.image_bytes + math.prod(self.shape[:3])

    def arrays(self, memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images (N, C, H, W) and masks (N, H, W) as views of `memory`, which is uint8 of at least `size` bytes."""
        image_bytes = self.image_bytes
        images = memory[:image_bytes].view(self.dtype).reshape(self.shape)
        masks = memory[image_bytes : self.size].reshape(self.shape[:3])
        return images.transpose(0, 3, 1, 2), masks
