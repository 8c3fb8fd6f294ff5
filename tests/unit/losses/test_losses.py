"""Losses against values worked out by hand; the Lovász ones also against their definition written out in float64."""

import math

import numpy as np
import pytest
import torch

from robosat_pink.errors import ConfigError
from robosat_pink.losses import LOSSES, build_loss
from robosat_pink.losses.lovasz import _sort_descending, lovasz_hinge, lovasz_softmax


def hinge(scores: list[float], truth: list[int]) -> float:
    logits = torch.tensor(scores, dtype=torch.float32).view(1, 1, 1, -1)
    return lovasz_hinge(logits, torch.tensor(truth, dtype=torch.uint8).view(1, 1, -1)).item()


def jaccard_steps(positive: np.ndarray) -> np.ndarray:
    """How the Jaccard loss grows when the pixels, in this order, are counted as wrong one after the other."""
    total = positive.sum()
    losses = 1 - (total - positive.cumsum()) / (total + (~positive).cumsum())
    return np.diff(losses, prepend=0.0)


def hinge_by_definition(scores: np.ndarray, truth: np.ndarray) -> tuple[float, np.ndarray]:
    """Loss and its gradient for one image, in float64; only the errors are rounded to the scores' own type."""
    scores, truth = scores[truth != 255], truth[truth != 255].astype(bool)
    sign = np.where(truth, 1, -1).astype(scores.dtype)
    errors = (1 - scores * sign).astype(np.float64)
    order = np.argsort(-errors, kind="stable")
    steps = jaccard_steps(truth[order])
    gradient = np.zeros_like(errors)
    gradient[order] = np.where(errors[order] > 0, steps, 0.0)
    return float((np.maximum(errors[order], 0) * steps).sum()), -gradient * sign


def test_names_are_frozen() -> None:
    assert {"lovasz", "bce_jaccard", "cross_entropy", "dice", "focal"} <= set(LOSSES)


@pytest.mark.parametrize(
    ("scores", "truth", "loss"),
    [
        ([0, 0, 0, 0], [1, 1, 0, 0], 1.0),
        ([0, 0, 0, 0], [0, 0, 0, 0], 1.0),
        ([0, 0, 0, 0], [1, 1, 1, 1], 1.0),
        ([1, 2, -1, -5], [1, 1, 0, 0], 0.0),
        ([-1, -1, 1, 1], [1, 1, 0, 0], 2.0),
        ([0.7, -2, -3], [0, 0, 0], 1.7),
        ([0.5, -1, 2], [1, 1, 1], 0.833333),
        ([0.25], [1], 0.75),
        ([0.5, -0.5, 2, -2], [1, 1, 0, 0], 1.666667),
        ([3, 3, 3, 3], [1, 0, 0, 0], 3.0),
        ([-3, -3, -3, -3], [1, 0, 0, 0], 4.0),
        ([5, -7, 9], [255, 255, 255], 0.0),
        ([0.5, -0.5, 100, 2, -2, -50], [1, 1, 255, 0, 0, 255], 1.666667),
    ],
)
def test_hinge_values_worked_out_by_hand(scores: list[float], truth: list[int], loss: float) -> None:
    assert hinge(scores, truth) == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.001])
def test_float32_gradient_agrees_with_float64_however_rare_the_positives(share: float) -> None:
    random = np.random.default_rng(0)
    scores = random.standard_normal(128 * 128).astype(np.float32)
    truth = (random.random(128 * 128) < share).astype(np.uint8)
    truth[random.random(128 * 128) < 0.1] = 255
    logits = torch.from_numpy(scores).view(1, 1, 128, 128).requires_grad_()
    loss = build_loss("lovasz", num_classes=1)(logits, torch.from_numpy(truth).view(1, 128, 128))
    loss.backward()
    expected_loss, expected = hinge_by_definition(scores, truth)
    got = logits.grad.numpy().ravel()
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5)
    assert np.linalg.norm(got[truth != 255] - expected) < 1e-5 * np.linalg.norm(expected)
    assert not got[truth == 255].any()


def test_errors_fall_in_the_order_of_a_sort_of_floats() -> None:
    errors = torch.tensor([[0.0, 3.5, -0.0, 1e-40, 3.4e38, 1.0, 3.5, 2.0**-126, 0.0]]).repeat(2, 1)
    errors[1] = errors[1].flip(0)
    ordered, order = _sort_descending(errors)
    assert torch.equal(ordered, errors.sort(dim=1, descending=True).values)
    assert torch.equal(errors.gather(1, order), ordered)
    assert torch.equal(order.sort(dim=1).values, torch.arange(9).repeat(2, 1))


def test_loss_is_the_mean_over_images_each_on_its_own() -> None:
    logits = torch.tensor([[0.5, -0.5, 2, -2], [3, 3, 3, 3]]).view(2, 1, 2, 2)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.uint8).view(2, 2, 2)
    assert build_loss("lovasz", num_classes=1)(logits, mask).item() == pytest.approx((5 / 3 + 3) / 2)


