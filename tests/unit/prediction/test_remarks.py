"""What is said of the tiles that a model is applied to."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robosat_pink.config import ChannelConfig
from robosat_pink.errors import DataError
from robosat_pink.prediction.remarks import about_images, about_training_tiles

LEARNT = ChannelConfig(bands=(1, 2), mean=(0.5, 0.4), std=(0.2, 0.1), scale=10000)


def model(channel: ChannelConfig = LEARNT) -> Any:
    return SimpleNamespace(config=SimpleNamespace(channels=(channel,)))


class Tiles:
    """Tiles whose bands have the given means and stds, in digital numbers."""

    def __init__(self, mean: tuple[float, float], std: tuple[float, float], missing: bool = False) -> None:
        self.mean, self.std, self.missing, self.read = mean, std, missing, 0

    def __getitems__(self, rows: list[int]) -> list[Any]:
        self.read += len(rows)
        generator = np.random.default_rng(0)
        shape = (2, 32, 32)
        image = np.array(self.mean)[:, None, None] + np.array(self.std)[:, None, None] * generator.normal(size=shape)
        mask = np.full(shape[1:], 255 if self.missing else 0, np.uint8)
        scale = np.full(2, 10000, np.float32)
        return [SimpleNamespace(image=image, mask=mask, scale=scale) for _ in rows]


def remarks(tiles: Any, channel: ChannelConfig = LEARNT) -> list[str]:
    return list(about_images(model(channel), tiles, np.arange(100)))


def test_another_scene_of_the_same_sensor_is_no_cause_for_a_warning() -> None:
    tiles = Tiles((2000, 3000), (500, 500))
    assert remarks(tiles) == []
    assert tiles.read == 8  # of 100


@pytest.mark.parametrize(
    ("mean", "std"),
    [((60, 50), (20, 10)), ((5000, 4000), (2000, 10)), ((5000, 9000), (2000, 1000))],
    ids=["8-bit numbers", "a flat band", "a brighter band"],
)
def test_images_of_another_type_are_warned_of(mean: tuple[float, float], std: tuple[float, float]) -> None:
    (warning,) = remarks(Tiles(mean, std))
    assert warning.startswith("warning: the images are unlike those that the model has learnt from: band ")
    assert "in 8 tiles, where it was normalised by 0." in warning


def test_nothing_is_said_without_statistics_or_without_data() -> None:
    raw = ChannelConfig(bands=(1, 2), scale="raw")
    assert remarks(Tiles((60, 50), (20, 10)), raw) == []
    assert remarks(Tiles((60, 50), (20, 10), missing=True)) == []


def test_bands_that_were_flat_or_had_no_statistics_are_left_out() -> None:
    flat = ChannelConfig(bands=(1, 2), mean=(0.2, 1.0), std=(0.05, 1.0), scale=10000)
    assert remarks(Tiles((2000, 10000), (500, 0)), flat) == []
    no_statistics = ChannelConfig(bands=(1, 2), mean=(0.2, 0.0), std=(0.05, 1.0), scale=10000)
    assert remarks(Tiles((2000, 20_000_000), (500, 5000)), no_statistics) == []


def test_a_tile_that_cannot_be_read_is_left_to_the_run() -> None:
    class Damaged(Tiles):
        def __getitems__(self, rows: list[int]) -> list[Any]:
            raise DataError("damaged")

    assert remarks(Damaged((60, 50), (20, 10))) == []


def test_training_tiles_are_counted_by_the_id_file_beside_the_model() -> None:
    files: Any = SimpleNamespace(read=lambda name: b"a-1-2-3\na-1-3-3\n")
    (remark,) = about_training_tiles(files, ["a-1-2-3", "a-9-9-3"])
    assert remark.startswith("the model has learnt from 1 of these 2 tiles (train_ids.txt beside it names them)")
    assert list(about_training_tiles(files, ["a-9-9-3"])) == []
