"""From file bytes to pixels and missing pixels, on tiles written by code and on real, odd ones."""

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image
from rasterio.enums import ColorInterp

from conftest import pattern, write_tile
from robosat_pink.datasets.rasters import decode, gdal_bands
from robosat_pink.errors import DataError

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


Pair = tuple[np.ndarray, np.ndarray]


def read_image(data: bytes, bands: Sequence[int | str], name: str = NAME, **options: Any) -> Pair:
    """Values (C, H, W) and where they are missing (H, W)."""
    return decode.read_image(data, bands, name, **options)[:2]


def read_mask(data: bytes, name: str = NAME, **options: Any) -> Pair:
    """Values and where they are missing, both (H, W)."""
    values, missing = decode.read_mask(data, name, **options)[:2]
    assert values.shape == (1, *missing.shape)
    return values[0], missing


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
    assert where(missing) == [[0, 1], [1, 0], [1, 2]]  # the last has a number in the other band
    assert image.tolist() == [[[1, 0, 1], [0, 1, 0]], [[1, 0, 1], [0, 1, 1]]]
    assert where(read_image(encode(pixels, nodata=nodata), [2], NAME)[1]) == [[0, 1], [1, 0]]


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


def transparent_at_2_1() -> np.ndarray:
    """9 in three bands, and an alpha of 255 but for one pixel."""
    pixels = np.full((4, 3, 3), 9, dtype=np.uint8)
    pixels[3] = 255
    pixels[3, 2, 1] = 0
    return pixels


def test_transparent_pixel_is_missing(encode: Encode) -> None:
    data = encode(transparent_at_2_1(), photometric="RGB", alpha="YES")
    assert where(read_image(data, [1, 2, 3])[1]) == [[2, 1]]


@pytest.mark.parametrize("bands", [[1, 2, 3, 4], [4]])
def test_alpha_band_that_is_asked_for_is_data(encode: Encode, bands: list[int]) -> None:
    """GDAL tags the fourth of four bands as alpha by itself: it may well be near infrared, and 0 is dark water."""
    image, missing = read_image(encode(transparent_at_2_1()), bands)
    assert np.array_equal(image, transparent_at_2_1()[[band - 1 for band in bands]])
    assert not missing.any()


@pytest.mark.parametrize(
    ("dtype", "bands", "nodata"), [("uint8", 3, None), ("uint16", 5, None), ("int16", 4, None), ("uint8", 4, 7)]
)
def test_alpha_counts_in_files_of_any_type_and_number_of_bands(
    tmp_path: Path, dtype: str, bands: int, nodata: int | None
) -> None:
    """GDAL itself takes it for a mask in some of them alone."""
    pixels = np.full((bands, 2, 3), 9, dtype)
    pixels[-1] = [[1, 0, 1], [1, 1, 0]]
    path = write_tile(tmp_path / "tile", pixels, photometric="MINISBLACK", nodata=nodata)
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [*[ColorInterp.gray] * (bands - 1), ColorInterp.alpha]
    data = path.read_bytes()
    assert where(read_image(data, list(range(1, bands)))[1]) == [[0, 1], [1, 2]]
    assert not read_image(data, [1, bands])[1].any()


@pytest.mark.parametrize(("dtype", "nodata"), [("int16", None), ("uint8", 255)])
def test_alpha_beside_the_labels_of_a_mask_counts_in_any_type(encode: Encode, dtype: str, nodata: int | None) -> None:
    pixels = np.array([[[1, 1, 0]], [[1, 0, 1]]], dtype)
    assert where(read_mask(encode(pixels, ALPHA="YES", nodata=nodata))[1]) == [[0, 1]]


def test_number_that_float32_has_not_is_missing(encode: Encode) -> None:
    image, missing = read_image(encode(np.array([[[1.5, -1.7e308]]])), [1])
    assert image.tolist() == [[[1.5, 0]]]
    assert where(missing) == [[0, 1]]


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


