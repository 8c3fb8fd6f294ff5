"""Loads pairs for evaluation with a border of the images' neighbours, as `predict` sees them. Called by `evaluate`.

Each pair is read as in training, and each image once more with its neighbours: three requests a tile instead of two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import torch

from robosat_pink.datasets.batch import Batch
from robosat_pink.datasets.images import ImageTiles
from robosat_pink.datasets.loader import TileLoader
from robosat_pink.datasets.neighbours import BorderedBatch, read_with_neighbours
from robosat_pink.datasets.pairs import TilePairs
from robosat_pink.datasets.reading_order import batches_in_order
from robosat_pink.datasets.tile_file import START_AGAIN, Changed
from robosat_pink.errors import DataError
from robosat_pink.losses import IGNORE


class BorderedLoader(TileLoader):
    """A loader whose batches of an evaluation have borders, in which masks are IGNORE; in `reading_order`."""

    def __init__(
        self, tiles: TilePairs, images: ImageTiles, batch_size: int, buffer: int, interrupt: Callable[[], None]
    ) -> None:
        """`images` are of the pairs' location and expression: neighbours need no mask.

        Raises Changed if they lack a pair's image, which was listed before.
        """
        super().__init__(tiles, batch_size, workers=0, interrupt=interrupt)
        self._images, self._buffer, self._interrupt = images, buffer, interrupt
        row_of_path = {images.files.path(row): row for row in range(len(images))}
        try:
            self._image_rows = [row_of_path[tiles.files.path(row)] for row in range(len(tiles))]
        except KeyError as error:
            raise Changed(
                f"{images.image_location}/{error.args[0]}: is gone since it was listed{START_AGAIN}"
            ) from None

    def evaluation(self, rows: np.ndarray) -> Iterator[Batch]:
        """Batches of every row once, each of one scene: whole tiles in their borders, not augmented."""
        batches = self._batches(rows)
        bordered_batches = read_with_neighbours(
            self._images,
            [[self._image_rows[row] for row in batch] for batch in batches],
            buffer=self._buffer,
            size_multiple=self.tiles.reader.size_multiple,
            interrupt=self._interrupt,
        )
        for batch, bordered in zip(self._iterate(iter(batches), is_whole=True), bordered_batches, strict=True):
            yield self._joined(batch, bordered)

    def num_batches(self, rows: np.ndarray) -> int:
        return len(self._batches(rows))

    def _batches(self, rows: np.ndarray) -> list[list[int]]:
        return batches_in_order(self.tiles.files, rows, self.batch_size, len(self.tiles.reader.bands))

    def _joined(self, batch: Batch, bordered: BorderedBatch) -> Batch:
        """The masks of `batch`, which lacks tiles without a valid pixel, in the borders of `bordered`."""
        slots = [bordered.rows.index(self._image_rows[row]) for row in batch.rows]
        image = bordered.image.transpose(0, 2, 3, 1)[slots].transpose(0, 3, 1, 2)
        mask = np.full((len(slots), *image.shape[2:]), IGNORE, dtype=np.uint8)
        for slot, (row, (height, width)) in enumerate(zip(batch.rows, batch.sizes, strict=True)):
            inner = (
                ...,
                slice(bordered.border, bordered.border + height),
                slice(bordered.border, bordered.border + width),
            )
            if not np.array_equal(image[slot][inner], batch.image[slot, :, :height, :width].numpy()):
                raise DataError(
                    f"{self.tiles.name(row)}: has south up, as only its own georeference says, not its mask's; its "
                    "neighbours cannot be laid beside it. Write both with north up, or set predict.buffer: 0"
                )
            mask[slot][inner] = batch.mask[slot, :height, :width].numpy()
        return dataclasses.replace(
            batch,
            image=torch.from_numpy(image),
            mask=torch.from_numpy(mask),
            scale=torch.from_numpy(bordered.scale[slots]),
            border=bordered.border,
        )
