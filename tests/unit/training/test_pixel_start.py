"""Before training, the part of a network that sees single pixels is fitted to some of the training tiles' pixels."""

from typing import Any

import numpy as np
import pytest
import torch

from robosat_pink.config import ChannelConfig, ClassConfig, Config, DatasetConfig, ModelConfig, RuntimeConfig
from robosat_pink.datasets.pixel_sample import MOST_PIXELS, PixelSample, Sampling
from robosat_pink.distributed.process_group import World
from robosat_pink.models import build_model
from robosat_pink.training.pixel_start import fit_single_pixels

THREE = ("rock", "snow", "water")


def fitted(pixels: PixelSample, classes: tuple[str, ...] = ("snow",), seed: int = 0, **options: Any) -> Any:
    config = Config(
        dataset=DatasetConfig(image_bucket="/", mask_bucket="/"),
        classes=tuple(ClassConfig(name=name) for name in classes),
        channels=(ChannelConfig(bands=(1, 2), mean=(5.0, 5.0), std=(2.0, 2.0), scale=1.0),),
        model=ModelConfig(name="unet", num_filters=2, **options),
        runtime=RuntimeConfig(seed=seed),
    )
    model: Any = build_model("unet", num_classes=len(classes), num_channels=2, num_filters=2)
    fit_single_pixels(model, pixels, config, World())
    return model.eval()


def pixels_of(classes: np.ndarray, random: np.random.Generator) -> PixelSample:
    """The difference of the two bands tells the class."""
    values = random.uniform(2, 6, (len(classes), 2))
    values[:, 1] = values[:, 0] + classes * 1.5 + random.uniform(-0.6, 0.6, len(classes))
    return PixelSample(values.astype(np.float32), classes.astype(np.uint8))


@pytest.mark.parametrize("classes", [("snow",), THREE])
def test_training_starts_from_a_map_by_each_pixels_own_bands(classes: tuple[str, ...]) -> None:
    random = np.random.default_rng(0)
    train, val = (pixels_of(random.integers(0, max(len(classes), 2), count), random) for count in (4000, 32 * 32))
    torch.manual_seed(0)
    model = fitted(train, classes, pixel_steps=400)
    image = torch.from_numpy((val.values - 5) / 2).T.reshape(1, 2, 32, 32)
    logits = model(image)
    assert torch.equal(logits, model.pixel(image)), "the U-Net's own logits start at 0"
    predicted = logits[0, 0] > 0 if len(classes) == 1 else logits[0].argmax(dim=0)
    assert (predicted.numpy().ravel() == val.classes).mean() > 0.97


def test_seed_and_pixels_alone_decide_the_weights() -> None:
    pixels = pixels_of(np.arange(200) % 2, np.random.default_rng(0))

    def weights(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(7)
        model = fitted(pixels, seed=seed, pixel_steps=5)
        following = torch.rand(1)
        return [*model.pixel.parameters(), following]

    threads = torch.get_num_threads()
    first, again, other = weights(0), weights(0), weights(1)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(first[-1], other[-1]), "the random numbers of the rest of the run"
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("steps", "count"), [(0, 200), (5, 0)])
def test_nothing_is_fitted_without_steps_or_pixels(steps: int, count: int) -> None:
    pixels = pixels_of(np.arange(count) % 2, np.random.default_rng(0))
    torch.manual_seed(0)
    model = fitted(pixels, pixel_steps=steps)
    torch.manual_seed(0)
    plain = build_model("unet", num_classes=1, num_channels=2, num_filters=2)
    assert all(map(torch.equal, model.state_dict().values(), plain.state_dict().values()))


def test_pixels_are_taken_evenly_and_fewer_of_many_bands() -> None:
    classes = np.arange(3 * MOST_PIXELS) * 3 // (3 * MOST_PIXELS)
    for bands, expected in ((2, MOST_PIXELS), (4096, 64)):
        sampling = Sampling(bands)
        values = np.broadcast_to(classes, (bands, len(classes)))
        sampling.add(values, classes.astype(np.uint8))
        sampling.add(values[:, :0], np.zeros(0, dtype=np.uint8))
        sampling.add(values[:, :1], np.ones(1, dtype=np.uint8))
        sample = sampling.finish()
        assert sample.values.shape == (expected + 1, bands)
        assert (sample.values[:-1, 0] == sample.classes[:-1]).all()
        assert np.bincount(sample.classes[:-1]) == pytest.approx(expected / 3, abs=1)
