"""A mean and std of "auto" are measured in the training tiles, over valid pixels, after scaling."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robosat_pink.config import ChannelConfig, Config, DatasetConfig, ModelConfig
from robosat_pink.datasets import coverage
from robosat_pink.datasets.normalisation import normalisation
from robosat_pink.errors import DataError
from robosat_pink.training.channel_scales import resolve_scales
from robosat_pink.training.initial_checkpoint import InitialCheckpoint
from scenes import SNOW, pairs_in, write_pair

AUTO = ChannelConfig(bands=(1, 2), mean="auto", std="auto", scale="auto")


def measured(folder: Path, *channels: ChannelConfig, rows: tuple[int, ...] = (0, 1)) -> tuple[ChannelConfig, ...]:
    config = Config(
        dataset=DatasetConfig(image_bucket="/", mask_bucket="/"),
        classes=SNOW,
        channels=channels,
        model=ModelConfig(name="unet"),
    )
    return coverage.look(config, pairs_in(folder, SNOW, channels), np.array(rows)).channels


def write(folder: Path, x: int, image: np.ndarray, **options: Any) -> None:
    write_pair(folder, x, image=image, mask=(image[0] % 2).astype(np.uint8), **options)


def test_statistics_are_those_of_the_given_tiles_valid_pixels(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = [random.integers(1, 9000, (2, 8, 8)).astype(np.uint16) for _ in range(3)]
    images[1][:, :3] = 7  # no data there
    for x, image in enumerate(images):
        write(tmp_path, x, image, image_nodata=7)
    (channel,) = measured(tmp_path, AUTO)
    values = np.concatenate([image[:, (image != 7).all(axis=0)] for image in images[:2]], axis=1) / 10000
    assert channel.mean == pytest.approx(values.mean(axis=1), rel=1e-5)
    assert channel.std == pytest.approx(values.std(axis=1), rel=1e-5)
    assert normalisation([channel]) == (channel.mean, channel.std)


def test_only_what_is_auto_is_replaced_each_channel_by_its_own_bands(tmp_path: Path) -> None:
    image = np.stack([np.arange(1, 65).reshape(8, 8), np.full((8, 8), 5)]).astype(np.uint8)
    write(tmp_path, 0, image)
    given = ChannelConfig(bands=(1,), mean=(0.25,), std="auto", scale=1)
    flat = ChannelConfig(bands=(2,), mean="auto", std="auto", scale=1)
    first, second = measured(tmp_path, given, flat, rows=(0,))
    assert (first.mean, first.std) == ((0.25,), (pytest.approx(np.arange(1, 65).std(), rel=1e-5),))
    assert (second.mean, second.std) == ((5.0,), (1.0,))  # nothing to divide by


def test_raw_numbers_are_not_normalised(tmp_path: Path) -> None:
    write(tmp_path, 0, np.ones((2, 8, 8), dtype=np.uint8))
    (channel,) = measured(tmp_path, dataclasses.replace(AUTO, scale="raw"), rows=(0,))
    assert (channel.mean, channel.std) == (None, None)


def test_tiles_without_a_valid_pixel_have_no_statistics(tmp_path: Path) -> None:
    write(tmp_path, 0, np.full((2, 8, 8), 7, dtype=np.uint8), image_nodata=7)
    with pytest.raises(DataError, match="no pixel of the 1 training tiles read has both image and mask data"):
        measured(tmp_path, AUTO, rows=(0,))


def test_weights_to_start_from_bring_their_own_statistics() -> None:
    config = Config(
        dataset=DatasetConfig(image_bucket="/", mask_bucket="/"),
        classes=SNOW,
        channels=(AUTO,),
        model=ModelConfig(name="unet"),
    )
    learnt = {"bands": [1, 2], "mean": [0.5, 0.25], "std": [2, 3], "scale": 255}
    start = InitialCheckpoint("a.pth", {"metadata": {"scale": [255], "config": {"channels": [learnt]}}}, False)
    (channel,) = resolve_scales(config, start).channels
    assert (channel.mean, channel.std) == ((0.5, 0.25), (2.0, 3.0))
    one_band = InitialCheckpoint(
        "a.pth", {"metadata": {"config": {"channels": [{"bands": [1], "mean": [0.5]}]}}}, False
    )
    assert resolve_scales(config, one_band).channels[0].mean == "auto"