def test_zero_in_all_bands_of_the_file_is_missing_also_where_one_is_selected(encode: Encode) -> None:
    pixels = pattern(3, 4, 4)
    pixels[:, 1, 3] = 0
    pixels[0, 2, 2] = 0
    assert where(read_image(encode(pixels), [1])[1]) == [[1, 3]]


def test_zero_of_the_only_band_is_a_number_whatever_the_type(encode: Encode) -> None:
    for dtype in ("uint8", "uint16", "int16", "float32"):
        assert not read_image(encode(np.zeros((1, 3, 3), dtype)), [1])[1].any()


@pytest.mark.parametrize(
    ("rule", "dtype", "bands", "missing"),
    [
        ("declared", "uint16", 3, 0),
        ("zero", "uint16", 3, 2),
        ("zero", "uint8", 3, 2),
        ("zero", "int16", 1, 2),
        ("zero", "float32", 2, 2),
        ("auto", "uint16", 3, 2),
        ("auto", "uint16", 1, 0),
        ("auto", "uint8", 3, 0),
    ],
)
def test_what_zero_means_where_nothing_is_declared_is_the_experiment_to_say(
    encode: Encode, rule: str, dtype: str, bands: int, missing: int
) -> None:
    pixels = np.full((bands, 2, 3), 7, dtype)
    pixels[:, 0, :2] = 0
    for compress in ("none", "packbits"):  # plain, and by GDAL
        read = decode.read_image(encode(pixels, compress=compress), [1], NAME, rule)
        assert (read.missing.sum(), read.zeros) == (missing, missing)
        declared = decode.read_image(encode(pixels, compress=compress, nodata=99), [1], NAME, rule)
        assert (declared.missing.sum(), declared.zeros) == (0, 0)


def test_rows_stay_as_they_lie_and_the_georeference_says_how(encode: Encode) -> None:
    pixels = pattern(2, 4, 6)
    read = decode.read_image(encode(pixels, transform=south_up()), [2, 1], NAME)
    assert np.array_equal(read.values, pixels[[1, 0]])
    assert read.georeference is not None
    assert read.georeference.is_south_up
    assert np.array_equal(read.turned().values, pixels[[1, 0], ::-1])
    for plain in (encode(pixels), encode(pixels, compress="packbits")):
        georeference = decode.read_image(plain, [1], NAME).georeference
        assert georeference is not None
        assert georeference == (3857, (1, 0, 0, 0, -1, 64))
    assert decode.read_image(encode(pixels, crs=None, transform=None), [1], NAME).georeference is None


@pytest.mark.parametrize(
    ("bands", "profile"),
    [(2, {}), (3, {"driver": "PNG", "crs": None, "transform": None}), (3, {"compress": "deflate"})],
)
def test_mask_of_several_bands_is_refused(encode: Encode, bands: int, profile: dict[str, object]) -> None:
    pixels = np.zeros((bands, 8, 8), np.uint8)
    with pytest.raises(DataError, match=f"^{NAME}: a mask of {bands} bands; accepted: one band of class numbers"):
        read_mask(encode(pixels, **profile))


@pytest.mark.parametrize(
    ("profile", "named"),
    [
        ({"driver": "JPEG", "crs": None, "transform": None}, "JPEG"),
        ({"compress": "JPEG"}, "JPEG"),
        ({"compress": "LERC", "MAX_Z_ERROR": 2}, "LERC"),
    ],
)
def test_mask_in_a_lossy_format_is_refused(encode: Encode, profile: dict[str, object], named: str) -> None:
    with pytest.raises(DataError, match=rf"^{NAME}: a mask in a lossy format \({named}\)"):
        read_mask(encode(np.zeros((8, 8), np.uint8), **profile))


def test_mask_in_a_compression_that_can_be_lossy_but_is_not_is_read(encode: Encode) -> None:
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(read_mask(encode(values, compress="LERC"))[0], values)


def test_alpha_beside_the_band_of_a_mask_says_where_there_is_none(encode: Encode) -> None:
    pixels = np.array([[[1, 2]], [[255, 0]]], np.uint8)
    values, missing = read_mask(encode(pixels, driver="PNG", crs=None, transform=None))
    assert values.tolist() == [[1, 2]]
    assert where(missing) == [[0, 1]]


