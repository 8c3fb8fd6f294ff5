"""Inputs that people really have, and that other tools train on wrongly without a word: by `check` and by `train`.

From folders and from buckets. The situations are from public bug reports; the pixels are made up here.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from PIL import Image
from rasterio.transform import from_bounds

from conftest import S3Server, write_tile
from robosat_pink.train import main

SIDE = 64
EDGE = 20037508.342789244  # of the map, metres
TILES = [(5524, 12666), (5524, 12667), (5525, 12666), (5525, 12667), (5526, 12666), (5527, 12666)]
Run = Callable[..., tuple[int, str]]


def ground(x: int, y: int, zoom: int = 15) -> rasterio.Affine:
    """Of a tile numbered from the north, in EPSG:3857."""
    size = 2 * EDGE / 2**zoom
    west, north = -EDGE + x * size, EDGE - y * size
    return from_bounds(west, north - size, west + size, north, SIDE, SIDE)


def labels(x: int, y: int) -> np.ndarray:
    """(H, W): 1 in the rows above a line that differs from tile to tile, and in a corner, so that no turn fits."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[: 10 + (x + y) % 7] = 1
    mask[-8:, :8] = 1
    return mask


def numbers(mask: np.ndarray, bands: int = 4, low: int = 1200, high: int = 6500) -> np.ndarray:
    """An image (C, H, W) whose bright pixels are the mask's."""
    return np.repeat(np.where(mask > 0, high, low)[None], bands, axis=0).astype(np.uint16)


