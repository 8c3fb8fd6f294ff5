"""Plain GeoTIFFs without GDAL: byte for byte what GDAL reads, on real tiles and on every layout; the rest is GDAL's."""

import io
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, MemoryFile

from conftest import pattern, write_tile
from robosat_pink.datasets.rasters import gdal_bands, geotiff
from robosat_pink.datasets.rasters.gdal import MAX_PIXELS

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

SMALL_BLOCKS = {"tiled": True, "blockxsize": 16, "blockysize": 32}
COMPRESSIONS = ("none", "lzw", "deflate", "zstd")
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
NOT_PLAIN_AMONG_THE_REAL = {  # JPEG with alpha, damaged, two pages, overviews, an internal mask, south up
    "rasterio_alpha.tif",
    "rasterio_corrupt.tif",
    "rasterio_float_nan.tif",
    "riotiler_cog_int16.tif",
    "riotiler_cog_rgb_mask.tif",
    "riotiler_cog_scale.tif",
    "riotiler_inverted_lat.tif",
}

Encode = Callable[..., bytes]


@pytest.fixture
def encode(tmp_path: Path) -> Encode:
    """The bytes of a GeoTIFF with these pixels (C, H, W), by GDAL; compressed with a predictor if one is given."""

    def encoded(pixels: np.ndarray, compress: str = "none", **profile: object) -> bytes:
        options = {} if compress == "none" else {"compress": compress}
        return write_tile(tmp_path / "tile.tif", pixels, **options, **profile).read_bytes()

    return encoded


def pixels(dtype: str = "uint16", bands: int = 3, height: int = 40, width: int = 50) -> np.ndarray:
    """A smooth ramp with noise, so that compressors and predictors have work."""
    noise = np.random.default_rng(bands).integers(0, 9, (bands, height, width))
    return (noise + np.arange(width) + np.arange(bands)[:, None, None]).astype(dtype)


def by_tifffile(values: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **({"photometric": "minisblack", "metadata": None} | options))
    return file.getvalue()


def with_nodata(dtype: str, spelling: str) -> bytes:
    return by_tifffile(pixels(dtype, bands=1)[0], extratags=[(42113, "s", 0, spelling, True)])


def gdal_georeference(file: DatasetReader) -> tuple[object, tuple[float, ...]] | None:
    is_there = file.crs is not None and not file.transform.is_identity
    return (file.crs.to_epsg(), tuple(file.transform)[:6]) if is_there else None


def assert_is_what_gdal_reads(data: bytes) -> None:
    plain = geotiff.decode(data, MAX_PIXELS)
    assert plain is not None
    with MemoryFile(data) as memory, memory.open(driver=gdal_bands.DRIVERS) as file:
        values = file.read()
        assert (plain.values.dtype, plain.values.shape) == (values.dtype, values.shape)
        assert plain.values.tobytes() == values.tobytes()
        assert {repr(value) for value in file.nodatavals} == {repr(plain.nodata)}
        flag = MaskFlags.all_valid if plain.nodata is None else MaskFlags.nodata
        assert file.mask_flag_enums == tuple([flag] for _ in range(file.count))
        assert plain.tags[:3] == (tuple(each or "" for each in file.descriptions), file.scales, file.offsets)
        assert plain.georeference is None or not isinstance(plain.georeference.crs, bytes)
        assert plain.georeference == gdal_georeference(file)


@pytest.mark.slow
def test_real_tile_is_decoded_to_what_gdal_reads_but_for_those_that_are_not_plain(shared: Path) -> None:
    decoded = 0
    not_plain = set()
    for path in sorted((shared / "data").rglob("*.tif")):
        data = path.read_bytes()
        if geotiff.decode(data, MAX_PIXELS) is None:
            not_plain.add(path.name)
        else:
            assert_is_what_gdal_reads(data)
            decoded += 1
    assert not_plain == NOT_PLAIN_AMONG_THE_REAL
    assert decoded == 2 * 128 + 6


