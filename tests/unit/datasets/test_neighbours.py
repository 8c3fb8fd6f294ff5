"""Tiles with a border of their neighbours: every pixel beside a plain mosaic, one GET a tile, few tiles in memory."""

import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.s3_server import S3Server
from conftest import write_tile
from robosat_pink.config import CacheConfig
from robosat_pink.datasets import neighbours, reader, reading_order
from robosat_pink.datasets.bordered import Canvas, canvas_of
from robosat_pink.datasets.images import ImageTiles
from robosat_pink.datasets.neighbours import BorderedBatch, HeldTile, read_with_neighbours
from robosat_pink.datasets.rasters.gdal import Damaged
from robosat_pink.datasets.reading_order import batches_in_order, share
from robosat_pink.datasets.tile_file import Changed
from robosat_pink.errors import DataError
from robosat_pink.storage import Location, location
from scenes import images_in

Scene = dict[tuple[int, int], np.ndarray]  # image (C, H, W) by x and y
NO_CACHE = CacheConfig(max_gb=0)


def scene_of(places: list[tuple[int, int]], height: int = 8, width: int = 8, seed: int = 0) -> Scene:
    """Tiles in which no two pixels are alike, as good as surely."""
    random = np.random.default_rng(seed)
    return {place: random.integers(1, 60000, (2, height, width), dtype=np.uint16) for place in places}


def grid(width: int, height: int, left: int = 10, top: int = 20) -> list[tuple[int, int]]:
    return [(left + x, top + y) for x in range(width) for y in range(height)]


def write(folder: Path, scene: Scene, directory: str = "scene", zoom: int = 6) -> None:
    for (x, y), image in scene.items():
        write_tile(folder / f"{directory}/{zoom}/{x}/{y}.tif", image)


def batches_of(tiles: ImageTiles, batch_size: int = 3) -> list[list[int]]:
    return batches_in_order(tiles.files, np.arange(len(tiles)), batch_size, bands=2)


def read(tiles: ImageTiles, batch_size: int = 3, buffer: int = 3, **options: Any) -> list[BorderedBatch]:
    given = {"buffer": buffer, "size_multiple": 1} | options
    return list(read_with_neighbours(tiles, batches_of(tiles, batch_size), **given))