class Case:
    """Tiles of a scene in imagery/ and mask/, and the experiment to train on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dataset: dict[str, Any] = {"train_percent": 0.6}
        self.classes: list[dict[str, Any]] = [{"name": "snow"}]
        self.channels: list[dict[str, Any]] = [{"bands": [1, 2, 3, 4], "scale": 10000}]

    def path(self, kind: str, x: int, y: int, suffix: str = "tif") -> Path:
        path = self.folder / kind / "scene" / "15" / str(x) / f"{y}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def image(self, x: int, y: int, pixels: np.ndarray | None = None, **profile: Any) -> Path:
        pixels = numbers(labels(x, y)) if pixels is None else pixels
        return write_tile(self.path("imagery", x, y), pixels, **({"transform": ground(x, y)} | profile))

    def mask(self, x: int, y: int, pixels: np.ndarray | None = None, **profile: Any) -> Path:
        pixels = labels(x, y) if pixels is None else pixels
        return write_tile(self.path("mask", x, y), pixels, **({"transform": ground(x, y)} | profile))

    def picture(self, kind: str, x: int, y: int, pixels: np.ndarray, suffix: str, **options: Any) -> None:
        """(H, W) or (H, W, 3) in a format without a georeference."""
        Image.fromarray(pixels).save(self.path(kind, x, y, suffix), **options)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path / "case")


@pytest.fixture(params=["folder", "bucket"])
def run(request: pytest.FixtureRequest, opt_ml: Path, case: Case, capsys: pytest.CaptureFixture[str]) -> Run:
    """Check or train a case: exit code, and what was said. The failure file says why a training failed."""
    server: S3Server | None = request.getfixturevalue("s3") if request.param == "bucket" else None

    def run(verb: str, *overrides: str) -> tuple[int, str]:
        where = {"image_bucket": str(case.folder / "imagery"), "mask_bucket": str(case.folder / "mask")}
        if server:
            where = {"image_bucket": "case-imagery", "mask_bucket": "case-mask"}
            for bucket, kind in (("case-imagery", "imagery"), ("case-mask", "mask")):
                server.make_bucket(bucket)
                server.upload(case.folder / kind, bucket)
        experiment = {
            "dataset": where | case.dataset,
            "classes": case.classes,
            "channels": case.channels,
            "model": {
                "name": "albunet",
                "encoder": "resnet18",
                "num_filters": 4,
                "loss": "cross_entropy",
                "batch_size": 2,
                "tile_size": SIDE,
                "epochs": 1,
                "lr": 0.0001,
            },
            "runtime": {"workers": 0, "device": "cpu", "precision": "fp32"},
        }
        path = case.folder / "experiment.yml"
        path.write_text(yaml.safe_dump(experiment))
        code = main([{"check": "--check", "train": "--config"}[verb], str(path), *overrides])
        said = capsys.readouterr().out
        failure = opt_ml / "output/failure"
        assert failure.exists() == (verb == "train" and code != 0)
        if failure.exists():
            assert failure.read_text().splitlines()[0] in said
        return code, said

    return run


both_verbs = pytest.mark.parametrize("verb", ["check", "train"])


def no_data(said: str) -> str:
    match = re.search(r"([\d.]+)% of all pixels have no data", said)
    assert match is not None
    return match[1]


@both_verbs
def test_mask_of_one_band_a_class_is_refused(run: Run, case: Case, verb: str) -> None:
    for x, y in TILES:
        case.image(x, y)
        case.mask(x, y, np.stack([1 - labels(x, y), labels(x, y)]))
    code, said = run(verb)
    assert code == 3
    assert re.search(r"error: \S+mask/scene/15/552\d/1266\d\.tif: a mask of 2 bands; accepted: one band", said)
    assert "write the number of each pixel's class into one band" in said


@both_verbs
def test_mask_painted_in_colors_is_refused(run: Run, case: Case, verb: str) -> None:
    case.classes = [{"name": "background", "values": [0]}, {"name": "building", "values": [255]}]
    for x, y in TILES:
        case.image(x, y)
        case.picture("mask", x, y, np.stack([labels(x, y) * 255, *[np.zeros((SIDE, SIDE), np.uint8)] * 2], -1), "png")
    code, said = run(verb)
    assert code == 3
    assert re.search(r"1266\d\.png: a mask of 3 bands; accepted: one band of class numbers", said)
    assert "painted in colors" in said


@both_verbs
def test_mask_as_jpeg_is_refused_without_advice_that_ruins_labels(run: Run, case: Case, verb: str) -> None:
    for x, y in TILES:
        case.image(x, y)
        case.picture("mask", x, y, labels(x, y) * 255, "jpg")
    code, said = run(verb)
    assert code == 3
    assert re.search(r"1266\d\.jpg: a mask in a lossy format \(JPEG\)", said)
    assert "classes[].values" not in said


@both_verbs
def test_masks_numbered_from_the_south_are_refused_with_both_bounds(run: Run, case: Case, verb: str) -> None:
    for x in (17000, 17001):
        for y in range(16382, 16386):  # around the equator every number has a partner: 32767 - y
            case.image(x, y)
            case.mask(x, y, transform=ground(x, 2**15 - 1 - y))
    code, said = run(verb)
    assert code == 3
    assert re.search(r"mask/scene/15/1700\d/1638\d\.tif: shows other ground: its bounds are \(.*, the image's \(", said)
    assert "TMS" in said


def water(x: int, y: int) -> np.ndarray:
    """Red, green, blue and near infrared (4, H, W), the last one 0 on water."""
    pixels = np.full((4, SIDE, SIDE), 120, np.uint8)
    pixels[3] = np.where(labels(x, y) == 1, 0, 180)
    return pixels


@both_verbs
def test_near_infrared_that_gdal_tags_as_alpha_is_data_where_it_is_asked_for(run: Run, case: Case, verb: str) -> None:
    case.channels = [{"bands": [1, 2, 3, 4]}]
    for x, y in TILES:
        with rasterio.open(case.image(x, y, water(x, y))) as file:
            assert file.colorinterp[3].name == "alpha"
        case.mask(x, y)
    code, said = run(verb)
    assert code == 0
    if verb == "check":
        assert no_data(said) == "0.00"
    else:
        assert "train_recall=nan" not in said  # undefined if all water were ignored


@both_verbs
def test_class_that_the_masks_nodata_tag_hides_is_told_loudly(run: Run, case: Case, verb: str, opt_ml: Path) -> None:
    case.classes = [{"name": "background"}, {"name": "road"}, {"name": "house"}]
    for x, y in TILES:
        mask = labels(x, y)
        mask[40:44] = 2
        case.image(x, y, numbers(mask))
        case.mask(x, y, mask, nodata=0)
    code, said = run(verb)
    assert code == 0
    warning = "warning: no pixel of the 4 training tiles is background (mask value 0): the masks declare"
    assert warning in said
    assert "gdal_edit.py -unsetnodata" in said
    if verb == "train":
        assert said.index(warning) < said.index("phase=train")
        assert "no pixel of the 4 training tiles is background" in (opt_ml / "output/data/report.html").read_text()


@both_verbs
def test_mask_file_beside_a_jpeg_says_where_it_has_no_data(run: Run, case: Case, verb: str) -> None:
    case.channels = [{"bands": [1, 2, 3]}]
    for x, y in TILES:
        case.picture("imagery", x, y, np.repeat(labels(x, y)[..., None] * 100 + 50, 3, axis=2), "jpg", quality=95)
        valid = np.zeros((SIDE, SIDE), np.uint8)
        valid[:, : SIDE // 2] = 255
        write_tile(case.path("imagery", x, y, "jpg.msk"), valid)
        case.mask(x, y)
    code, said = run(verb)
    assert code == 0
    if verb == "check":
        assert no_data(said) == "50.00"


def with_zeros(x: int, y: int, bands: int) -> np.ndarray:
    return numbers(labels(x, y), bands, low=0, high=200)


@pytest.mark.slow
@both_verbs
def test_zero_of_one_uint16_band_is_a_value(run: Run, case: Case, verb: str) -> None:
    case.channels = [{"bands": [1], "scale": 100}]
    for x, y in TILES:
        case.image(x, y, with_zeros(x, y, 1))
        case.mask(x, y)
    code, said = run(verb)
    assert code == 0
    assert "count as missing" not in said
    if verb == "check":
        assert no_data(said) == "0.00"


@both_verbs
def test_what_counts_as_missing_by_rule_is_told_with_its_share_and_the_key(run: Run, case: Case, verb: str) -> None:
    for x, y in TILES:
        pixels = numbers(labels(x, y))
        pixels[:, :, :16] = 0
        case.image(x, y, pixels)
        case.mask(x, y)
    code, said = run(verb)
    assert code == 0
    assert (
        "25.00% of the pixels read count as missing: they are 0 in all bands of an image that declares no nodata"
        in said
    )
    assert "dataset.missing" in said


@pytest.mark.slow
@both_verbs
def test_statistics_of_uint8_and_uint16_are_of_what_the_network_is_fed(run: Run, case: Case, verb: str) -> None:
    """51 of 255 and 4000 of 10000: 0.2 in three of the four training tiles, or 0.4."""
    case.channels = [{"bands": [1, 2, 3]}]
    for number, (x, y) in enumerate(TILES):
        value, dtype = ((51, np.uint8), (4000, np.uint16))[number % 2]
        case.image(x, y, np.full((3, SIDE, SIDE), value, dtype))
        case.mask(x, y)
    code, said = run(verb)
    assert code == 0
    if verb == "check":
        (mean,) = set(re.findall(r"band \d: .* mean ([\d.]+), std", said))
        assert mean in ("0.2500", "0.3000", "0.3500")


@pytest.mark.slow
@both_verbs
def test_south_up_images_and_plain_masks_stay_row_on_row(run: Run, case: Case, verb: str) -> None:
    for x, y in TILES:
        north_up = ground(x, y)
        south_up = north_up * rasterio.Affine(1, 0, 0, 0, -1, SIDE)
        case.image(x, y, transform=south_up)
        case.picture("mask", x, y, labels(x, y), "png")
    assert run(verb)[0] == 0
    for image, mask in pixels_of(case):
        assert np.array_equal(image[0] > 3000, mask == 1)


def pixels_of(case: Case) -> list[tuple[np.ndarray, np.ndarray]]:
    from robosat_pink.config import ChannelConfig, ClassConfig, DatasetConfig
    from robosat_pink.datasets import TilePairs

    folders = DatasetConfig(image_bucket=str(case.folder / "imagery"), mask_bucket=str(case.folder / "mask"))
    pairs = TilePairs(folders, [ChannelConfig(bands=(1,))], [ClassConfig(name="snow")])
    return [(sample.image, sample.mask) for sample in pairs.__getitems__(range(len(pairs)))]


@pytest.mark.slow
@both_verbs
def test_offset_tags_in_half_of_the_tiles_are_told_and_can_be_applied(run: Run, case: Case, verb: str) -> None:
    for number, (x, y) in enumerate(TILES):
        shift = 1000 * (number % 2)
        with rasterio.open(case.image(x, y, numbers(labels(x, y)) + np.uint16(shift)), "r+") as file:
            file.scales, file.offsets = [0.0001] * 4, [-0.0001 * shift] * 4
        case.mask(x, y)
    code, said = run(verb)
    assert code == 0
    assert re.search(
        r"warning: the images differ: of the 4 training tiles, \d have \"uint16; 4 band\(s\); scale 0.0001, offset",
        said,
    )
    assert "channels[].scale: tags" in said


def test_offset_tags_are_applied_where_the_experiment_asks_for_it(run: Run, case: Case) -> None:
    test_offset_tags_in_half_of_the_tiles_are_told_and_can_be_applied(run, case, "check")
    shutil.rmtree(case.folder / "imagery" / "scene" / "15" / "5526")
    code, said = run("check", "channels.0.scale=tags")
    assert code == 0
    assert "the images differ" not in said
    assert "channels.0, valid pixels: by the files' own scale and offset" in said
    assert re.search(r"band 1: 2nd to 98th percentile 0\.12 to 0\.65", said)


@both_verbs
def test_layout_without_a_directory_level_is_explained_by_an_example(run: Run, case: Case, verb: str) -> None:
    for x, y in TILES:
        case.image(x, y)
        case.mask(x, y)
    for kind in ("imagery", "mask"):
        (case.folder / kind / "scene/15").rename(case.folder / kind / "15")
        (case.folder / kind / "scene").rmdir()
    code, said = run(verb)
    assert code == 3
    assert re.search(
        r"found (15/552\d/1266\d\.tif), expected DIRECTORY/\1: the tiles lie directly below the bucket", said
    )


@both_verbs
def test_names_at_2x_are_tiles_like_others(run: Run, case: Case, verb: str) -> None:
    for x, y in TILES:
        image = case.image(x, y)
        image.rename(image.with_name(f"{y}@2x.tif"))
        case.mask(x, y)
    code, said = run(verb)
    assert code == 0
    assert "pairs: 6 (train 4, val 2, holdout 0)" in said


@both_verbs
def test_255_of_a_png_mask_is_ignored_where_the_experiment_says_so(run: Run, case: Case, verb: str) -> None:
    for x, y in TILES:
        case.image(x, y)
        mask = labels(x, y)
        mask[20:28] = 255
        case.picture("mask", x, y, mask, "png")
    code, said = run(verb)
    assert code == 3
    assert "mask value 255 in 512 pixel(s)" in said
    assert "dataset.ignore_values" in said
    assert "nodata" not in said.partition("error: ")[2]


@pytest.mark.slow
@both_verbs
def test_values_to_ignore_count_nowhere(run: Run, case: Case, verb: str) -> None:
    case.dataset["ignore_values"] = [255]
    for x, y in TILES:
        case.image(x, y)
        mask = labels(x, y)
        mask[20:28] = 255
        case.picture("mask", x, y, mask, "png")
    code, said = run(verb)
    assert code == 0
    if verb == "check":
        assert no_data(said) == "12.50"


@both_verbs
def test_more_than_255_classes_are_refused_at_once(run: Run, case: Case, verb: str) -> None:
    case.classes = [{"name": f"c{number}"} for number in range(256)]
    for x, y in TILES:
        case.image(x, y)
        case.mask(x, y)
    code, said = run(verb)
    assert code == 2
    assert 'classes = "256 classes": accepted: at most 255 classes' in said
    assert "listed" not in said


@pytest.mark.slow
def test_model_card_reads_bands_by_description_in_the_values_that_were_learnt(
    run: Run, case: Case, opt_ml: Path
) -> None:
    case.channels = [{"bands": ["nir", "Red"], "scale": "tags"}]
    for number, (x, y) in enumerate(TILES):
        names = ["red", "NIR"][:: 1 - 2 * (number % 2)]
        pixels = np.stack([numbers(labels(x, y))[0] + (name == "NIR") for name in names])
        with rasterio.open(case.image(x, y, pixels), "r+") as file:
            file.descriptions, file.scales, file.offsets = names, [0.5, 0.5], [-1, -1]
        case.mask(x, y)
    code, said = run("train")
    assert code == 0
    assert "the images differ" not in said
    card = (opt_ml / "model/MODEL_CARD.md").read_text()
    assert "| bands | nir, Red of the files, in this order |" in card
    code_of_card = card.partition("```python\n")[2].partition("```")[0]
    found: dict[str, Any] = {}
    for path in (case.path("imagery", *TILES[0]), case.path("imagery", *TILES[1])):
        exec(code_of_card.replace("tile.tif", str(path)).replace("best.pth", str(opt_ml / "model/best.pth")), found)
        assert found["image"][:, 0, 0].tolist() == [3249.5, 3249]  # 6501 and 6500
        assert found["mask"].shape == (SIDE, SIDE)