@pytest.mark.parametrize("blocks", [{}, {"blockysize": 7}, SMALL_BLOCKS], ids=["strips", "strips of 7", "tiles"])
@pytest.mark.parametrize("compress", COMPRESSIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layout_is_decoded_to_what_gdal_reads(
    encode: Encode, dtype: str, compress: str, blocks: dict[str, object]
) -> None:
    predictors = [1] if compress == "none" else [1, 2, 3] if dtype.startswith("float") else [1, 2]
    for predictor in predictors:
        for interleave in ("pixel", "band"):
            options = {"interleave": interleave} | ({} if compress == "none" else {"predictor": predictor})
            assert_is_what_gdal_reads(encode(pixels(dtype), compress, **options, **blocks))


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("bands", range(1, 9))
def test_any_number_of_bands_is_decoded_in_order(encode: Encode, bands: int, interleave: str) -> None:
    for compress in COMPRESSIONS:
        data = encode(pattern(bands, 33, 17), compress, interleave=interleave)
        assert_is_what_gdal_reads(data)
        plain = geotiff.decode(data, MAX_PIXELS)
        assert plain is not None
        assert np.array_equal(plain.values, pattern(bands, 33, 17))


def test_deflated_pixels_may_take_more_than_the_longest_read_of_a_header(encode: Encode) -> None:
    noise = np.random.default_rng(0).integers(0, 1 << 16, (4, 512, 1100), dtype=np.uint16)
    data = encode(noise, "deflate")
    assert len(data) > geotiff.MOST_READ
    plain = geotiff.decode(data, 1 << 20)
    assert plain is not None
    assert np.array_equal(plain.values, noise)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (3, 3)])
@pytest.mark.parametrize("bands", [1, 3])
def test_axes_of_length_one_are_kept_apart(encode: Encode, bands: int, size: tuple[int, int]) -> None:
    for compress in ("none", "deflate"):
        for interleave in ("pixel", "band"):
            assert_is_what_gdal_reads(encode(pattern(bands, *size), compress, interleave=interleave))


@pytest.mark.parametrize("bands", [1, 3])
def test_files_of_one_size_are_each_decoded_to_their_own(encode: Encode, bands: int) -> None:
    """The header of one is remembered, and must serve only those that have it, too."""
    first, second = pattern(bands, 32, 48), pattern(bands, 32, 48)[:, ::-1] + 1
    files = [
        encode(first),
        encode(second),
        encode(second.transpose(0, 2, 1)),
        encode(second, interleave="band"),
        encode(second, nodata=3),
        encode(second, nodata=4),
    ]
    assert len(set(map(len, files))) < len(files)
    for _ in range(2):
        for file in files:
            plain = geotiff.decode(file, MAX_PIXELS)
            assert plain is not None
            with MemoryFile(file).open() as dataset:
                assert plain.nodata == dataset.nodata
                np.testing.assert_array_equal(plain.values, dataset.read(), strict=True)
    assert geotiff.decode(files[0], 32 * 48 - 1) is None


@pytest.mark.parametrize("compress", COMPRESSIONS)
def test_rgb_bigtiff_and_the_other_byte_order_are_decoded_to_what_gdal_reads(encode: Encode, compress: str) -> None:
    assert_is_what_gdal_reads(encode(pixels("uint8"), compress, photometric="RGB"))
    for dtype in ("uint8", "uint16", "float32"):
        for interleave in ("pixel", "band"):
            assert_is_what_gdal_reads(encode(pixels(dtype), compress, BIGTIFF="YES", interleave=interleave))
            assert_is_what_gdal_reads(encode(pixels(dtype), compress, ENDIANNESS="BIG", interleave=interleave))
        big = by_tifffile(pixels(dtype, bands=1)[0].astype(np.dtype(dtype).newbyteorder(">")), byteorder=">")
        assert big.startswith(b"MM")
        assert_is_what_gdal_reads(big)


@pytest.mark.parametrize(
    ("dtype", "spelling"),
    [
        *(("uint8", text) for text in ("0", "255", " 7 ", "7.0", "7.000000", "+7", "1e2")),
        *(("uint16", text) for text in ("0", "65535", "65535.0", "6.5535e4")),
        *(("int16", text) for text in ("-9999", "-28672", "-9999.0", "-32768")),
        *(("float32", text) for text in ("0", "-9999", "nan", "NaN", "-3.5e2", "0.25")),
        *(("float64", text) for text in ("nan", "1e-300", "-1.7976931348623157e+308")),
    ],
)
def test_nodata_is_the_number_that_gdal_takes_it_for(dtype: str, spelling: str) -> None:
    assert_is_what_gdal_reads(with_nodata(dtype, spelling))