COLORS = [(10, 20, 30), (40, 50, 60), (70, 80, 90), (1, 1, 1)]


def painted(path: Path, indices: np.ndarray, **profile: object) -> bytes:
    """A GeoTIFF of indices into four colors."""
    write_tile(path, indices, photometric="PALETTE", **profile)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, dict(enumerate(COLORS)))
    return path.read_bytes()


def painted_png(indices: np.ndarray) -> bytes:
    """The same as a PNG, whose last color is transparent."""
    picture, file = Image.fromarray(indices, "P"), io.BytesIO()
    picture.putpalette([value for color in COLORS for value in color])
    picture.save(file, "PNG", transparency=bytes([255, 255, 255, 0]))
    return file.getvalue()


def test_palette_of_an_image_is_expanded_to_its_colors(tmp_path: Path) -> None:
    data = painted(tmp_path / "tile", np.array([[0, 1], [2, 1]], np.uint8))
    image, missing = read_image(data, [3, 1])
    assert image.tolist() == [[[30, 60], [90, 60]], [[10, 40], [70, 40]]]
    assert not missing.any()
    with pytest.raises(DataError, match=r"has 4 band\(s\)"):
        read_image(data, [5])


def test_transparent_color_and_nodata_index_of_a_palette_are_missing(tmp_path: Path) -> None:
    transparent = painted_png(np.array([[0, 3]], np.uint8))
    assert where(read_image(transparent, [1, 2, 3])[1]) == [[0, 1]]
    assert read_image(transparent, [4])[0].tolist() == [[[255, 0]]]
    declared = painted(tmp_path / "tile", np.array([[0, 1]], np.uint8), nodata=1)
    assert where(read_image(declared, [1, 2, 3])[1]) == [[0, 1]]


