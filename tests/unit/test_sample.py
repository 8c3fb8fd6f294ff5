"""The demo's scene: hard to fake, possible to learn, and the same wherever and whenever it is written."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

from robosat_pink import sample

TILES, SIZE = 8, 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ml")
    sample.write_folder(path)
    return path


def mosaic(data: Path, kind: str) -> np.ndarray:
    """The block as (C, H, W), put together from each file's name, x to the east and y to the south."""
    tiles = {}
    for path in (data / kind).glob("*/*/*/*.tif"):
        with rasterio.open(path) as file:
            tiles[int(path.stem), int(path.parent.name)] = file.read()
    rows, columns = (sorted(set(values)) for values in zip(*tiles, strict=True))
    return np.concatenate([np.concatenate([tiles[y, x] for x in columns], axis=-1) for y in rows], axis=-2)


@pytest.fixture(scope="module")
def image(folder: Path) -> np.ndarray:
    return mosaic(folder / "input/data", "imagery")


@pytest.fixture(scope="module")
def mask(folder: Path) -> np.ndarray:
    return mosaic(folder / "input/data", "mask")[0]


def best_threshold_iou(values: np.ndarray, snow: np.ndarray) -> float:
    """The highest IoU of `values >= t` or `values <= t` with snow, over every t; values and snow are flat."""
    best = 0.0
    for key in (values.astype(np.float64), -values.astype(np.float64)):
        order = np.argsort(key, kind="stable")
        hits = np.cumsum(snow[order])  # of the 1, 2, ... lowest keys
        called = np.arange(1, len(key) + 1)
        possible = np.append(np.diff(key[order]) > 0, True)  # a threshold cannot part equal values
        best = max(best, (hits / (called + snow.sum() - hits))[possible].max())
    return best


def test_best_threshold_iou_by_hand() -> None:
    assert best_threshold_iou(np.array([1, 2, 3, 4]), np.array([0, 0, 1, 1])) == 1.0
    assert best_threshold_iou(np.array([1, 2, 3, 4]), np.array([1, 0, 0, 0])) == 1.0
    assert best_threshold_iou(np.array([5, 5, 5, 9]), np.array([1, 0, 0, 0])) == pytest.approx(1 / 3)


def test_all_snow_scores_at_most_half(image: np.ndarray, mask: np.ndarray) -> None:
    valid = (image != 0).all(axis=0)
    assert 0.35 <= mask[valid].mean() <= 0.42


def test_no_threshold_on_one_band_finds_the_snow(image: np.ndarray, mask: np.ndarray) -> None:
    valid = (image != 0).all(axis=0)
    for band, name in zip(image, sample.BANDS, strict=True):
        assert best_threshold_iou(band[valid], mask[valid]) <= 0.65, name


def test_near_infrared_over_green_finds_the_snow_in_sun_and_in_shade(image: np.ndarray, mask: np.ndarray) -> None:
    valid = (image != 0).all(axis=0)
    ratio = image[3] / np.maximum(image[1], 1)
    green_of_snow = image[1][valid & (mask == 1)]
    dim, bright = np.quantile(green_of_snow, [0.05, 0.95])
    assert bright / dim > 3  # the light on the snow itself varies
    middle = np.median(green_of_snow)
    for light in (image[1] < middle, image[1] >= middle):
        assert best_threshold_iou(ratio[valid & light], mask[valid & light]) >= 0.9


def test_snow_outlines_survive_quarter_resolution(mask: np.ndarray) -> None:
    side = len(mask) // 4
    votes = mask.reshape(side, 4, side, 4).mean(axis=(1, 3)) >= 0.5
    coarse = votes.repeat(4, axis=0).repeat(4, axis=1)
    assert (coarse & (mask == 1)).sum() / (coarse | (mask == 1)).sum() >= 0.93


def test_image_and_mask_hold_what_they_promise(folder: Path, image: np.ndarray, mask: np.ndarray) -> None:
    assert image.shape == (4, TILES * SIZE, TILES * SIZE)
    assert image.dtype == np.uint16
    assert image.max() <= 10000
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    relative = "20180528_sierra/15/5526/12669.tif"
    with rasterio.open(folder / "input/data/imagery" / relative) as file:
        assert file.descriptions == ("blue", "green", "red", "near infrared")
        assert file.nodata == 0
        assert file.compression.name == "deflate"
    with rasterio.open(folder / "input/data/mask" / relative) as file:
        assert file.nodata is None
        assert file.compression.name == "deflate"