def test_image_without_valid_pixels_has_loss_and_gradient_zero() -> None:
    for classes in (1, 3):
        logits = torch.randn(1, classes, 4, 4, requires_grad=True)
        loss = build_loss("lovasz", num_classes=classes)(logits, torch.full((1, 4, 4), 255, dtype=torch.uint8))
        loss.backward()
        assert loss.item() == 0
        assert not logits.grad.any()


def test_softmax_form_agrees_with_the_definition_over_present_classes() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    mask = torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)  # class 3 is never there
    mask[0, :2] = 255
    for image in range(2):
        valid = mask[image].flatten().numpy() != 255
        truth = mask[image].flatten().numpy()[valid]
        probs = logits[image].softmax(dim=0).flatten(1).numpy()[:, valid]
        per_class = []
        for number in np.unique(truth):
            positive = truth == number
            errors = np.abs(positive - probs[number])
            order = np.argsort(-errors)
            per_class.append((errors[order] * jaccard_steps(positive[order])).sum())
        assert lovasz_softmax(logits, mask)[image].item() == pytest.approx(np.mean(per_class), rel=1e-12)


def test_gradients_pass_gradcheck() -> None:
    torch.manual_seed(1)
    mask = torch.randint(0, 2, (2, 3, 3), dtype=torch.uint8)
    mask[0, 0, 0] = 255
    for classes in (1, 2):
        logits = torch.randn(2, classes, 3, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda z, k=classes: build_loss("lovasz", num_classes=k)(z, mask), (logits,))


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits = torch.randn(1, 1, 16, 16)
    mask = (torch.rand(1, 16, 16) > 0.5).to(torch.uint8)
    loss = build_loss("lovasz", num_classes=1)
    assert loss(logits.bfloat16(), mask).dtype == torch.float32
    assert loss(logits.bfloat16(), mask).item() == loss(logits.bfloat16().float(), mask).item()


def test_unknown_loss_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match="accepted: lovasz"):
        build_loss("hinge", num_classes=1)


ALL = [*LOSSES, {"lovasz": 0.5, "cross_entropy": 1.0}]


def loss_of(name: object, scores: list[list[float]], truth: list[int], weights: list[float] | None = None) -> float:
    """One sample of P pixels in a row; a list of P scores for each class."""
    logits = torch.tensor(scores, dtype=torch.float64)[None, :, None]
    mask = torch.tensor(truth, dtype=torch.uint8)[None, None]
    value: float = build_loss(name, num_classes=len(scores), class_weights=weights)(logits, mask).item()  # type: ignore[arg-type]
    return value


LN2, LN3 = math.log(2), math.log(3)


@pytest.mark.parametrize(
    ("scores", "truth", "weights", "loss"),
    [
        ([[0, 0]], [0, 1], None, LN2),
        ([[LN3, LN3, 9]], [1, 0, 255], None, (math.log(4 / 3) + math.log(4)) / 2),
        ([[LN3, LN3]], [1, 0], [3.0], (3 * math.log(4 / 3) + math.log(4)) / 4),
        ([[LN2, 0], [0, 0]], [0, 1], None, (math.log(3 / 2) + LN2) / 2),
        ([[LN2, 0], [0, 0]], [0, 1], [1.0, 5.0], (math.log(3 / 2) + 5 * LN2) / 6),
        ([[0, 0, 7], [0, 0, -7], [0, 0, 0]], [0, 2, 255], None, LN3),
        ([[4, 4]], [255, 255], None, 0.0),
    ],
)
def test_cross_entropy_is_the_weighted_mean_over_valid_pixels(
    scores: list[list[float]], truth: list[int], weights: list[float] | None, loss: float
) -> None:
    assert loss_of("cross_entropy", scores, truth, weights) == pytest.approx(loss, abs=1e-7)


@pytest.mark.parametrize(
    ("scores", "truth", "loss"),
    [
        # Two pixels of probability 1/2, one of them snow: intersection 1/2, union 1 + 1 - 1/2, a pixel added to both.
        ([[0, 0]], [0, 1], LN2 - math.log((0.5 + 1) / (1.5 + 1))),
        ([[0, 0, 5]], [0, 1, 255], LN2 - math.log((0.5 + 1) / (1.5 + 1))),
        # Nothing there and 1/2 predicted on two pixels: intersection 0, union 1.
        ([[0, 0]], [0, 0], LN2 - math.log((0 + 1) / (1 + 1))),
        ([[-40, -40]], [0, 0], 0.0),
        # Two classes, one pixel each: both have intersection 1/2 and union 3/2.
        ([[0, 0], [0, 0]], [0, 1], LN2 - math.log((0.5 + 1) / (1.5 + 1))),
        # Of three classes the last is nowhere: intersection 0, union 2/3; the others 1/3 and 2/3 + 1 - 1/3.
        (
            [[0, 0], [0, 0], [0, 0]],
            [0, 1],
            LN3 - (2 * math.log((1 / 3 + 1) / (4 / 3 + 1)) + math.log(1 / (2 / 3 + 1))) / 3,
        ),
        ([[4, 4]], [255, 255], 0.0),
    ],
)
def test_bce_jaccard_is_cross_entropy_less_the_log_of_the_soft_jaccard_index(
    scores: list[list[float]], truth: list[int], loss: float
) -> None:
    assert loss_of("bce_jaccard", scores, truth) == pytest.approx(loss, abs=1e-7)


