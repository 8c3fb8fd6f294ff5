"""The files of a map: where they lie, what their numbers mean, and one file of a whole scene."""

from pathlib import Path

import mercantile
import numpy as np
import pytest
import rasterio
from rasterio.io import MemoryFile

from robosat_pink.prediction import rasters
from robosat_pink.prediction.mosaic import MosaicTile, write_mosaic
from robosat_pink.prediction.rasters import NO_DATA, Legend
from robosat_pink.prediction.scenes import Totals, pixel_area_km2

LEGEND = Legend(["background", "snow"], ["#2b3038", "white"])


@pytest.mark.parametrize("zxy", [(0, 0, 0), (15, 5524, 12666), (30, 2**30 - 1, 7)])
def test_tiles_lie_where_slippy_maps_have_them(zxy: tuple[int, int, int]) -> None:
    z, x, y = zxy
    content = rasters.class_tile(np.zeros((16, 32), dtype=np.uint8), zxy, LEGEND, "")
    with MemoryFile(content) as memory, memory.open() as dataset:
        assert dataset.crs == rasterio.CRS.from_epsg(3857)
        assert tuple(dataset.bounds) == pytest.approx(tuple(mercantile.xy_bounds(x, y, z)), rel=1e-12, abs=1e-6)


def test_class_tile_says_what_its_numbers_mean() -> None:
    classes = np.array([[0, 1], [1, NO_DATA]], dtype=np.uint8)
    content = rasters.class_tile(classes, (3, 1, 2), LEGEND, "of this")
    assert (rasters.read_tile(content)[0] == classes).all()
    with MemoryFile(content) as memory, memory.open() as dataset:
        assert dataset.nodata == NO_DATA
        assert dataset.colormap(1)[1] == (255, 255, 255, 255)
        assert dataset.colormap(1)[0] == (0x2B, 0x30, 0x38, 255)
        assert {name: text for name, text in dataset.tags().items() if name.startswith("CLASS")} == {
            "CLASS_0": "background",
            "CLASS_1": "snow",
        }
    assert rasters.made_from(content) == "of this"


def test_probabilities_are_in_steps_of_half_a_percent() -> None:
    probabilities = np.array([[[0.0, 0.0024, 0.0026], [0.5, 1.0, 0.7]]], dtype=np.float32)
    missing = np.zeros((2, 3), dtype=bool)
    missing[1, 2] = True
    content = rasters.probability_tile(probabilities, missing, (3, 1, 2), ["snow"], "of this")
    assert rasters.read_tile(content)[0].tolist() == [[0, 0, 1], [100, 200, NO_DATA]]
    with MemoryFile(content) as memory, memory.open() as dataset:
        assert dataset.descriptions == ("snow",)
        assert dataset.nodata == NO_DATA


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"", bytes.upper])
def test_damaged_tile_is_made_from_nothing(damage: object) -> None:
    random = np.random.default_rng(0).integers(0, 2, (64, 64)).astype(np.uint8)
    content = rasters.class_tile(random, (3, 1, 2), LEGEND, "of this")
    assert rasters.made_from(damage(content)) is None  # type: ignore[operator]


def scene(holes: bool = True, side: int = 256) -> tuple[np.ndarray, list[MosaicTile]]:
    random = np.random.default_rng(0)
    zxy = np.array([(12, 700 + i, 1500 + j) for j in range(4) for i in range(5) if not holes or (i + j) % 4])
    blocks = random.integers(0, 2, (len(zxy), 1, side // 8, side // 8)).astype(np.uint8)
    return zxy, [
        MosaicTile(tuple(at), block.repeat(8, 1).repeat(8, 2)) for at, block in zip(zxy.tolist(), blocks, strict=True)
    ]


def test_mosaic_is_a_cloud_optimised_geotiff_of_the_tiles(tmp_path: Path) -> None:
    zxy, tiles = scene()
    path = tmp_path / "scene.tif"
    write_mosaic(path, zxy, iter(tiles), LEGEND.tags, LEGEND)
    assert list(tmp_path.iterdir()) == [path]
    with rasterio.open(path) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.overviews(1) == [2, 4]
        assert dataset.shape == (4 * 256, 5 * 256)
        west, _, _, north = mercantile.xy_bounds(700, 1500, 12)
        _, south, east, _ = mercantile.xy_bounds(704, 1503, 12)
        assert tuple(dataset.bounds) == pytest.approx((west, south, east, north), rel=1e-12)
        pixels = dataset.read(1)
        half = dataset.read(1, out_shape=(512, 640))
    expected = np.full((4 * 256, 5 * 256), NO_DATA, dtype=np.uint8)
    for (_, x, y), tile in tiles:
        expected[(y - 1500) * 256 :, (x - 700) * 256 :][:256, :256] = tile[0]
    assert (pixels == expected).all()
    assert (half == expected[::2, ::2]).all(), "overviews by mode: blocks of 8 equal pixels keep their class"


def test_areas_are_those_on_the_ground() -> None:
    """A tile at 60 degrees north covers a quarter of what one at the equator does; all of zoom 0, Mercator's world."""
    assert pixel_area_km2((8, 0, 128), 1, 1)[0] == pytest.approx((40075.016686 / 256) ** 2, rel=1e-3)
    y = int(mercantile.tile(0, 60, 12).y)
    assert pixel_area_km2((12, 0, y), 1, 1)[0] == pytest.approx((40075.016686 / 4096) ** 2 / 4, rel=2e-3)
    sphere_km2 = 4 * np.pi * 6378.137**2 * np.tanh(np.pi)  # of the latitudes that Mercator's square shows
    assert pixel_area_km2((0, 0, 0), 4096, 1).sum() == pytest.approx(sphere_km2, rel=1e-5)


def test_totals_count_every_pixel_once_and_draw_each_tile_in_its_place() -> None:
    zxy, tiles = scene()
    totals = Totals(zxy, LEGEND)
    for tile in tiles:
        classes = tile.pixels[0].copy()
        classes[:8] = NO_DATA
        totals.add(tile.zxy, classes)
    whole = sum(pixel_area_km2(tile.zxy, 256, 256).sum() * 256 for tile in tiles)
    assert totals.km2.sum() + totals.missing_km2 == pytest.approx(whole)
    assert totals.missing_km2 == pytest.approx(whole * 8 / 256, rel=1e-2)
    assert totals.picture().startswith(b"\x89PNG")
