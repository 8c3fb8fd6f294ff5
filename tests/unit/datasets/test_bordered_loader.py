"""Pairs with a border of the images' neighbours: what a mask says stays with its pixel, and the border is ignored."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rasterio.transform import Affine

from conftest import write_tile
from robosat_pink.datasets import TilePairs
from robosat_pink.datasets.batch import Batch
from robosat_pink.datasets.bordered_loader import BorderedLoader
from robosat_pink.datasets.tile_file import Changed
from robosat_pink.errors import DataError
from robosat_pink.losses import IGNORE
from scenes import images_in, mask_pattern, pairs_in, write_pair

SIZE, BUFFER = 8, 3


def images(count: int) -> dict[int, np.ndarray]:
    """Images (2, 8, 8) by x in which no two pixels are alike."""
    numbers = np.arange(1, 2 * count * SIZE * SIZE + 1, dtype=np.uint16)
    return dict(enumerate(numbers.reshape(count, 2, SIZE, SIZE), start=1))


def loader(folder: Path, batch_size: int = 2) -> tuple[TilePairs, BorderedLoader]:
    pairs = pairs_in(folder)
    return pairs, BorderedLoader(pairs, images_in(folder / "imagery"), batch_size, BUFFER, lambda: None)


def tiles(batches: Iterator[Batch]) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, int]]:
    """Row, image, mask and border of each tile."""
    for batch in batches:
        for row, image, mask in zip(batch.rows, batch.image, batch.mask, strict=True):
            yield row, image, mask, batch.border


def test_masks_lie_below_their_pixels_and_borders_show_neighbours_without_a_mask(tmp_path: Path) -> None:
    pixels = images(4)
    for x in (1, 2, 4):
        write_pair(tmp_path, x, image=pixels[x])
    write_tile(tmp_path / "imagery/scene/5/3/2.tif", pixels[3])  # has no mask, but is the neighbour of two
    pairs, bordered = loader(tmp_path)
    rows = np.arange(3)
    seen = {}
    for row, image, mask, border in tiles(bordered.evaluation(rows)):
        x = pairs.files.tile(row).x
        seen[x] = image, border
        inner = slice(border, border + SIZE), slice(border, border + SIZE)
        assert np.array_equal(image[:, *inner].numpy(), pixels[x])
        assert np.array_equal(mask[inner].numpy(), mask_pattern(SIZE, SIZE))
        mask[inner] = IGNORE
        assert (mask == IGNORE).all()
        assert mask.shape[0] >= SIZE + 2 * border
    assert sorted(seen) == [1, 2, 4]
    image, border = seen[2]
    assert border >= BUFFER
    beside = slice(border, border + SIZE)
    assert np.array_equal(image[:, beside, border + SIZE : SIZE + 2 * border].numpy(), pixels[3][:, :, :border])
    assert np.array_equal(image[:, beside, :border].numpy(), pixels[1][:, :, SIZE - border :])
    assert bordered.num_batches(rows) == len(list(bordered.evaluation(rows))) == 2


def test_tiles_without_a_valid_pixel_are_left_out_and_counted(tmp_path: Path) -> None:
    pixels = images(3)
    for x in (1, 2, 3):
        nothing = np.full((SIZE, SIZE), 4, dtype=np.uint8)
        write_pair(tmp_path, x, image=pixels[x], mask=nothing if x == 2 else None, mask_nodata=4 if x == 2 else None)
    pairs, bordered = loader(tmp_path, batch_size=3)
    (batch,) = bordered.evaluation(np.arange(3))
    assert (len(batch), batch.empty) == (2, 1)
    for slot, row in enumerate(batch.rows):
        inner = slice(batch.border, batch.border + SIZE), slice(batch.border, batch.border + SIZE)
        assert np.array_equal(batch.image[slot][:, *inner].numpy(), pixels[pairs.files.tile(row).x])


def test_selected_rows_come_once_each(tmp_path: Path) -> None:
    for x, image in images(5).items():
        write_pair(tmp_path, x, image=image)
    _, bordered = loader(tmp_path)
    rows = np.array([0, 2, 4])
    assert sorted(row for row, *_ in tiles(bordered.evaluation(rows))) == [0, 2, 4]


def test_image_that_is_gone_before_its_neighbours_are_listed_is_an_error(tmp_path: Path) -> None:
    for x, image in images(2).items():
        write_pair(tmp_path, x, image=image)
    pairs = pairs_in(tmp_path)
    (tmp_path / "imagery/scene/5/1/2.tif").unlink()
    with pytest.raises(Changed, match=r"scene/5/1/2.tif: is gone since it was listed; start again"):
        BorderedLoader(pairs, images_in(tmp_path / "imagery"), 2, BUFFER, lambda: None)


@pytest.mark.filterwarnings("ignore:The given matrix is equal to Affine.identity")
def test_image_with_south_up_beside_a_mask_that_does_not_say_so_is_refused(tmp_path: Path) -> None:
    """The pair is read as it lies in the files, but neighbours have to face alike."""
    image, mask = images(1)[1], mask_pattern(SIZE, SIZE)
    write_tile(tmp_path / "imagery/scene/5/1/2.tif", image, transform=Affine(1, 0, 10, 0, 1, 10))
    write_tile(tmp_path / "mask/labels/5/1/2.tif", mask, crs=None, transform=Affine.identity())
    _, bordered = loader(tmp_path)
    with pytest.raises(DataError, match=r"2.tif: has south up, as only its own georeference says.*predict.buffer: 0"):
        list(bordered.evaluation(np.arange(1)))