@pytest.mark.parametrize(
    ("dtype", "spelling"),
    [("uint8", "-9999"), ("uint8", "256"), ("uint16", "0.5"), ("uint8", "nan"), ("uint16", "none"), ("int16", "1e9")],
)
def test_nodata_that_the_type_has_not_is_left_to_gdal(dtype: str, spelling: str) -> None:
    assert geotiff.decode(with_nodata(dtype, spelling), MAX_PIXELS) is None


def test_file_without_nodata_declares_none(encode: Encode) -> None:
    for data in (encode(pixels()), encode(pixels(), nodata=0)):
        assert_is_what_gdal_reads(data)
    plain = geotiff.decode(encode(pixels(), nodata=0), MAX_PIXELS)
    assert plain is not None
    assert plain.nodata == 0


def with_mask(path: Path) -> None:
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(np.tri(40, 50, dtype=bool))


def with_overviews(path: Path) -> None:
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2])


def with_palette(path: Path) -> None:
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (1, 2, 3), 1: (4, 5, 6)})


@pytest.mark.parametrize(
    ("dtype", "bands", "profile", "change"),
    [
        pytest.param("uint8", 4, {"photometric": "RGB", "alpha": "YES"}, None, id="alpha"),
        pytest.param("uint16", 2, {"alpha": "PREMULTIPLIED"}, None, id="premultiplied alpha"),
        pytest.param("uint16", 2, {}, with_mask, id="internal mask"),
        pytest.param("uint16", 2, {}, with_overviews, id="overviews"),
        pytest.param("uint8", 1, {"photometric": "PALETTE"}, with_palette, id="palette"),
        pytest.param("uint8", 3, {"compress": "JPEG"}, None, id="JPEG"),
        pytest.param("uint8", 3, {"compress": "JPEG", "photometric": "YCBCR"}, None, id="JPEG in YCbCr"),
        pytest.param("uint16", 1, {"compress": "LERC"}, None, id="LERC"),
        pytest.param("uint8", 1, {"compress": "PACKBITS"}, None, id="PackBits"),
        pytest.param("uint16", 2, {"transform": rasterio.Affine(1, 0, 0, 0, 1, -64)}, None, id="south up"),
        pytest.param("uint16", 2, {"transform": rasterio.Affine(1, 0.5, 0, 0.5, -1, 64)}, None, id="rotated"),
        pytest.param("uint16", 1, {"NBITS": 12}, None, id="12 bits"),
        pytest.param("uint8", 1, {"NBITS": 1}, None, id="1 bit"),
        pytest.param("float32", 1, {"NBITS": 16}, None, id="half floats"),
        pytest.param("complex64", 1, {}, None, id="complex numbers"),
        pytest.param("uint8", 1, {"photometric": "MINISWHITE"}, None, id="white is 0"),
        pytest.param("uint8", 4, {"photometric": "CMYK"}, None, id="CMYK"),
        pytest.param("uint8", 3, {"driver": "PNG", "crs": None, "transform": None}, None, id="PNG"),
    ],
)
def test_what_is_not_plain_is_left_to_gdal(
    tmp_path: Path, dtype: str, bands: int, profile: dict[str, object], change: Callable[[Path], None] | None
) -> None:
    path = write_tile(tmp_path / "tile.tif", pixels(dtype, bands), **profile)
    if change:
        change(path)
    assert geotiff.decode(path.read_bytes(), MAX_PIXELS) is None
    with MemoryFile(path.read_bytes()) as memory, memory.open(driver=gdal_bands.DRIVERS) as file:
        assert file.read().shape == (bands, 40, 50)


def test_strip_that_is_not_there_is_left_to_gdal(tmp_path: Path) -> None:
    path = tmp_path / "tile.tif"
    with rasterio.open(
        path, "w", "GTiff", 64, 64, 1, dtype="uint8", sparse_ok=True, tiled=True, blockxsize=32, blockysize=32
    ) as file:
        file.write(np.ones((1, 32, 32), np.uint8), window=((0, 32), (0, 32)))
    assert geotiff.decode(path.read_bytes(), MAX_PIXELS) is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_only_the_usual_orientation_is_plain(orientation: int) -> None:
    data = by_tifffile(pixels(bands=1)[0], extratags=[(274, "H", 1, orientation, True)])
    assert (geotiff.decode(data, MAX_PIXELS) is not None) == (orientation == 1)


