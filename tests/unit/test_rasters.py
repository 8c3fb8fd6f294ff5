"""From file bytes to pixels and missing pixels, on tiles written by code and on real, odd ones."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio

from conftest import pattern, write_tile
from robosat_pink import rasters
from robosat_pink.errors import DataError
from robosat_pink.rasters import read_image, read_mask

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

NAME = "s3://bucket/scene/15/5/7.tif"

Encode = Callable[..., bytes]


@pytest.fixture
def encode(tmp_path: Path) -> Encode:
    """The bytes of a tile file with these pixels; `valid` (H, W) becomes its internal mask."""

    def encoded(pixels: np.ndarray, valid: np.ndarray | None = None, **profile: object) -> bytes:
        path = write_tile(tmp_path / "tile", pixels, **profile)
        if valid is not None:
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
                file.write_mask(valid)
        return path.read_bytes()

    return encoded


def south_up() -> rasterio.Affine:
    return rasterio.Affine(1, 0, 0, 0, 1, -64)


def where(missing: np.ndarray) -> list[list[int]]:
    return np.argwhere(missing).tolist()


@pytest.mark.parametrize("bands", [[1, 2, 3, 4], [3, 1], [2], [4, 4, 2]])
def test_bands_are_selected_and_ordered_counting_from_one(encode: Encode, bands: list[int]) -> None:
    image, missing = read_image(encode(pattern(4, 5, 7)), bands, NAME)
    assert np.array_equal(image, pattern(4, 5, 7)[[band - 1 for band in bands]])
    assert missing.shape == (5, 7)
    assert not missing.any()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_image_keeps_the_type_of_its_file(encode: Encode, dtype: str) -> None:
    pixels = np.arange(1, 25).reshape(2, 3, 4).astype(dtype)
    image, _ = read_image(encode(pixels), [1, 2], NAME)
    assert image.dtype == dtype
    assert np.array_equal(image, pixels)


def test_float64_becomes_what_networks_compute_in(encode: Encode) -> None:
    image, _ = read_image(encode(np.full((1, 2, 2), 0.1)), [1], NAME)
    assert image.dtype == np.float32
    assert (image == np.float32(0.1)).all()


def test_png_is_read_with_its_first_row_first(encode: Encode) -> None:
    pixels = np.arange(36, dtype=np.uint8).reshape(3, 3, 4)
    image, missing = read_image(encode(pixels, driver="PNG", crs=None, transform=None), [1, 2, 3], NAME)
    assert np.array_equal(image, pixels)
    assert not missing.any()


@pytest.mark.parametrize(("dtype", "nodata"), [("int16", -9999), ("uint16", 0), ("uint8", 255), ("float32", -3.4e38)])
def test_pixel_is_missing_where_every_band_has_the_nodata_value(encode: Encode, dtype: str, nodata: float) -> None:
    pixels = np.arange(1, 19).reshape(2, 3, 3).astype(dtype)
    pixels[:, 1, 2] = nodata
    image, missing = read_image(encode(pixels, nodata=nodata), [1, 2], NAME)
    assert where(missing) == [[1, 2]]
    assert image[:, 1, 2].tolist() == [0, 0]
    assert np.array_equal(image[:, ~missing], pixels[:, ~missing])


def test_pixel_with_only_some_bands_missing_is_valid_and_its_missing_value_is_0(encode: Encode) -> None:
    pixels = pattern(3, 4, 4).astype(np.int32)
    pixels[1, 2, 3] = -9999
    image, missing = read_image(encode(pixels, nodata=-9999), [1, 2, 3], NAME)
    assert not missing.any()
    assert image[:, 2, 3].tolist() == [10000 + 128 + 3, 0, 30000 + 128 + 3]


def test_only_the_selected_bands_decide_what_is_missing(encode: Encode) -> None:
    pixels = pattern(3, 4, 4).astype(np.int32)
    pixels[:2, 0, 1] = -9999
    data = encode(pixels, nodata=-9999)
    assert where(read_image(data, [2, 1], NAME)[1]) == [[0, 1]]
    assert where(read_image(data, [1, 3], NAME)[1]) == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("nodata", [None, float("nan"), -9999.0])
def test_number_that_is_not_finite_is_missing_whatever_the_tag(
    encode: Encode, dtype: str, nodata: float | None
) -> None:
    pixels = np.ones((2, 2, 3), dtype=dtype)
    pixels[:, 0, 1] = np.nan
    pixels[:, 1, 0] = np.inf, -np.inf
    pixels[0, 1, 2] = np.nan
    image, missing = read_image(encode(pixels, nodata=nodata), [1, 2], NAME)
    assert where(missing) == [[0, 1], [1, 0]]
    assert image.tolist() == [[[1, 0, 1], [0, 1, 0]], [[1, 0, 1], [0, 1, 1]]]


def test_pixel_outside_the_internal_mask_is_missing(encode: Encode) -> None:
    valid = np.ones((4, 5), dtype=bool)
    valid[3, 1] = False
    image, missing = read_image(encode(pattern(2, 4, 5), valid), [1, 2], NAME)
    assert where(missing) == [[3, 1]]
    assert image[:, 3, 1].tolist() == [0, 0]
    assert image[:, 3, 0].tolist() == [10000 + 192, 20000 + 192]


def test_zero_is_a_number_inside_the_internal_mask_of_a_uint16_file(encode: Encode) -> None:
    _, missing = read_image(
        encode(np.zeros((1, 2, 2), dtype=np.uint16), np.array([[1, 1], [0, 1]], dtype=bool)), [1], NAME
    )
    assert where(missing) == [[1, 0]]


def test_nodata_tag_and_internal_mask_both_count(encode: Encode) -> None:
    pixels = pattern(2, 3, 3)
    pixels[:, 0, 0] = 7
    valid = np.ones((3, 3), dtype=bool)
    valid[1, 2] = False
    assert where(read_image(encode(pixels, valid, nodata=7), [1, 2], NAME)[1]) == [[0, 0], [1, 2]]


@pytest.mark.parametrize("bands", [[1, 2, 3], [1, 2, 3, 4], [4]])
def test_transparent_pixel_is_missing_even_if_the_alpha_band_is_selected(encode: Encode, bands: list[int]) -> None:
    pixels = np.full((4, 3, 3), 9, dtype=np.uint8)
    pixels[3] = 255
    pixels[3, 2, 1] = 0
    assert where(read_image(encode(pixels, photometric="RGB", alpha="YES"), bands, NAME)[1]) == [[2, 1]]


def test_all_zero_pixel_of_a_uint16_file_without_nodata_is_missing(encode: Encode) -> None:
    pixels = pattern(3, 4, 4)
    pixels[:, 1, 3] = 0
    pixels[0, 2, 2] = 0
    assert where(read_image(encode(pixels), [1, 2, 3], NAME)[1]) == [[1, 3]]


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", None), ("int16", None), ("float32", None), ("uint16", 65535)])
def test_zero_is_a_number_in_other_types_and_beside_a_declared_nodata(
    encode: Encode, dtype: str, nodata: int | None
) -> None:
    assert not read_image(encode(np.zeros((2, 3, 3), dtype=dtype), nodata=nodata), [1, 2], NAME)[1].any()


def test_south_up_image_is_turned_with_its_missing_pixels(encode: Encode) -> None:
    pixels = pattern(2, 4, 6)
    pixels[:, 0, 5] = 0
    image, missing = read_image(encode(pixels, transform=south_up()), [2, 1], NAME)
    assert np.array_equal(image, pixels[[1, 0], ::-1])
    assert where(missing) == [[3, 5]]


def test_south_up_mask_is_turned_with_its_missing_pixels(encode: Encode) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    mask, missing = read_mask(encode(pixels, transform=south_up(), nodata=1), NAME)
    assert mask.tolist() == [[8, 9, 10, 11], [4, 5, 6, 7], [0, 1, 2, 3]]
    assert where(missing) == [[2, 1]]


def test_mask_is_the_first_band_in_its_own_type(encode: Encode) -> None:
    mask, missing = read_mask(encode(pattern(2, 3, 5)), NAME)
    assert mask.dtype == np.uint16
    assert np.array_equal(mask, pattern(1, 3, 5)[0])
    assert not missing.any()


def test_zeros_of_a_mask_are_numbers_in_any_type(encode: Encode) -> None:
    assert not read_mask(encode(np.zeros((3, 3), dtype=np.uint16)), NAME)[1].any()


def test_mask_is_missing_by_tag_internal_mask_or_nan(encode: Encode) -> None:
    tagged = np.array([[0, 1, 255]], dtype=np.uint8)
    assert where(read_mask(encode(tagged, nodata=255), NAME)[1]) == [[0, 2]]
    assert where(read_mask(encode(tagged, np.array([[True, False, True]])), NAME)[1]) == [[0, 1]]
    assert where(read_mask(encode(np.array([[np.nan, 0, 1]], dtype=np.float32)), NAME)[1]) == [[0, 0]]


def test_band_that_the_file_lacks_is_an_error_with_what_there_is(encode: Encode) -> None:
    with pytest.raises(DataError, match=rf"^{NAME}: has 2 band\(s\), channels.bands asks for \[1, 3\]"):
        read_image(encode(pattern(2, 4, 4)), [1, 3], NAME)


@pytest.mark.parametrize("data", [b"", b"\x00", b"this is no tile\n" * 50, b"II*\x00\x08\x00\x00\x00"])
def test_bytes_that_are_no_tile_are_an_error_that_names_it(data: bytes) -> None:
    with pytest.raises(DataError, match=f"^{NAME}: "):
        read_image(data, [1], NAME)
    with pytest.raises(DataError, match=f"^{NAME}: "):
        read_mask(data, NAME)


def test_file_cut_short_is_an_error_that_names_it(encode: Encode) -> None:
    data = encode(pattern(2, 64, 64))
    with pytest.raises(DataError, match=f"^{NAME}: damaged"):
        read_image(data[: len(data) // 2], [1, 2], NAME)
    with pytest.raises(DataError, match=f"^{NAME}: damaged"):
        read_mask(data[: len(data) // 2], NAME)


def test_damaged_internal_mask_is_an_error_that_names_the_tile(encode: Encode) -> None:
    valid = np.arange(64 * 64).reshape(64, 64) % 7 != 0
    data = encode(pattern(1, 64, 64), valid)
    assert where(read_image(data, [1], NAME)[1]) == where(~valid)
    for read in (lambda data: read_image(data, [1], NAME), lambda data: read_mask(data, NAME)):
        with pytest.raises(DataError, match=f"^{NAME}: damaged"):
            read(data[:-1])  # GDAL writes the mask last


@pytest.fixture
def requests_received() -> Iterator[tuple[str, list[str]]]:
    """The address of a server on loopback that has nothing, and the paths it has been asked for."""
    received: list[str] = []

    class Recorder(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            received.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815 - the base class calls it so

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()


def vrt(source: str) -> bytes:
    return (
        '<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{source}</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    ).encode()


def test_vrt_named_as_a_tile_is_refused_and_what_it_points_to_is_not_asked_for(
    requests_received: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, received = requests_received
    with pytest.raises(DataError, match=f"^{NAME}: not a readable tile"):
        read_image(vrt(f"/vsicurl/{address}/secret.tif"), [1], NAME)
    assert received == []

    # Were it not for the list of drivers, the request would go out: the assertion above could fail.
    monkeypatch.setattr(rasters, "DRIVERS", ["VRT", "GTiff"])
    with pytest.raises(DataError):
        read_image(vrt(f"/vsicurl/{address}/secret.tif"), [1], NAME)
    assert set(received) == {"/secret.tif"}


def test_vrt_that_points_to_a_local_file_is_refused(tmp_path: Path) -> None:
    secret = write_tile(tmp_path / "secret.tif", pattern(1, 4, 4))
    with pytest.raises(DataError, match=f"^{NAME}: not a readable tile"):
        read_mask(vrt(str(secret)), NAME)


@pytest.mark.parametrize(
    ("width", "height", "accepted"), [(4096, 4096, True), (4097, 4096, False), (20_000, 839, False)]
)
def test_scene_over_16_7_megapixels_is_refused_as_no_tile(
    tmp_path: Path, width: int, height: int, accepted: bool
) -> None:
    path = tmp_path / "scene.tif"
    rasterio.open(
        path, "w", "GTiff", width, height, 1, dtype="uint8", sparse_ok=True, blockysize=256, tiled=True
    ).close()
    if accepted:
        assert read_mask(path.read_bytes(), NAME)[0].shape == (height, width)
        return
    for read in (lambda data: read_image(data, [1], NAME), lambda data: read_mask(data, NAME)):
        with pytest.raises(DataError, match=f"^{NAME}: {width} x {height} pixels, a tile has at most 16777216"):
            read(path.read_bytes())


# Missing shares as data/README.md has them, or counted with rasterio's masks, read band by band.
@pytest.mark.parametrize(
    ("name", "bands", "dtype", "shape", "missing_pixels"),
    [
        ("20170915_020728_103d_3B_AnalyticMS", [1, 2, 3, 4], "uint16", (512, 512), 191192),
        ("rasterio_all-nodata", [1, 2, 3, 4], "uint16", (2475, 71), 2475 * 71),
        ("rasterio_rgb_lzw", [1, 2, 3], "uint8", (718, 791), 184823),
        ("rasterio_float_nan", [1], "float32", (2, 3), 1),
        ("riocogeo_image_nan", [1], "float32", (341, 316), 61292),
        ("riocogeo_image_51px", [3, 2, 1], "uint8", (51, 51), 0),
        ("riotiler_cog_int16", [1], "int16", (2667, 2658), 3414419),
        ("riotiler_cog_rgb_mask", [1, 2, 3], "uint8", (232, 383), 2739),
        ("riotiler_cog_scale", [1, 2], "int16", (256, 256), 6),
        ("riotiler_inverted_lat", [1], "float32", (360, 720), 360 * 720),
        ("solaris_mask_0_255_nocrs", [1], "uint8", (900, 900), 0),
    ],
)
def test_odd_file_is_read_with_its_missing_pixels(
    shared: Path, name: str, bands: list[int], dtype: str, shape: tuple[int, int], missing_pixels: int
) -> None:
    path = shared / f"data/odd/{name}.tif"
    image, missing = read_image(path.read_bytes(), bands, name)
    assert (image.dtype, image.shape) == (np.dtype(dtype), (len(bands), *shape))
    assert missing.sum() == missing_pixels
    assert not image[:, missing].any()
    assert np.isfinite(image).all()
    with rasterio.open(path) as file:
        rows = slice(None, None, -1) if file.transform.e > 0 and file.crs else slice(None)
        assert np.array_equal(image[:, ~missing], file.read(bands)[:, rows][:, ~missing].astype(dtype))
        assert np.array_equal(missing, (file.read_masks(bands) == 0).all(axis=0)[rows])


def test_odd_jpeg_with_alpha_is_missing_where_it_is_transparent(shared: Path) -> None:
    path = shared / "data/odd/rasterio_alpha.tif"
    with rasterio.open(path) as file:
        transparent = file.read(4) == 0
    assert 0 < transparent.mean() < 1
    for bands in ([1, 2, 3], [3, 2, 1, 4]):
        assert np.array_equal(read_image(path.read_bytes(), bands, "alpha")[1], transparent)


def test_odd_corrupt_file_is_an_error_that_names_it(shared: Path) -> None:
    data = (shared / "data/odd/rasterio_corrupt.tif").read_bytes()
    with pytest.raises(DataError, match=r"^scene/1/2/3.tif: damaged, opens but cannot be read"):
        read_image(data, [1, 2, 3], "scene/1/2/3.tif")


def test_odd_mask_of_0_and_255_without_crs_is_read_as_it_lies(shared: Path) -> None:
    path = shared / "data/odd/solaris_mask_0_255_nocrs.tif"
    mask, missing = read_mask(path.read_bytes(), "mask")
    with rasterio.open(path) as file:
        assert np.array_equal(mask, file.read(1))
    assert np.unique(mask).tolist() == [0, 255]
    assert not missing.any()
