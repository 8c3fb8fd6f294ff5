"""A saved network applied to an image: symmetries and thresholds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robosat_pink import checkpoint
from robosat_pink.config import ChannelConfig, ClassConfig, Config, DatasetConfig, ModelConfig, to_tree
from robosat_pink.errors import DataError
from robosat_pink.models import build_model
from robosat_pink.trained import TrainedModel, load_model

IMAGE = np.random.default_rng(0).integers(0, 10_000, (2, 24, 40)).astype(np.uint16)


def saved(folder: Path, classes: int = 1, symmetries: bool = False, **content: Any) -> TrainedModel:
    """A small network of random weights, saved and loaded."""
    config = Config(
        dataset=DatasetConfig(image_bucket="imagery", mask_bucket="mask"),
        classes=tuple(ClassConfig(name=f"class {number}") for number in range(classes)),
        channels=(ChannelConfig(bands=(1, 2), scale=10_000.0),),
        model=ModelConfig(name="unet", num_filters=2, symmetries=symmetries),
    )
    torch.manual_seed(1)
    network = build_model("unet", num_classes=classes, num_channels=2, encoder="none", num_filters=2)
    metadata = {"config": to_tree(config)}
    content = {"epoch": 1, "state_dict": network.state_dict(), "metadata": metadata} | content
    checkpoint.save(folder / "best.pth", content)
    return load_model(folder / "best.pth")


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
