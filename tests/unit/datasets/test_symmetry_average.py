"""Probabilities averaged over the eight symmetries, of networks that see only one corner of what they are shown."""

import math

import pytest
import torch
from torch import Tensor, nn

from robosat_pink.datasets.symmetry_average import SymmetryAverage, predictor
from robosat_pink.datasets.transforms import apply_symmetry


class Corner(nn.Module):
    """Logits of the image itself, but for the corner at top left: there each class has its own number."""

    def __init__(self, *corner: float) -> None:
        super().__init__()
        self.corner = torch.tensor(corner)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(tuple(image.shape))
        logits = image.clone()
        logits[:, :, 0, 0] = self.corner
        return logits


def test_single_class_has_the_log_odds_of_its_mean_probability() -> None:
    image = torch.full((1, 1, 2, 4), math.log(3))  # a probability of 3/4
    logits = SymmetryAverage(Corner(-math.log(9)))(image)  # 1/10 in the corner
    # Two of eight symmetries bring a corner of the tile to the network's corner.
    corner = (2 * 0.1 + 6 * 0.75) / 8
    torch.testing.assert_close(logits.sigmoid()[0, 0, 0], torch.tensor([corner, 0.75, 0.75, corner]))
    torch.testing.assert_close(logits.sigmoid()[0, 0, 1], torch.tensor([corner, 0.75, 0.75, corner]))


def test_several_classes_have_the_log_of_their_mean_probability() -> None:
    probabilities = torch.tensor([0.2, 0.3, 0.5])
    image = probabilities.log()[None, :, None, None].expand(1, 3, 2, 2)
    logits = SymmetryAverage(Corner(*torch.tensor([0.6, 0.3, 0.1]).log().tolist()))(image)
    expected = (2 * torch.tensor([0.6, 0.3, 0.1]) + 6 * probabilities) / 8
    torch.testing.assert_close(logits.softmax(dim=1)[0, :, 0, 0], expected)
    torch.testing.assert_close(logits.exp().sum(dim=1), torch.ones(1, 2, 2))


def test_average_turns_with_the_tile() -> None:
    torch.manual_seed(0)
    average = SymmetryAverage(nn.Conv2d(2, 1, 3, padding=1).double())
    image = torch.randn(2, 2, 4, 6, dtype=torch.float64)
    expected = average(image)
    for number in range(8):
        torch.testing.assert_close(average(apply_symmetry(image, number)), apply_symmetry(expected, number))


@pytest.mark.parametrize("logit", [-300.0, -40.0, 0.0, 40.0, 300.0])
def test_logit_on_which_all_agree_stays_and_is_finite(logit: float) -> None:
    """A probability of sigmoid(40) is 1 in float32, and its log odds would be inf."""
    for dtype in (torch.float32, torch.bfloat16):
        image = torch.full((1, 1, 2, 2), logit, dtype=dtype)
        found = SymmetryAverage(nn.Identity())(image)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, image.float())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_network_sees_one_symmetry_at_a_time_in_the_layout_of_the_batch(layout: torch.memory_format) -> None:
    network, layouts = Corner(0.0, 0.0), []
    network.register_forward_pre_hook(lambda _, inputs: layouts.append(inputs[0].is_contiguous(memory_format=layout)))
    SymmetryAverage(network)(torch.zeros(3, 2, 4, 6).contiguous(memory_format=layout))
    assert network.seen == 4 * [(3, 2, 4, 6)] + 4 * [(3, 2, 6, 4)]
    assert layouts == 8 * [True]


def test_network_is_itself_unless_symmetries_are_asked_for() -> None:
    network = nn.Identity()
    assert predictor(network, symmetries=False) is network
    assert predictor(network, symmetries=True).eval().training is False
