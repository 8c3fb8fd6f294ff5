"""A batch of tiles as tensors, whose axes and dtypes are checked once, here.

Made by `worker_client`, used by `training` and `report`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from robosat_pink.datasets.packing import PackedBatch

AXES = {"image": "NCHW", "mask": "NHW", "scale": "NC", "symmetry": "N", "rows": "N", "sizes": "N"}
DTYPES = {"mask": torch.uint8, "scale": torch.float32}
ACCEPTED = "accepted: image (N, C, H, W), mask (N, H, W) uint8 with 255 = ignore, scale (N, C) float32"


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples with at least one valid pixel: `packing` leaves out all others.

    Raises ValueError if an axis or a dtype differs from those below. Values are not checked: the decoder did that.
    The tensors may be views of memory, which is reused only after the last of these views is gone.
    """

    image: Tensor  # (N, C, H, W), in memory (N, H, W, C); the tiles' own dtype
    mask: Tensor  # (N, H, W) uint8 class numbers, 255 = ignore
    scale: Tensor  # (N, C) float32, divisor of each band's numbers
    symmetry: tuple[int, ...]  # (N,) 0 to 7, to be applied to image and mask
    rows: tuple[int, ...]  # (N,) rows of the pairs
    sizes: tuple[tuple[int, int], ...]  # (N,) heights and widths of the tiles, before padding to H and W
    empty: int = 0  # samples left out because they have no valid pixel
    cached: int = 0  # samples from the cache, empty ones included; every other sample took two requests
    fetched_bytes: int = 0
    retries: int = 0  # sum over all requests
    kinds: Mapping[str, int] = field(default_factory=dict)  # the row of one tile for each `Notes.kind` in the batch
    border: int = 0  # pixels of the neighbours above and to the left of each tile, which begins at (border, border)

    def __post_init__(self) -> None:
        lengths: dict[str, int] = {}  # by axis
        for name, axes in AXES.items():
            value = getattr(self, name)
            shape = tuple(value.shape) if isinstance(value, Tensor) else (len(value),)
            if len(shape) != len(axes):
                raise ValueError(f"batch: {name} {shape} has {len(shape)} axes, not {', '.join(axes)}; {ACCEPTED}")
            for axis, length in zip(axes, shape, strict=True):
                if length != lengths.setdefault(axis, length):
                    raise ValueError(
                        f"batch: {name} {shape} has {length} along {axis}, not {lengths[axis]} as before it; {ACCEPTED}"
                    )
        for name, dtype in DTYPES.items():
            if getattr(self, name).dtype != dtype:
                raise ValueError(f"batch: {name} is of type {getattr(self, name).dtype}, not {dtype}; {ACCEPTED}")
        for row, (height, width) in zip(self.rows, self.sizes, strict=True):
            if self.border + height > lengths["H"] or self.border + width > lengths["W"]:
                raise ValueError(
                    f"batch: row {row} is {height} high and {width} wide, more than H = {lengths['H']} or "
                    f"W = {lengths['W']} less the border, {self.border}; {ACCEPTED}"
                )

    def __len__(self) -> int:
        return len(self.rows)


NO_TILES = Batch(
    torch.empty(0, 0, 0, 0), torch.empty(0, 0, 0, dtype=torch.uint8), torch.empty(0, 0), symmetry=(), rows=(), sizes=()
)


def batch_in(memory: np.ndarray, packed: PackedBatch) -> Batch:
    """The packed batch as views of `memory`, without a copy."""
    image, mask = packed.layout.arrays(memory)
    fields = packed._asdict()
    del fields["layout"]
    scale = fields.pop("scale")
    return Batch(torch.from_numpy(image), torch.from_numpy(mask), torch.from_numpy(scale), **fields)