@pytest.mark.parametrize("kind", ["imagery", "mask"])
def test_file_lies_where_its_name_says(folder: Path, kind: str) -> None:
    # A tile of zoom 15 is 40075016.685578488 m / 32768 = 1222.992452562820 m wide.
    # west  = 5526 * 1222.992452562820 - 20037508.342789244;  north = 20037508.342789244 - 12669 * 1222.992452562820
    expected = (-13279252.049927, 4542193.968818, -13278029.057475, 4543416.961271)
    with rasterio.open(folder / f"input/data/{kind}/20180528_sierra/15/5526/12669.tif") as file:
        assert file.crs.to_epsg() == 3857
        assert tuple(file.bounds) == pytest.approx(expected, abs=1e-4)
        assert file.res == pytest.approx((9.554628535647, 9.554628535647), abs=1e-9)


@pytest.mark.parametrize("axis", [-1, -2])
def test_neighbours_join_up(image: np.ndarray, axis: int) -> None:
    valid = (image != 0).all(axis=0)
    step = np.abs(np.diff(image.astype(np.int32), axis=axis)).mean(axis=0)
    both = np.minimum(valid, np.roll(valid, -1, axis)).take(range(TILES * SIZE - 1), axis)
    at_seam = np.zeros_like(both)
    np.moveaxis(at_seam, axis, 0)[SIZE - 1 :: SIZE] = True
    assert at_seam.sum() == (TILES - 1) * TILES * SIZE
    assert step[both & at_seam].mean() == pytest.approx(step[both & ~at_seam].mean(), rel=0.1)


def test_north_west_corner_has_no_data(image: np.ndarray, mask: np.ndarray) -> None:
    valid = (image != 0).all(axis=0)
    np.testing.assert_array_equal(valid, (image != 0).any(axis=0))  # a pixel has all bands or none
    assert not mask[~valid].any()
    share = valid.reshape(TILES, SIZE, TILES, SIZE).mean(axis=(1, 3))
    assert np.argwhere(share == 0).tolist() == [[0, 0]]
    assert np.argwhere((share > 0) & (share < 1)).tolist() == [[0, 1], [1, 0], [1, 1], [2, 0]]


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    def digests(folder: Path, **arguments: int) -> dict[str, str]:
        assert len(sample.write_tiles(folder, tiles=3, size=64, **arguments)) == 9
        paths = sorted(folder.rglob("*.tif"))
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    first, again, other = digests(tmp_path / "a"), digests(tmp_path / "b"), digests(tmp_path / "c", seed=1)
    assert len(first) == 18
    assert first == again
    assert first.keys() == other.keys()
    assert first != other


@pytest.mark.parametrize(("tiles", "size"), [(2, 64), (2, 128), (4, 128)])
@pytest.mark.parametrize("seed", [0, 1])
def test_small_blocks_keep_the_balance_and_the_difficulty(tmp_path: Path, tiles: int, size: int, seed: int) -> None:
    sample.write_tiles(tmp_path, tiles, size, seed)
    image, snow = mosaic(tmp_path, "imagery"), mosaic(tmp_path, "mask")[0]
    valid = (image != 0).all(axis=0)
    assert 0.35 <= snow[valid].mean() <= 0.42
    assert max(best_threshold_iou(band[valid], snow[valid]) for band in image) <= 0.75


def test_folder_is_shaped_like_opt_ml(tmp_path: Path) -> None:
    experiment = tmp_path / "snow.yml"
    experiment.write_text("model: {}\n")
    assert sample.main([str(tmp_path / "ml"), "--experiment", str(experiment)]) == 0
    files = {str(path.relative_to(tmp_path / "ml")) for path in (tmp_path / "ml").rglob("*") if path.is_file()}
    assert len([name for name in files if name.endswith(".tif")]) == 2 * TILES * TILES
    assert {name for name in files if not name.endswith(".tif")} == {
        "input/config/hyperparameters.json", "input/config/inputdataconfig.json", "input/data/config/snow.yml",
    }  # fmt: skip
    assert json.loads((tmp_path / "ml/input/config/hyperparameters.json").read_text()) == {}
    channels = json.loads((tmp_path / "ml/input/config/inputdataconfig.json").read_text())
    assert {name: channel["TrainingInputMode"] for name, channel in channels.items()} == dict.fromkeys(
        ("config", "imagery", "mask"), "File"
    )
    for name in ("model", "output/data", "checkpoints"):
        assert list((tmp_path / "ml" / name).iterdir()) == []


def test_folder_of_an_earlier_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/best.pth").touch()
    with pytest.raises(FileExistsError, match=r"model.*another folder"):
        sample.write_folder(tmp_path)


def test_too_small_a_block_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tiles = 1, size = 128"):
        sample.write_tiles(tmp_path, tiles=1)