def test_palette_of_a_mask_is_taken_by_its_indices(tmp_path: Path) -> None:
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    for data in (painted(tmp_path / "tile", indices), painted_png(indices)):
        assert read_mask(data)[0].tolist() == [[0, 1], [2, 1]]


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "I;16"])
@pytest.mark.parametrize("rest", [b"", bytes(4096)], ids=["ends", "ends in zeros"])
def test_png_that_is_cut_short_is_refused_and_not_read_as_what_lies_in_memory(mode: str, rest: bytes) -> None:
    bands = {"I;16": 1, "P": 1}.get(mode, len(mode))
    values = np.random.default_rng(0).integers(0, 255, (64, 64, bands), np.uint8).squeeze()
    stream = io.BytesIO()
    image = Image.fromarray(values.astype(np.uint16)) if mode == "I;16" else Image.fromarray(values, mode)
    image.save(stream, "PNG")
    whole = stream.getvalue()
    assert decode.read_image(whole, [1], NAME).values.shape == (1, 64, 64)
    for end in (len(whole) // 3, len(whole) // 2, len(whole) - 100):
        with pytest.raises(DataError, match=rf"^{NAME}: "):
            read_image(whole[:end] + rest, [1])
        with pytest.raises(DataError, match=rf"^{NAME}: "):
            read_mask(whole[:end] + rest)


def test_tiff_of_several_pages_is_refused() -> None:
    """Of which GDAL would read the first: of a mask with a class on each page, the wrong half of the labels."""
    stream = io.BytesIO()
    pages = np.array([[[0, 1]], [[1, 0]]], np.uint8)
    tifffile.imwrite(stream, pages, photometric="minisblack")
    for read in (lambda data: read_image(data, [1]), read_mask):
        with pytest.raises(DataError, match=rf"^{NAME}: 2 pages \(images\) in one TIFF"):
            read(stream.getvalue())


def test_overviews_are_no_further_pages(tmp_path: Path) -> None:
    path = write_tile(tmp_path / "tile.tif", pattern(1, 64, 64))
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    assert np.array_equal(read_image(path.read_bytes(), [1])[0], pattern(1, 64, 64))


def test_complex_numbers_are_refused(encode: Encode) -> None:
    data = encode(np.ones((1, 4, 4), np.complex64))
    for read in (lambda: read_image(data, [1]), lambda: read_mask(data)):
        with pytest.raises(DataError, match=f"^{NAME}: complex numbers"):
            read()


def described(path: Path, pixels: np.ndarray, **profile: object) -> bytes:
    write_tile(path, pixels, **profile)
    with rasterio.open(path, "r+") as file:
        file.descriptions = ("Blue", "near <infra> & red")
        file.scales, file.offsets = (0.5, 2.0), (0.0, -100.0)
    return path.read_bytes()


@pytest.mark.parametrize("compress", ["none", "packbits"])
def test_what_a_file_says_of_its_bands_is_what_gdal_says(tmp_path: Path, compress: str) -> None:
    data = described(tmp_path / "tile", pattern(2, 4, 4), compress=compress)
    tags = decode.read_image(data, [1], NAME).tags
    assert tags[:3] == (("Blue", "near <infra> & red"), (0.5, 2.0), (0.0, -100.0))


def test_band_is_found_by_its_description(tmp_path: Path) -> None:
    data = described(tmp_path / "tile", pattern(2, 4, 4))
    read = decode.read_image(data, ["near <infra> & red", "blue", 1], NAME)
    assert read.bands == [2, 1, 1]
    assert np.array_equal(read.values, pattern(2, 4, 4)[[1, 0, 0]])
    with pytest.raises(DataError, match=r"has no band of the description 'red'.* there are: Blue, near <infra> & red"):
        read_image(data, ["red"])
    plain = write_tile(tmp_path / "plain", pattern(2, 4, 4)).read_bytes()
    with pytest.raises(DataError, match="none of its 2 bands has one; give bands by number"):
        read_image(plain, ["red"])


def test_pixels_outside_the_mask_file_beside_a_tile_are_missing(encode: Encode) -> None:
    valid = np.array([[255, 0, 255], [255, 255, 0]], np.uint8)
    tile, beside = encode(pattern(2, 2, 3)), {".msk": encode(valid)}
    image, missing = read_image(tile, [1, 2], files=beside)
    assert where(missing) == [[0, 1], [1, 2]]
    assert image[:, 0, 1].tolist() == [0, 0]
    assert where(read_mask(encode(np.zeros((2, 3), np.uint8)), files=beside)[1]) == [[0, 1], [1, 2]]
    with pytest.raises(DataError, match=rf"^{NAME}.msk: 3 x 3 pixels, its tile has 3 x 2"):
        read_image(tile, [1], files={".msk": encode(np.zeros((3, 3), np.uint8))})


def auxiliary(content: str, band: int = 1) -> dict[str, bytes]:
    text = f'<PAMDataset><Metadata/><PAMRasterBand band="{band}">{content}<Histograms/></PAMRasterBand></PAMDataset>'
    return {".aux.xml": text.encode()}


def test_auxiliary_file_beside_a_tile_is_honoured(encode: Encode) -> None:
    data = encode(pattern(2, 2, 3))
    said = auxiliary(
        "<NoDataValue>10001</NoDataValue><Scale>0.5</Scale><Offset>3</Offset><Description>B2</Description>"
    )
    read = decode.read_image(data, [1], NAME, files=said)
    assert where(read.missing) == [[0, 1]]
    assert read.tags[:3] == (("B2", ""), (0.5, 1.0), (3.0, 0.0))
    statistics = auxiliary("<Metadata><MDI key='STATISTICS_MAXIMUM'>3</MDI></Metadata>")
    assert not read_image(data, [1], files=statistics)[1].any()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<ColorTable/>", "ColorTable of the tile"),
        ("<ColorInterp>Alpha</ColorInterp>", "ColorInterp of the tile"),
        ("<Overviews><OverviewFile>/etc/passwd</OverviewFile></Overviews>", "Overviews of the tile"),
        ("<NoDataValue>none</NoDataValue>", "could not convert"),
        ('<Metadata><MDI key="NODATA_VALUES">0 0 0</MDI></Metadata>', "Metadata of the tile"),
        ("<NoDataValue>", "not readable as XML"),
    ],
)
def test_auxiliary_file_that_says_what_is_not_honoured_is_refused(encode: Encode, content: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"^{NAME}\.aux\.xml: {message}"):
        read_image(encode(pattern(2, 2, 3)), [1], files=auxiliary(content))


