"""A saved network applied to an image: symmetries and thresholds."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robosat_pink.datasets import windows
from robosat_pink.errors import DataError
from saved_networks import saved

IMAGE = np.random.default_rng(0).integers(0, 10_000, (2, 24, 40)).astype(np.uint16)


LARGE = np.random.default_rng(1).integers(0, 10_000, (2, 400, 600)).astype(np.uint16)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """LARGE becomes 2 x 3 windows of unet, of albunet 2 x 4."""
    monkeypatch.setattr(windows, "SIDE", 384)


@pytest.mark.parametrize("classes", [1, 3])
def test_average_over_symmetries_is_that_of_the_eight_predictions(classes: int, tmp_path: Path) -> None:
    image = IMAGE[:, :16, :32]  # of sides that need no padding
    plain, average = (saved(tmp_path, classes, symmetries) for symmetries in (False, True))
    expected = np.zeros((classes, 16, 32))
    for rows in (1, -1):
        for columns in (1, -1):
            flipped = image[:, ::rows, ::columns]
            expected += plain.probabilities(flipped)[:, ::rows, ::columns]
            turned = plain.probabilities(flipped.transpose(0, 2, 1))
            expected += turned.transpose(0, 2, 1)[:, ::rows, ::columns]
    found = average.probabilities(image)
    np.testing.assert_allclose(found, expected / 8, atol=1e-6)
    assert np.abs(found - plain.probabilities(image)).max() > 1e-4


def test_image_of_any_size_has_probabilities_of_its_size(tmp_path: Path) -> None:
    assert saved(tmp_path, symmetries=True).probabilities(IMAGE).shape == (1, 24, 40)


@pytest.mark.parametrize("symmetries", [False, True])
def test_batch_is_predicted_as_its_images(symmetries: bool, tmp_path: Path) -> None:
    trained = saved(tmp_path, classes=3, symmetries=symmetries)
    batch = np.stack([IMAGE, IMAGE[:, ::-1], IMAGE + 1])
    probs, classes = trained.probabilities(batch), trained.classify(batch)
    assert (probs.shape, classes.shape, classes.dtype) == ((3, 3, 24, 40), (3, 24, 40), np.uint8)
    for image, its_probs, its_classes in zip(batch, probs, classes, strict=True):
        np.testing.assert_allclose(its_probs, trained.probabilities(image), atol=1e-6)
        assert np.array_equal(its_classes, its_probs.argmax(axis=0))


def test_windows_of_unet_equal_one_pass(tmp_path: Path, small_windows: None, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = saved(tmp_path, classes=3)
    found, classes = trained.probabilities(LARGE), trained.classify(np.stack([LARGE, LARGE]))
    monkeypatch.setattr(windows, "CONTEXT", 0)
    abrupt = trained.probabilities(LARGE)
    monkeypatch.setattr(windows, "SIDE", 1024)
    expected = trained.probabilities(LARGE)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(abrupt - expected).max() > 1e-3
    assert np.array_equal(classes[1], found.argmax(axis=0))


def test_windows_of_albunet_classify_nearly_as_one_pass(
    tmp_path: Path, small_windows: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, image = saved(tmp_path, name="albunet", encoder="resnet18"), LARGE[:, :192]
    probs = trained.probabilities(image)
    monkeypatch.setattr(windows, "CONTEXT", 0)
    abrupt = trained.probabilities(image)
    monkeypatch.setattr(windows, "SIDE", 1024)
    expected = trained.probabilities(image)
    middle = np.median(expected)  # divides the pixels in two halves
    differing = [((probs > middle) != (expected > middle)).mean() for probs in (probs, abrupt)]
    assert differing[0] < 0.002 < 0.01 < differing[1]


def test_memory_grows_only_by_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "SIDE", 64)
    monkeypatch.setattr(windows, "CONTEXT", 16)
    monkeypatch.setattr("robosat_pink.trained.BATCH_PIXELS", 4 * 64 * 64)
    trained, image = saved(tmp_path), np.ones((2, 256, 1024), dtype=np.uint8)
    tracemalloc.start()  # counts numpy's arrays, not torch's tensors
    classes = trained.classify(image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - classes.nbytes < 2 * image.nbytes  # the image in float32 would take 4 times its bytes


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (
            IMAGE[0],
            r"image \(24, 40\) uint16: accepted: \(C, H, W\) or \(N, C, H, W\) with the bands \[1, 2\] of a file",
        ),
        (IMAGE[None, None], r"image \(1, 1, 2, 24, 40\) uint16: accepted: "),
        (IMAGE[:1], r"image \(1, 24, 40\) uint16: accepted: .* with the bands \[1, 2\] of a file, in order"),
        (IMAGE.transpose(1, 2, 0), r"image \(24, 40, 2\) uint16: accepted: .* with the bands \[1, 2\]"),
        (IMAGE[:, :0], r"image \(2, 0, 40\) uint16: accepted: .* with at least one pixel"),
        (IMAGE[None][:0], r"image \(0, 2, 24, 40\) uint16: accepted: .* with at least one pixel"),
        (IMAGE.astype(str), r"image \(2, 24, 40\) <U5: accepted: .* of integers or floats"),
        (IMAGE + 1j, r"image \(2, 24, 40\) complex128: accepted: .* of integers or floats"),
        ("tile.tif", r"image: str: accepted: a numpy array"),
        (IMAGE.tolist(), r"image: list: accepted: a numpy array"),
        (IMAGE > 0, r"image \(2, 24, 40\) bool: accepted: .* of integers or floats"),
    ],
)
def test_image_that_cannot_be_predicted_is_refused(image: Any, words: str, tmp_path: Path) -> None:
    trained = saved(tmp_path)
    for predict in (trained.probabilities, trained.classify):
        with pytest.raises(DataError, match=words):
            predict(image)


def test_threshold_acts_only_if_asked_for(tmp_path: Path) -> None:
    trained = saved(tmp_path)
    middle = float(np.median(trained.probabilities(IMAGE)))
    trained = saved(tmp_path, threshold={"value": middle, "val_iou": 0.8, "val_iou_at_0.5": 0.7})
    probs = trained.probabilities(IMAGE)[0]
    assert np.array_equal(trained.classify(IMAGE), probs > 0.5)
    assert np.array_equal(trained.classify(IMAGE, threshold="chosen"), probs > middle)
    assert np.array_equal(trained.classify(IMAGE, threshold=0.25), probs > 0.25)
    assert 0 < trained.classify(IMAGE, threshold="chosen").mean() < 1


@pytest.mark.parametrize(
    ("threshold", "words"),
    [
        ("chosen", "threshold = chosen: this file has none"),
        (1.5, 'threshold = 1.5: accepted: a number from 0 to 1, or "chosen"'),
        (float("nan"), "threshold = nan: accepted"),
        ("best", "threshold = best: accepted"),
    ],
)
def test_threshold_that_cannot_act_is_refused(threshold: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        saved(tmp_path).classify(IMAGE, threshold)


def test_several_classes_have_no_threshold(tmp_path: Path) -> None:
    trained = saved(tmp_path, classes=3)
    assert np.array_equal(trained.classify(IMAGE), trained.probabilities(IMAGE).argmax(axis=0))
    with pytest.raises(DataError, match=r"the most probable of 3 classes is taken; leave it out"):
        trained.classify(IMAGE, 0.5)
