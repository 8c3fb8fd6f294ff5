"""A synthetic mountain scene in tiles, for `start.sh demo` and the tests.

`python -m robosat_pink.sample FOLDER` writes a folder shaped like /opt/ml; `write_tiles` writes only tiles.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_bounds

from robosat_pink.datasets.mercator import tile_bounds

# Granite and cloud are as bright as snow, and light on slopes varies fourfold: no threshold on one band finds the snow,
# but the ratio of near infrared to visible does. The scene shows that training works; it shows nothing about real snow.

ZOOM = 15
FIRST_X, FIRST_Y = 5524, 12666  # north-west tile of the block: around Mount Lyell, Sierra Nevada, 37.8 N 119.3 W
SCENE = "20180528_sierra"
BANDS = ("blue", "green", "red", "near infrared")
DN_PER_REFLECTANCE = 10000
SNOW_SHARE = 0.38  # share of the valid pixels, which is the IoU of predicting snow everywhere
LIGHT_RANGE = (0.3, 1.2)  # factors on slopes that face away from the sun, and towards it

# Reflectance in flat light, in the order of BANDS. Only snow is darker in near infrared than in visible light. Granite
# and cloud are about as bright as snow in visible light, and sunlit forest as bright as shaded snow in near infrared.
SNOW = (0.66, 0.66, 0.65, 0.46)
GRANITE = (0.52, 0.57, 0.61, 0.66)
SLATE = (0.17, 0.18, 0.19, 0.22)
FOREST = (0.04, 0.07, 0.05, 0.30)
CLOUD = (0.66, 0.66, 0.67, 0.70)


def smooth_field(random: np.random.Generator, side: int, scale_px: float) -> np.ndarray:
    """Gaussian random field (side, side) of mean 0 and deviation 1: white noise blurred by scale_px pixels."""
    frequency_y, frequency_x = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
    blur = np.exp(-2 * (np.pi * scale_px) ** 2 * (frequency_y**2 + frequency_x**2))
    spectrum = np.fft.rfft2(random.standard_normal((side, side))) * blur
    spectrum[0, 0] = 0.0
    field: np.ndarray = np.fft.irfft2(spectrum, s=(side, side))
    field /= field.std()
    return field


def cover(score: np.ndarray, among: np.ndarray, share: float) -> np.ndarray:
    """Cover 0..1 of each pixel (H, W): above 0.5 for the highest `share` of the scores within `among` (H, W) bool.

    The threshold follows from the share, so that scenes of any size have the same balance of classes.
    """
    threshold = np.quantile(score[among], 1 - share)
    amount: np.ndarray = 0.5 + 0.5 * np.tanh((score - threshold) / 0.1)
    return amount


def make_scene(side: int, wedge_px: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (4, side, side) uint16 digital numbers, 0 = no data, and mask (side, side) uint8, 1 = snow.

    The north-west corner has no data, up to wedge_px pixels along the northern edge. Features have the same size for
    any `side`: at least 8 pixels, so that a decoder whose finest skip connection is at 1/4 resolution can follow them.
    """
    random = np.random.default_rng(seed)
    row, column = np.mgrid[:side, :side]
    valid = column + 0.8 * row >= wedge_px

    # The absolute value of a smooth field has ridges at its zeros; a field of half the scale roughens their slopes.
    ridges = sum(scale_px * np.abs(smooth_field(random, side, scale_px)) for scale_px in (64, 32))
    height_px = -0.55 * ridges + 30 * smooth_field(random, side, 90) + 2 * smooth_field(random, side, 10)
    slope_south, slope_east = np.gradient(height_px)
    light = np.clip(0.75 + 0.55 * (slope_south + slope_east), *LIGHT_RANGE)  # the sun is in the north-west
    altitude = (height_px - height_px.mean()) / height_px.std()

    cloud = cover(smooth_field(random, side, 24), valid, 0.08)
    light *= 1 - 0.4 * np.roll(cloud, (22, 16), axis=(0, 1))  # shadows fall to the south-east
    clear = valid & (cloud < 0.5)
    snow = cover(0.6 * altitude + smooth_field(random, side, 22), clear, SNOW_SHARE * valid.sum() / clear.sum())
    granite = cover(0.8 * altitude + smooth_field(random, side, 18), clear & (snow < 0.5), 0.5)
    forest = cover(smooth_field(random, side, 10) - altitude, clear & (snow < 0.5) & (granite < 0.5), 0.6)

    reflectance = np.empty((len(BANDS), side, side))
    reflectance[:] = np.reshape(SLATE, (-1, 1, 1))
    for amount, flat in ((forest, FOREST), (granite, GRANITE), (snow, SNOW)):
        reflectance += amount * (np.reshape(flat, (-1, 1, 1)) - reflectance)
    reflectance *= light
    cloud_light = 0.6 + 0.5 * light
    reflectance += cloud * (np.reshape(CLOUD, (-1, 1, 1)) * cloud_light - reflectance)
    # Grain scales all bands alike; sensor noise is independent in each band.
    reflectance *= 1 + 0.04 * smooth_field(random, side, 0.7) + 0.02 * random.standard_normal(reflectance.shape)
    # At least 1, because 0 means no data.
    image = np.clip(np.rint(DN_PER_REFLECTANCE * reflectance), 1, DN_PER_REFLECTANCE).astype(np.uint16)
    return image * valid, (clear & (snow > 0.5)).astype(np.uint8)