def test_several_pages_are_left_to_gdal() -> None:
    assert geotiff.decode(by_tifffile(np.stack([pixels(bands=1)[0]] * 2)), MAX_PIXELS) is None
    assert geotiff.decode(by_tifffile(pixels(bands=1)[0]), MAX_PIXELS) is not None


def test_more_pixels_than_allowed_are_left_to_gdal(encode: Encode) -> None:
    data = encode(pattern(2, 10, 12))
    assert geotiff.decode(data, 119) is None
    assert geotiff.decode(data, 120) is not None


@pytest.mark.parametrize(
    "data", [b"", b"I", b"II*\0", b"II*\0\x08\0\0\0", b"MM\0*" + bytes(100), b"\xff\xd8\xff\xe0", b"no tile" * 99]
)
def test_what_is_no_tiff_is_left_to_gdal(data: bytes) -> None:
    assert geotiff.decode(data, MAX_PIXELS) is None


def gdal_values(data: bytes) -> np.ndarray | None:
    """What GDAL reads; None where it refuses."""
    try:
        with MemoryFile(data) as memory, memory.open(driver=gdal_bands.DRIVERS) as file:
            return file.read()
    except RasterioError:
        return None


def is_same(first: np.ndarray, second: np.ndarray) -> bool:
    return (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())


DAMAGED_LAYOUTS = [
    ("uint8", "none", {}),
    ("uint16", "none", {"interleave": "band"} | SMALL_BLOCKS),
    ("uint8", "deflate", {"predictor": 2, "interleave": "band"} | SMALL_BLOCKS),
    ("uint16", "deflate", {"interleave": "band"}),
    ("float32", "deflate", {"predictor": 3}),
    ("int16", "lzw", {"predictor": 2}),
    ("float32", "zstd", {"predictor": 3, "interleave": "band"} | SMALL_BLOCKS),
]


@pytest.mark.parametrize(("dtype", "compress", "options"), DAMAGED_LAYOUTS)
def test_file_cut_short_is_not_decoded_unless_gdal_reads_it_alike(
    encode: Encode, dtype: str, compress: str, options: dict[str, object]
) -> None:
    data = encode(pixels(dtype), compress, **options, nodata=0)
    lengths = {*range(0, len(data), len(data) // 60), *range(len(data) - 12, len(data))}
    refused = 0
    for length in lengths:
        plain = geotiff.decode(data[:length], MAX_PIXELS)
        refused += plain is None
        if plain is not None:
            expected = gdal_values(data[:length])
            assert expected is not None, length
            assert is_same(plain.values, expected), length
    assert refused >= len(lengths) - 12


@pytest.mark.parametrize(("dtype", "compress", "options"), DAMAGED_LAYOUTS)
def test_damaged_file_is_never_decoded_to_anything_but_what_gdal_reads_or_what_was_written(
    encode: Encode, dtype: str, compress: str, options: dict[str, object]
) -> None:
    """Where a header only says something odd of what does not matter here, GDAL refuses and tifffile does not."""
    data = encode(pixels(dtype), compress, **options, nodata=0)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        header = min(file.pages.first.dataoffsets)
    draw = random.Random(f"{dtype} {compress}")
    places = [draw.randrange(header) for _ in range(400)] + [draw.randrange(header, len(data)) for _ in range(250)]
    decoded = 0
    for place in places:
        damaged = bytearray(data)
        damaged[place] = draw.choice([damaged[place] ^ (1 << draw.randrange(8)), draw.randrange(256)])
        plain = geotiff.decode(bytes(damaged), MAX_PIXELS)
        if plain is None:
            continue
        decoded += 1
        assert math.prod(plain.values.shape[1:]) <= MAX_PIXELS
        expected = gdal_values(bytes(damaged))
        assert is_same(plain.values, pixels(dtype) if expected is None else expected), (place, damaged[place])
    assert 50 < decoded < len(places)