def bordered(batches: list[BorderedBatch]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Image and missing pixels of each row, with the border but without padding."""
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for batch in batches:
        for slot, row in enumerate(batch.rows):
            assert row not in found
            height, width = (side + 2 * batch.border for side in batch.sizes[slot])
            found[row] = batch.image[slot, :, :height, :width], batch.missing[slot, :height, :width]
    return found


def pixel(scene: Mapping[tuple[int, int], np.ndarray], x: int, y: int, row: int, column: int, world: int) -> np.ndarray:
    """One pixel (C,) at a place relative to the tile x, y, or what is mirrored there. The slow and plain way."""
    height, width = scene[x, y].shape[1:]
    down, right = row // height, column // width
    there, above, beside = ((x + right) % world, y + down), (x, y + down), ((x + right) % world, y)
    if there in scene:
        return scene[there][:, row - down * height, column - right * width]
    if beside in scene:
        return pixel(scene, x, y, mirrored(row, height), column, world)
    if above in scene:
        return pixel(scene, x, y, row, mirrored(column, width), world)
    return pixel(scene, x, y, mirrored(row, height), mirrored(column, width), world)


def mirrored(place: int, side: int) -> int:
    return place if 0 <= place < side else -place if place < 0 else 2 * (side - 1) - place


def reference(scene: Scene, x: int, y: int, border: int, zoom: int = 6) -> np.ndarray:
    """The tile with its border, (C, H + 2 b, W + 2 b)."""
    height, width = scene[x, y].shape[1:]
    rows, columns = range(-border, height + border), range(-border, width + border)
    lines = [[pixel(scene, x, y, row, column, 2**zoom) for column in columns] for row in rows]
    return np.array(lines).transpose(2, 0, 1)


def assert_right(tiles: ImageTiles, batches: list[BorderedBatch], scenes: dict[str, Scene], zoom: int = 6) -> None:
    """Every tile comes once, and each of its pixels is the reference's; 0 in both bands means missing."""
    found = bordered(batches)
    assert sorted(found) == list(range(len(tiles)))
    border = batches[0].border
    for row, (image, missing) in found.items():
        x, y, _ = tiles.files.tile(row)
        scene = scenes[tiles.files.directories[tiles.files.directory[row]]]
        expected = reference(scene, x, y, border, zoom)
        assert image.dtype == np.uint16
        assert np.array_equal(image, expected)
        assert np.array_equal(missing, (expected == 0).all(axis=0))


@pytest.mark.parametrize("border", [0, 1, 3, 7])
def test_full_grid_is_the_whole_mosaic_padded_by_reflection_and_cut(tmp_path: Path, border: int) -> None:
    scene = scene_of(grid(4, 3))
    write(tmp_path, scene)
    mosaic = np.block([[scene[10 + x, 20 + y] for x in range(4)] for y in range(3)])
    padded = np.pad(mosaic, ((0, 0), (border, border), (border, border)), mode="reflect")
    tiles = images_in(tmp_path)
    found = bordered(read(tiles, buffer=border))
    assert len(found) == 12
    for row, (image, missing) in found.items():
        x, y = 8 * (tiles.files.tile(row).x - 10), 8 * (tiles.files.tile(row).y - 20)
        assert np.array_equal(image, padded[:, y : y + 8 + 2 * border, x : x + 8 + 2 * border])
        assert not missing.any()


HOLES = [place for place in grid(4, 4) if place not in ((11, 21), (12, 21), (13, 23))]
LAYOUTS = {
    "full": grid(3, 4),
    "one tile": grid(1, 1),
    "column": grid(1, 3),
    "holes": HOLES,
    "L": [*grid(1, 4), *grid(3, 1, left=11, top=23)],
    "diagonal": [(10, 20), (11, 21), (12, 20)],
    "far apart": [(10, 20), (40, 50)],
}


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_pixel_is_that_of_a_plain_mosaic(tmp_path: Path, layout: str, size: tuple[int, int]) -> None:
    scene = scene_of(LAYOUTS[layout], *size)
    write(tmp_path, scene)
    tiles = images_in(tmp_path)
    batches = read(tiles, buffer=4)
    assert {batch.border for batch in batches} == {4}
    assert_right(tiles, batches, {"scene": scene})


def test_missing_pixels_of_a_neighbour_stay_missing_and_are_mirrored_as_such(tmp_path: Path) -> None:
    scene = scene_of(HOLES)
    for place, image in scene.items():
        image[:, place[0] % 3 :: 3, 1::4] = 0
    scene[10, 20][:] = 0
    write(tmp_path, scene)
    tiles = images_in(tmp_path)
    assert_right(tiles, read(tiles), {"scene": scene})


def test_neighbours_are_of_the_same_scene(tmp_path: Path) -> None:
    scenes = {f"scene {seed}": scene_of(grid(2, 2, left=10 + seed), seed=seed) for seed in range(3)}
    for directory, scene in scenes.items():
        write(tmp_path, scene, directory)
    tiles = images_in(tmp_path)
    batches = read(tiles, batch_size=3)
    assert [len(batch.rows) for batch in batches] == [3, 1] * 3
    assert_right(tiles, batches, scenes)


@pytest.mark.parametrize("zoom", [0, 1, 2])
def test_border_goes_on_across_the_antimeridian(tmp_path: Path, zoom: int) -> None:
    last = 2**zoom - 1
    scene = scene_of(sorted({(0, 0), (last, 0), (0, last)}))
    write(tmp_path, scene, zoom=zoom)
    tiles = images_in(tmp_path)
    assert_right(tiles, read(tiles), {"scene": scene}, zoom)


@pytest.mark.parametrize(
    ("sizes", "buffer", "multiple", "expected"),
    [
        ([(512, 512)], 64, 64, Canvas(64, 640, 640)),
        ([(8, 8)], 2, 8, Canvas(4, 16, 16)),
        ([(8, 8)], 8, 8, Canvas(8, 24, 24)),
        ([(7, 5)], 1, 1, Canvas(1, 9, 7)),
        ([(7, 8)], 2, 4, Canvas(2, 12, 12)),  # no border makes 7 and a multiple of 4 meet
        ([(8, 8)], 5, 32, Canvas(5, 32, 32)),  # it would take a border of 12, wider than the tile
        ([(500, 500)], 0, 64, Canvas(0, 512, 512)),
        ([(8, 8), (12, 10)], 2, 4, Canvas(2, 16, 16)),
    ],
)
def test_border_is_widened_to_make_sides_multiples_where_it_can_be(
    sizes: list[tuple[int, int]], buffer: int, multiple: int, expected: Canvas
) -> None:
    assert canvas_of(sizes, buffer, multiple) == expected


@pytest.mark.parametrize(("size", "border", "side"), [((8, 8), 4, 16), ((7, 5), 3, 16)])
def test_sides_are_multiples_and_padding_is_missing(
    tmp_path: Path, size: tuple[int, int], border: int, side: int
) -> None:
    scene = scene_of(grid(3, 2), *size)
    write(tmp_path, scene)
    tiles = images_in(tmp_path)
    batches = read(tiles, buffer=3, size_multiple=8)
    assert_right(tiles, batches, {"scene": scene})
    for batch in batches:
        assert batch.border == border
        assert batch.image.shape == (len(batch.rows), 2, side, side)
        assert batch.missing.shape == (len(batch.rows), side, side)
        height, width = (length + 2 * border for length in size)
        for pixels, is_missing in ((batch.image, 0), (batch.missing, 1)):
            assert (pixels[..., height:, :] == is_missing).all()
            assert (pixels[..., :, width:] == is_missing).all()


def test_without_a_buffer_no_neighbour_is_read_and_tiles_are_padded_as_in_evaluation(tmp_path: Path) -> None:
    scene = scene_of(grid(2, 1), 6, 6)
    write(tmp_path, scene)
    tiles = images_in(tmp_path)
    (tmp_path / "scene/6/11/20.tif").unlink()  # an error if it is read
    (batch,) = read_with_neighbours(tiles, [[0]], buffer=0, size_multiple=8)
    expected = np.pad(scene[10, 20], ((0, 0), (0, 2), (0, 2)))
    assert batch.border == 0
    assert np.array_equal(batch.image[0], expected)
    assert np.array_equal(batch.missing[0], expected[0] == 0)


def test_border_as_wide_as_the_tile_repeats_its_edge_where_nothing_is_left_to_mirror(tmp_path: Path) -> None:
    scene = scene_of(grid(2, 1), 2, 2)
    write(tmp_path, scene)
    first, second = bordered(read(images_in(tmp_path), buffer=2)).values()
    both = np.concatenate([scene[10, 20], scene[11, 20]], axis=2)
    assert np.array_equal(first[0], np.pad(both, ((0, 0), (2, 2), (2, 0)), mode="edge"))
    assert np.array_equal(second[0], np.pad(both, ((0, 0), (2, 2), (0, 2)), mode="edge"))


def test_buffer_wider_than_a_tile_is_an_error_that_says_how_wide_it_may_be(tmp_path: Path) -> None:
    write(tmp_path, scene_of(grid(1, 1), 7, 5))
    message = r"predict.buffer = 6: .*scene/6/10/20.tif has 5 x 7 pixels; accepted: up to 5, as far as the next tile"
    with pytest.raises(DataError, match=message):
        read(images_in(tmp_path), buffer=6)


def test_neighbour_of_another_size_is_an_error_that_names_both(tmp_path: Path) -> None:
    write(tmp_path, scene_of([(10, 20)]) | scene_of([(11, 21)], 8, 16))
    message = r"scene/6/10/20.tif: 8 x 8 pixels, but its neighbour .*scene/6/11/21.tif has 16 x 8; write the tiles"
    with pytest.raises(DataError, match=message):
        read(images_in(tmp_path))


def test_batch_of_several_sizes_is_padded_to_the_largest(tmp_path: Path) -> None:
    scene = scene_of([(10, 20)]) | scene_of([(30, 20)], 6, 12)
    write(tmp_path, scene)
    tiles = images_in(tmp_path)
    (batch,) = read(tiles)
    assert batch.image.shape == (2, 2, 14, 18)
    assert batch.sizes == ((8, 8), (6, 12))
    assert_right(tiles, [batch], {"scene": scene})
    assert batch.missing[0, :, 14:].all()


def test_neighbour_of_another_dtype_is_scaled_to_the_numbers_of_the_tile(tmp_path: Path) -> None:
    scene = {(10, 20): np.full((2, 4, 4), 5000, np.uint16), (11, 20): np.full((2, 4, 4), 51, np.uint8)}
    write(tmp_path, scene)
    (batch,) = read(images_in(tmp_path), buffer=2)
    assert batch.image.dtype == np.float32
    assert batch.scale.tolist() == [[10000, 10000], [255, 255]]
    assert np.allclose(batch.image[0, :, :, :6], 5000)
    assert np.allclose(batch.image[0, :, :, 6:], 2000)  # 51 / 255 = 0.2
    assert np.allclose(batch.image[1, :, :, :2], 127.5)  # 5000 / 10000 = 0.5
    assert np.allclose(batch.image[1, :, :, 2:], 51)


@pytest.mark.parametrize("threads", [1, 4])
def test_batches_are_the_same_with_any_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    scene = scene_of(HOLES)
    write(tmp_path, scene)
    usual = read(images_in(tmp_path))
    monkeypatch.setattr(reader, "REQUESTS", threads)
    monkeypatch.setattr(reader, "DECODERS", threads)
    for expected, batch in zip(usual, read(images_in(tmp_path)), strict=True):
        assert batch.rows == expected.rows
        assert np.array_equal(batch.image, expected.image)
        assert np.array_equal(batch.missing, expected.missing)


def test_shares_of_ranks_are_the_batches_of_one(tmp_path: Path) -> None:
    write(tmp_path, scene_of(HOLES))
    tiles = images_in(tmp_path)
    shares = [share(batches_of(tiles), rank, 3) for rank in range(3)]
    parts = [list(read_with_neighbours(tiles, batches, buffer=3, size_multiple=1)) for batches in shares]
    assert [len(part) for part in parts] == [1, 2, 2]
    for expected, batch in zip(read(tiles), [batch for part in parts for batch in part], strict=True):
        assert batch.rows == expected.rows
        assert np.array_equal(batch.image, expected.image)


class Watch:
    """The tiles that are in memory or being read, the most that ever were, and how many have been read."""

    def __init__(self) -> None:
        self.alive: weakref.WeakSet[HeldTile] = weakref.WeakSet()
        self.most = self.read = 0

    def add(self, tile: HeldTile) -> None:
        self.alive.add(tile)
        self.read += 1
        self.most = max(self.most, len(self.alive))


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()

    class Watched(HeldTile):
        def __init__(self, row: int) -> None:
            super().__init__(row)
            watch.add(self)

    monkeypatch.setattr(neighbours, "HeldTile", Watched)
    return watch


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server with two scenes of 6 x 5 tiles in the bucket `imagery`."""
    for seed in (0, 1):
        write(tmp_path / "buckets/imagery", scene_of(grid(6, 5), seed=seed), f"scene {seed}")
    with S3Server(tmp_path / "buckets") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server
    location._client_of_this_process.cache_clear()


def test_each_tile_is_fetched_by_one_get_for_itself_and_all_neighbours(server: S3Server, tmp_path: Path) -> None:
    tiles = images_in("s3://imagery", endpoint_url=server.url, cache=NO_CACHE)
    server.reset()
    batches = read(tiles, batch_size=4)
    assert server.stats()["requests"] == {"GET": 60}
    size = (tmp_path / "buckets/imagery/scene 0/6/10/20.tif").stat().st_size
    assert sum(batch.fetched_bytes for batch in batches) == 60 * size
    assert sum(batch.retries for batch in batches) == 0


def test_tiles_in_the_cache_are_not_fetched(server: S3Server, tmp_path: Path) -> None:
    tiles = images_in("s3://imagery", endpoint_url=server.url, cache=CacheConfig(dir=str(tmp_path / "cache"), max_gb=1))
    cold = read(tiles, batch_size=4)
    server.reset()
    warm = read(tiles, batch_size=4)
    assert server.stats()["requests"] == {}
    assert sum(batch.fetched_bytes for batch in warm) == 0
    for expected, batch in zip(cold, warm, strict=True):
        assert np.array_equal(batch.image, expected.image)
        assert np.array_equal(batch.missing, expected.missing)


def test_retries_are_counted(server: S3Server) -> None:
    tiles = images_in("s3://imagery", "scene 0", endpoint_url=server.url, cache=NO_CACHE)
    server.set(faults={"error_500": 0.3})
    batches = read(tiles)
    failures = server.stats()["faults"]["error_500"]
    assert failures > 0
    assert sum(batch.retries for batch in batches) == failures


def test_closing_ends_the_reading(server: S3Server, monkeypatch: pytest.MonkeyPatch, watch: Watch) -> None:
    monkeypatch.setattr(reader, "REQUESTS", 2)
    tiles = images_in("s3://imagery", endpoint_url=server.url, cache=NO_CACHE)
    server.set(delay_ms=20)
    batches = read_with_neighbours(tiles, batches_of(tiles, 1), buffer=3, size_multiple=1)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    fetched = server.stats()["requests"]["GET"]
    assert tiles.reader._fetchers is not None
    tiles.reader._fetchers.shutdown(wait=True)  # every request that was begun has ended, or was never made
    assert watch.read > 30
    assert server.stats()["requests"]["GET"] <= fetched + 3 < 30


def test_few_tiles_are_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: Watch) -> None:
    for module in (neighbours, reading_order):
        monkeypatch.setattr(module, "most_kept", lambda bands: 24)  # stripes of 9 tiles
    monkeypatch.setattr(neighbours, "TILES_AHEAD", 8)
    write(tmp_path, scene_of(grid(18, 20), 4, 4))
    tiles = images_in(tmp_path)
    batches = read_with_neighbours(tiles, batches_of(tiles, 4), buffer=2, size_multiple=1)
    assert sum(len(batch.rows) for batch in batches) == 360
    # 24 are kept. Beyond them, batches in flight read fewer than 8, and the last of them 3 x 6 tiles at most.
    assert 24 <= watch.most <= 24 + 8 + 18
    assert 360 < watch.read <= 360 + 2 * 20  # the two columns between the stripes are read twice
    del batches
    assert len(watch.alive) == 0


def test_one_stripe_reads_each_tile_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: Watch) -> None:
    for module in (neighbours, reading_order):
        monkeypatch.setattr(module, "most_kept", lambda bands: 24)
    write(tmp_path, scene_of(grid(9, 12), 4, 4))
    read(images_in(tmp_path), batch_size=4, buffer=2)
    assert watch.read == 108


def test_neighbours_of_a_few_tiles_are_read_and_no_others(tmp_path: Path, watch: Watch) -> None:
    scene = scene_of(grid(5, 5))
    write(tmp_path, scene)
    tiles = images_in(tmp_path)
    (batch,) = read_with_neighbours(tiles, [[12]], buffer=3, size_multiple=1)
    assert watch.read == 9
    assert np.array_equal(batch.image[0], reference(scene, 12, 22, 3))


def write_row(folder: Path, damaged: int | None = None) -> ImageTiles:
    """The images of a row of six tiles, of which one is cut short."""
    write(folder, scene_of(grid(6, 1)))
    if damaged is not None:
        path = folder / f"scene/6/{10 + damaged}/20.tif"
        path.write_bytes(path.read_bytes()[:100])
    return images_in(folder)


def test_damaged_tile_is_an_error_of_the_batch_that_needs_it(tmp_path: Path) -> None:
    batches = read_with_neighbours(
        write_row(tmp_path, damaged=4), batches_of(images_in(tmp_path), 1), buffer=3, size_multiple=1
    )
    assert [next(batches).rows for _ in range(3)] == [(0,), (1,), (2,)]
    with pytest.raises(Damaged, match=r"scene/6/14/20.tif: not a readable tile"):
        next(batches)


def test_damaged_tile_that_is_skipped_is_left_out_and_missing_beside_its_neighbours(tmp_path: Path) -> None:
    tiles = write_row(tmp_path, damaged=4)
    scene = scene_of(grid(6, 1))
    scene[14, 20][:] = 0  # missing
    batches = read(tiles, batch_size=1, if_damaged="skip")
    assert [batch.rows for batch in batches] == [(0,), (1,), (2,), (3,), (), (5,)]
    for row, (image, missing) in bordered(batches).items():
        expected = reference(scene, 10 + row, 20, 3)
        assert np.array_equal(image, expected)
        assert np.array_equal(missing, (expected == 0).all(axis=0))
    assert batches[4].image.shape == (0, 2, 0, 0)
    assert batches[4].scale.shape == (0, 2)
    assert batches[4].missing.shape == (0, 0, 0)


def test_damaged_tile_is_reported_once_with_the_reason(tmp_path: Path) -> None:
    batches = read(write_row(tmp_path, damaged=4), batch_size=1, if_damaged="skip")
    assert [list(batch.damaged) for batch in batches] == [[], [], [], [4], [], []]
    assert "scene/6/14/20.tif: not a readable tile" in batches[3].damaged[4]


def test_damaged_tile_of_a_map_is_an_error_that_says_how_to_skip_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    cause = (
        r"14/20.tif: not a readable tile .*cut short.*copy it again.*; predict.if_damaged: skip leaves such tiles out"
    )
    with pytest.raises(Damaged, match=cause):
        read(write_row(tmp_path, damaged=4), batch_size=1, if_damaged="error")
    assert "GDAL" not in caplog.text  # which names the bytes in memory


@pytest.mark.parametrize("how", ["changed", "gone"])
def test_changed_tile_is_never_skipped(tmp_path: Path, how: str) -> None:
    tiles = write_row(tmp_path)
    path = tmp_path / "scene/6/14/20.tif"
    path.unlink()
    if how == "changed":
        path.write_bytes(b"no longer a tile")
    with pytest.raises(Changed, match=r"scene/6/14/20.tif"):
        read(tiles, if_damaged="skip")


def test_tile_without_a_band_is_not_skipped(tmp_path: Path) -> None:
    write_tile(tmp_path / "scene/6/10/20.tif", np.ones((1, 8, 8), np.uint8))
    with pytest.raises(DataError, match=r"has 1 band\(s\)"):
        read(images_in(tmp_path), if_damaged="skip")


def test_store_that_fails_is_no_damage(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = images_in("s3://imagery", "scene 0", endpoint_url=server.url, cache=NO_CACHE)
    elsewhere = Location.parse("s3://no-such-bucket", endpoint_url=server.url)
    monkeypatch.setattr(tiles.reader, "images", elsewhere)
    with pytest.raises(DataError, match="no-such-bucket"):
        read(tiles, if_damaged="skip")


def test_wait_for_a_store_can_be_interrupted(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "INTERRUPT_S", 0.02)
    monkeypatch.setattr(reader, "REQUESTS", 1)
    tiles = images_in("s3://imagery", endpoint_url=server.url, cache=NO_CACHE)
    server.set(delay_ms=200)

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        read(tiles, interrupt=stop)
    assert tiles.reader._fetchers is not None
    tiles.reader._fetchers.shutdown(wait=True)
    assert server.stats()["requests"]["GET"] <= 2


def test_batch_names_the_kinds_of_its_images(tmp_path: Path) -> None:
    write_row(tmp_path)
    write_tile(tmp_path / "scene/6/15/20.tif", scene_of([(0, 0)])[0, 0], nodata=7)
    batches = read(images_in(tmp_path))
    assert [list(batch.kinds.values()) for batch in batches] == [[2], [4, 5]]
    assert "nodata 7" in list(batches[1].kinds)[1]
    assert [batch.doubts for batch in batches] == [{}, {}]