def write_tile(path: Path, pixels: np.ndarray, bounds: tuple[float, float, float, float], nodata: int | None) -> None:
    """Write pixels (C, H, W) as a deflated GeoTIFF in EPSG:3857, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=bands, height=height, width=width, dtype=pixels.dtype, nodata=nodata,
        crs="EPSG:3857", transform=from_bounds(*bounds, width, height), compress="deflate", predictor=2,
    ) as file:  # fmt: skip
        file.write(pixels)
        file.descriptions = BANDS if bands == len(BANDS) else ("snow",)


def write_tiles(folder: Path | str, tiles: int = 8, size: int = 128, seed: int = 0) -> list[tuple[int, int, int]]:
    """Write `tiles` x `tiles` pairs of `size` x `size` pixels, and return their (x, y, z).

    Images are `folder/imagery/SCENE/z/x/y.tif` (4 bands uint16, 0 = no data), masks `folder/mask/SCENE/z/x/y.tif`
    (uint8, 1 = snow, 0 where the image has no data). The north-west tile has no data at all, its neighbours have data
    in part. Equal arguments yield equal bytes.
    """
    if tiles < 2 or size < 32:
        raise ValueError(f"tiles = {tiles}, size = {size}: the least is 2 tiles a side, of 32 pixels")
    image, mask = make_scene(tiles * size, wedge_px=1.9 * size, seed=seed)
    written = []
    for column, row in np.ndindex(tiles, tiles):
        x, y, z = FIRST_X + column, FIRST_Y + row, ZOOM
        bounds = tile_bounds(z, x, y)
        window = np.s_[..., row * size : (row + 1) * size, column * size : (column + 1) * size]
        relative = Path(SCENE, str(z), str(x), f"{y}.tif")
        write_tile(Path(folder, "imagery", relative), image[window], bounds, nodata=0)
        write_tile(Path(folder, "mask", relative), mask[None][window], bounds, nodata=None)
        written.append((x, y, z))
    return written


def write_folder(folder: Path, experiment: Path | None = None, tiles: int = 8, size: int = 128) -> int:
    """Write `folder` as SageMaker writes /opt/ml for a job with image and mask channels; return the number of pairs.

    Raises FileExistsError if `folder` contains results of an earlier run, from which training would resume.
    """
    config = folder / "input/config"
    experiments = folder / "input/data/config"
    results = [folder / name for name in ("model", "output/data", "checkpoints")]
    for path in (config, experiments, *results):
        path.mkdir(parents=True, exist_ok=True)
    for path in results:
        if any(path.iterdir()):
            raise FileExistsError(f"{path}: holds files of an earlier run; name another folder or empty this one")
    if experiment is not None:
        shutil.copy(experiment, experiments)
    channel = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"}
    channels = {"config": {"TrainingInputMode": "File"}, "imagery": channel, "mask": channel}
    (config / "inputdataconfig.json").write_text(json.dumps(channels, indent=2) + "\n")
    (config / "hyperparameters.json").write_text("{}\n")
    return len(write_tiles(folder / "input/data", tiles, size))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m robosat_pink.sample", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made if missing; takes the place of /opt/ml")
    parser.add_argument("--experiment", type=Path, metavar="FILE", help="experiment file to put into it")
    parser.add_argument("--tiles", type=int, default=8, metavar="N", help="tiles a side (default: 8)")
    parser.add_argument("--size", type=int, default=128, metavar="PIXELS", help="of a tile (default: 128)")
    arguments = parser.parse_args(argv)
    try:
        pairs = write_folder(arguments.folder, arguments.experiment, arguments.tiles, arguments.size)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{arguments.folder}: {pairs} pairs of image and mask tiles")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