def test_auxiliary_file_numbers_bands_from_one(encode: Encode) -> None:
    with pytest.raises(DataError, match=rf"^{NAME}\.aux\.xml: band '0'; accepted: a number from 1"):
        read_image(encode(pattern(2, 2, 3)), [1], files=auxiliary("<Scale>2</Scale>", band=0))


def test_auxiliary_file_says_where_a_tile_lies_that_cannot_say_so_itself(encode: Encode) -> None:
    place = "<SRS>{}</SRS><GeoTransform> 1.0, 2.0, 0.0, 8.0, 0.0, -2.0</GeoTransform>"
    data = encode(np.ones((3, 2, 2), np.uint8), driver="PNG", crs=None, transform=None)
    for srs, expected in ((rasterio.crs.CRS.from_epsg(3857).to_wkt(), (3857, (2, 0, 1, 0, -2, 8))), ("nonsense", None)):
        said = {".aux.xml": f"<PAMDataset>{place.format(srs)}</PAMDataset>".encode()}
        assert decode.read_image(data, [1], NAME, files=said).georeference == expected


def test_auxiliary_file_of_entities_that_grow_is_refused(encode: Encode) -> None:
    bomb = b'<!DOCTYPE a [<!ENTITY b "cccc"><!ENTITY d "&b;&b;">]><PAMDataset>&d;</PAMDataset>'
    with pytest.raises(DataError, match="declares entities"):
        read_image(encode(pattern(1, 2, 3)), [1], files={".aux.xml": bomb})


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
        read_mask(encode(pattern(1, 64, 64))[:5000], NAME)


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
    monkeypatch.setattr(gdal_bands, "DRIVERS", ["VRT", "GTiff"])
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


@pytest.mark.parametrize(
    ("bands", "dtype", "options", "message"),
    [
        (20, "float64", {"tiled": True, "blockxsize": 256, "blockysize": 256}, "20 bands of 4096 x 4096 pixels"),
        (
            1,
            "uint8",
            {"tiled": True, "blockxsize": 65536, "blockysize": 32768},
            "1 bands .* in pieces of 65536 x 32768",
        ),
        (5, "uint8", {"tiled": True, "blockxsize": 16, "blockysize": 16, "interleave": "band"}, "327680 strips or"),
    ],
)
def test_tile_that_would_take_more_than_a_gigabyte_or_many_pieces_is_refused_by_its_header(
    tmp_path: Path, bands: int, dtype: str, options: dict[str, object], message: str
) -> None:
    path, side = tmp_path / "bomb.tif", 64 if "65536" in message else 4096
    rasterio.open(path, "w", "GTiff", side, side, bands, dtype=dtype, sparse_ok=True, **options).close()
    with pytest.raises(DataError, match=f"^{NAME}: {message}"):
        read_image(path.read_bytes(), [1])


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
        assert np.array_equal(image[:, ~missing], file.read(bands)[:, ~missing].astype(dtype))
        assert np.array_equal(missing, (file.read_masks(bands) == 0).all(axis=0))


def test_odd_jpeg_with_alpha_is_missing_where_it_is_transparent(shared: Path) -> None:
    path = shared / "data/odd/rasterio_alpha.tif"
    with rasterio.open(path) as file:
        transparent = file.read(4) == 0
    assert 0 < transparent.mean() < 1
    assert np.array_equal(read_image(path.read_bytes(), [1, 2, 3], "alpha")[1], transparent)
    assert not read_image(path.read_bytes(), [3, 2, 1, 4], "alpha")[1].any()


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