@pytest.mark.parametrize(
    ("scores", "truth", "loss"),
    [
        # Two pixels of probability 1/2, one of them snow: intersection 1/2, predicted 1, true 1, a pixel added to both.
        ([[0, 0]], [0, 1], 1 - (2 * 0.5 + 1) / (1 + 1 + 1)),
        ([[0, 0, 5]], [0, 1, 255], 1 - (2 * 0.5 + 1) / (1 + 1 + 1)),
        # Nothing there and 1/2 predicted on two pixels: intersection 0, predicted 1.
        ([[0, 0]], [0, 0], 1 - 1 / (1 + 1)),
        ([[-40, -40]], [0, 0], 0.0),
        # Of three classes the last is nowhere: predicted 2/3; the others have intersection 1/3 and one true pixel.
        (
            [[0, 0], [0, 0], [0, 0]],
            [0, 1],
            1 - (2 * (2 / 3 + 1) / (2 / 3 + 1 + 1) + 1 / (2 / 3 + 1)) / 3,
        ),
        ([[4, 4]], [255, 255], 0.0),
    ],
)
def test_dice_is_one_less_the_mean_coefficient_of_the_classes(
    scores: list[list[float]], truth: list[int], loss: float
) -> None:
    assert loss_of("dice", scores, truth) == pytest.approx(loss, abs=1e-7)


@pytest.mark.parametrize(
    ("scores", "truth", "loss"),
    [
        ([[0, 0]], [0, 1], LN2 / 4),
        # Probabilities 3/4 of the first pixel's class, 1/4 of the second's.
        ([[LN3, LN3, 9]], [1, 0, 255], (math.log(4 / 3) / 16 + math.log(4) * 9 / 16) / 2),
        ([[LN2, 0], [0, 0]], [0, 1], (math.log(3 / 2) / 9 + LN2 / 4) / 2),
        ([[4, 4]], [255, 255], 0.0),
    ],
)
def test_focal_loss_weighs_a_pixel_by_the_square_of_what_its_probability_lacks(
    scores: list[list[float]], truth: list[int], loss: float
) -> None:
    assert loss_of("focal", scores, truth) == pytest.approx(loss, abs=1e-7)


def test_sum_of_losses_is_weighted() -> None:
    parts = [loss_of(name, [[0.5, -2]], [0, 1]) for name in ("lovasz", "cross_entropy")]
    both = loss_of({"lovasz": 0.5, "cross_entropy": 2}, [[0.5, -2]], [0, 1])
    assert both == pytest.approx(0.5 * parts[0] + 2 * parts[1])


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("name", ALL, ids=str)
def test_loss_is_the_mean_over_samples_and_ignored_pixels_get_no_gradient(name: object, num_classes: int) -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(3, num_classes, 6, 6, generator=random, dtype=torch.float64, requires_grad=True)
    mask = torch.randint(0, max(num_classes, 2), (3, 6, 6), generator=random).to(torch.uint8)
    mask[:, 2] = 255
    mask[1] = 255
    loss = build_loss(name, num_classes=num_classes)  # type: ignore[arg-type]
    whole = loss(logits, mask)
    single = [loss(logits[i : i + 1], mask[i : i + 1]) for i in range(3)]
    assert whole.item() == pytest.approx(sum(each.item() for each in single) / 3)
    assert single[1].item() == 0
    (gradient,) = torch.autograd.grad(whole, logits)
    ignored = (mask == 255)[:, None].expand_as(gradient)
    assert gradient[ignored].abs().max() == 0
    assert gradient[~ignored].abs().max() > 0


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("name", ["bce_jaccard", "cross_entropy", "dice", "focal"])
def test_gradient_is_that_of_the_loss(name: str, num_classes: int) -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, num_classes, 3, 3, generator=random, dtype=torch.float64, requires_grad=True)
    mask = torch.randint(0, max(num_classes, 2), (2, 3, 3), generator=random).to(torch.uint8)
    mask[0, 0] = 255
    loss = build_loss(name, num_classes=num_classes)
    assert torch.autograd.gradcheck(lambda logits: loss(logits, mask), logits)


@pytest.mark.parametrize("name", ALL, ids=str)
def test_loss_is_computed_in_float32_from_bf16_logits_and_stays_finite_at_extremes(name: object) -> None:
    logits = torch.tensor([[[[3e4, -3e4, 3e4, -3e4]]]], dtype=torch.bfloat16, requires_grad=True)
    value = build_loss(name, num_classes=1)(logits, torch.tensor([[[1, 1, 0, 0]]], dtype=torch.uint8))  # type: ignore[arg-type]
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
