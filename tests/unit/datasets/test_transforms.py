"""What happens to a batch on the device, worked out by hand."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from conftest import pattern
from robosat_pink.datasets.transforms import EvaluationTransform, TrainingTransform, apply_symmetry, undo_symmetry
from scenes import mask_pattern, mask_that_belongs_to

SQUARE = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])

SYMMETRIES_OF_THE_SQUARE = {
    "as it is": [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
    "left and right exchanged": [[3, 2, 1], [6, 5, 4], [9, 8, 7]],
    "top and bottom exchanged": [[7, 8, 9], [4, 5, 6], [1, 2, 3]],
    "half a turn": [[9, 8, 7], [6, 5, 4], [3, 2, 1]],
    "quarter turn to the left": [[3, 6, 9], [2, 5, 8], [1, 4, 7]],
    "quarter turn to the right": [[7, 4, 1], [8, 5, 2], [9, 6, 3]],
    "mirrored at the diagonal": [[1, 4, 7], [2, 5, 8], [3, 6, 9]],
    "mirrored at the other diagonal": [[9, 6, 3], [8, 5, 2], [7, 4, 1]],
}

NO_SYMMETRY = (0,)


def test_eight_numbers_are_the_eight_symmetries_of_the_square() -> None:
    drawn = [apply_symmetry(SQUARE, number).tolist() for number in range(8)]
    assert sorted(drawn) == sorted(SYMMETRIES_OF_THE_SQUARE.values())
    assert all(one != other for one, other in pairwise(sorted(drawn)))


def test_symmetry_0_is_the_identity() -> None:
    assert torch.equal(apply_symmetry(SQUARE, 0), SQUARE)


@pytest.mark.parametrize("number", range(8))
def test_symmetry_moves_the_last_two_axes_only(number: int) -> None:
    image = torch.stack([SQUARE, SQUARE + 10, SQUARE + 20])
    turned = apply_symmetry(image, number)
    for band in range(3):
        assert torch.equal(turned[band], apply_symmetry(SQUARE, number) + 10 * band)


@pytest.mark.parametrize("number", [-1, 8])
def test_there_is_no_ninth_symmetry(number: int) -> None:
    with pytest.raises(AssertionError):
        apply_symmetry(SQUARE, number)


def plain(kind: type[EvaluationTransform], bands: int) -> EvaluationTransform:
    return kind([0.0] * bands, [1.0] * bands)


@pytest.mark.parametrize("number", range(8))
def test_every_symmetry_moves_image_and_mask_together_and_keeps_the_order_of_bands(number: int) -> None:
    """The original flipped rows of the image with columns of the mask, and reversed the bands (its defect 1)."""
    image, mask = torch.from_numpy(pattern(3, 8, 8))[None], torch.from_numpy(mask_pattern(8, 8))[None]
    turned, turned_mask = plain(TrainingTransform, 3)(image, mask, torch.ones(1, 3), (number,))
    assert np.array_equal(turned_mask.numpy(), mask_that_belongs_to(turned[:, 0].numpy()))
    for band in (1, 2):
        assert torch.equal(turned[:, band] - turned[:, 0], torch.full((1, 8, 8), 10000.0 * band))
    assert torch.equal(turned[0, 0], image[0, 0].float()) == (number == 0)


def test_each_sample_has_a_symmetry_of_its_own() -> None:
    image, mask = SQUARE.expand(8, 2, 3, 3), SQUARE.to(torch.uint8).expand(8, 3, 3)
    turned, turned_mask = plain(TrainingTransform, 2)(image, mask, torch.ones(8, 2), tuple(range(8)))
    for number in range(8):
        expected = apply_symmetry(SQUARE, number)
        assert torch.equal(turned[number], expected.float().expand(2, 3, 3))
        assert torch.equal(turned_mask[number], expected.to(torch.uint8))


@pytest.mark.parametrize("kind", [EvaluationTransform, TrainingTransform])
def test_numbers_are_divided_by_scale_less_mean_over_std_each_sample_and_band_its_own(
    kind: type[EvaluationTransform],
) -> None:
    transform = kind([0.5, 0.25], [0.25, 0.5])
    image = torch.tensor([[[[2000, 3000]], [[1000, 4000]]], [[[51, 255]], [[0, 102]]]], dtype=torch.uint16)
    scale = torch.tensor([[4000.0, 2000.0], [255.0, 255.0]])
    normalised, _ = transform(image, torch.zeros(2, 1, 2, dtype=torch.uint8), scale, (0, 0))
    assert normalised.dtype == torch.float32
    # 2000 / 4000 = 0.5: 0; 3000 / 4000 = 0.75: 1; 1000 / 2000 = 0.5: 0.5; 4000 / 2000 = 2: 3.5;
    # 51 / 255 = 0.2: -1.2; 255 / 255 = 1: 2; 0: -0.5; 102 / 255 = 0.4: 0.3.
    expected = torch.tensor([[[[0.0, 1.0]], [[0.5, 3.5]]], [[[-1.2, 2.0]], [[-0.5, 0.3]]]])
    torch.testing.assert_close(normalised, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.int32, torch.float32])
def test_raw_numbers_of_any_type_pass_as_they_are(dtype: torch.dtype) -> None:
    image = torch.tensor([0, 1, 100, 127]).view(1, 1, 2, 2).to(dtype)
    mask = torch.zeros(1, 2, 2, dtype=torch.uint8)
    raw, _ = plain(EvaluationTransform, 1)(image, mask, torch.ones(1, 1), NO_SYMMETRY)
    assert raw.dtype == torch.float32
    assert raw.flatten().tolist() == [0, 1, 100, 127]


def test_large_uint16_numbers_do_not_turn_negative() -> None:
    image = torch.from_numpy(np.full((1, 1, 1, 1), 65535, dtype=np.uint16))
    raw, _ = plain(EvaluationTransform, 1)(image, torch.zeros(1, 1, 1), torch.ones(1, 1), NO_SYMMETRY)
    assert raw.item() == 65535


def test_evaluation_transform_takes_no_notice_of_symmetry() -> None:
    image, mask = SQUARE[None, None], SQUARE[None].to(torch.uint8)
    for number in range(8):
        same, same_mask = plain(EvaluationTransform, 1)(image, mask, torch.ones(1, 1), (number,))
        assert torch.equal(same, image.float())
        assert torch.equal(same_mask, mask)


@pytest.mark.parametrize("kind", [EvaluationTransform, TrainingTransform])
def test_mask_keeps_its_type_and_its_ignored_pixels(kind: type[EvaluationTransform]) -> None:
    mask = torch.tensor([[[0, 1], [255, 1]]], dtype=torch.uint8)
    _, after = kind([0.5], [0.25])(torch.ones(1, 1, 2, 2), mask, torch.full((1, 1), 255.0), (3,))
    assert after.dtype == torch.uint8
    assert sorted(after.flatten().tolist()) == [0, 1, 1, 255]


def test_transform_has_nothing_that_a_checkpoint_would_hold() -> None:
    assert TrainingTransform([0.5], [0.25]).state_dict() == {}


@pytest.mark.parametrize("number", range(8))
def test_undone_symmetry_is_the_tile_as_it_was_also_where_it_is_no_square(number: int) -> None:
    tile = torch.arange(24).reshape(2, 3, 4)
    assert torch.equal(undo_symmetry(apply_symmetry(tile, number), number), tile)
