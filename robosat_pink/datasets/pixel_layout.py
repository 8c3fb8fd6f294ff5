"""How pixels lie in memory and in files of the cache: images (N, H, W, C), then masks (N, H, W) uint8. No torch.

Called by `packing` for batches, by `batch` for their tensors and by `cache_file`, where N is 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class PixelLayout(NamedTuple):
    dtype: str  # of the images, as `numpy.dtype.str` has it
    shape: tuple[int, int, int, int]  # (N, H, W, C)

    @property
    def image_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def size(self) -> int:
        """Bytes of images and masks."""
        return self.image_bytes + math.prod(self.shape[:3])

    def arrays(self, memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images (N, C, H, W) and masks (N, H, W) as views of this memory, at least `size` bytes as uint8."""
        image_bytes = self.image_bytes
        images = memory[:image_bytes].view(self.dtype).reshape(self.shape)
        masks = memory[image_bytes : self.size].reshape(self.shape[:3])
        return images.transpose(0, 3, 1, 2), masks
