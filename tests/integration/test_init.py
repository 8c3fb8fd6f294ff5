"""`init`: the experiment that it drafts for a folder or bucket passes its check; where none can, it says so in words.

The situations are those that people have; tiles are tiny. `check` runs as a user would see it, but times no network.
"""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from conftest import S3Server, write_tile
from robosat_pink import check
from robosat_pink.config import Config, load_config
from robosat_pink.drafting import draft
from robosat_pink.drafting.draft import Draft
from robosat_pink.init import PACKAGE, main, train_command

SIDE = 32
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with nothing in it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(check, "step_seconds", lambda *_: 0.5)
    return folder


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Draft: exit code, and what was said. Where it failed, no file is left."""

    def run(*arguments: str) -> tuple[int, str]:
        before = {path.name for path in here.iterdir()}
        code = main(arguments)
        left = {path.name for path in here.iterdir()} - before
        assert left == (set() if code else {"mine.yml"})
        return code, capsys.readouterr().out

    return run


def drafted(run: Run, *arguments: str) -> tuple[Config, str, str]:
    """The experiment, its text, and what was said."""
    code, said = run(*arguments)
    assert code == 0, said
    assert "checked; nothing was trained" in said
    return load_config("mine.yml"), Path("mine.yml").read_text(), said


def refused(run: Run, code: int, *arguments: str) -> str:
    """What the error says, which is the last line."""
    ended, said = run(*arguments)
    *_, last = said.splitlines()
    assert (ended, last[:7]) == (code, "error: "), said
    return last


def labels(x: int, y: int, classes: int = 2) -> np.ndarray:
    """(H, W) uint8: every class in each tile."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for number in range(1, classes):
        mask[SIDE * number // classes + (x + y) % 3 :] = number
    return mask


def image(x: int, y: int, bands: int = 4, dtype: str = "uint16", high: float = 9000) -> np.ndarray:
    """(C, H, W) with as many values as real images have."""
    shape = (bands, SIDE, SIDE)
    return (np.random.default_rng(100 * x + y).uniform(0.1 * high, high, shape)).astype(dtype)


def write(
    folder: str,
    make: Callable[[int, int], np.ndarray],
    zoom: int = 10,
    tiles: tuple[range, range] = (range(100, 103), range(200, 203)),
    **profile: Any,
) -> None:
    """Tiles of 3 x 3 neighbours in folder/zoom/x/y.tif."""
    for x in tiles[0]:
        for y in tiles[1]:
            write_tile(Path(folder, str(zoom), str(x), f"{y}.tif"), make(x, y), **profile)


FEW = (range(100, 102), range(200, 202))


def write_both(images: str = "tiles/imagery/a", masks: str = "tiles/masks/b", **options: Any) -> None:
    write(images, image, **options)
    write(masks, labels, **options)


def test_folder_with_imagery_and_masks_becomes_an_experiment_with_a_comment_for_each_choice(run: Run) -> None:
    write_both()
    config, text, said = drafted(run, "tiles")
    assert (config.dataset.image_bucket, config.dataset.mask_bucket) == ("./tiles/imagery", "./tiles/masks")
    assert config.dataset.imagery_directory_regex == config.dataset.mask_directory_regex == ".*"
    assert (config.dataset.split.by, config.dataset.split.zoom) == ("block", 9)
    assert [(named.name, named.values) for named in config.classes] == [("class 1", (1,))]
    (channel,) = config.channels
    assert (channel.bands, channel.scale, channel.mean, channel.std) == ((1, 2, 3, 4), 10000, "auto", "auto")
    assert (config.model.name, config.model.recipe, config.model.tile_size) == ("unet", "strong", SIDE)
    assert "mean, std and scale fit" in said
    lines = text.splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r"  [\w-]", line)]
    assert len(keys) >= 9
    assert all(lines[number - 1].startswith("  # ") for number in keys)


def test_what_could_not_be_told_begins_with_todo_in_the_file_and_in_the_log(run: Run) -> None:
    write_both()
    _, text, said = drafted(run, "tiles")
    todo = "the masks do not say what 1 stands for: give each class its name"
    assert f"# TODO: {todo}" in text
    assert f"TODO: classes: {todo}" in said
    assert "what is yours to decide begins with TODO there: 1" in said
    assert said.splitlines()[-1] == (
        "to train: mkdir -p job/input/data/config job/checkpoints; cp mine.yml job/input/data/config; "
        f"{train_command(PACKAGE, Path(sys.prefix))}"
    )


def test_last_line_trains_where_it_is_read(here: Path) -> None:
    """In a clone's folder or beside it, in an image, where only the package is installed."""
    clone, image, elsewhere = (here / name for name in ("clone", "image", "elsewhere"))
    for folder in (clone / "robosat_pink", image / "venv", elsewhere / "venv"):
        folder.mkdir(parents=True)
    for folder in (clone, image):
        (folder / "start.sh").touch()
    base = "SAGEMAKER_BASE_DIR=$PWD/job"
    environments = {folder: folder / "venv" for folder in (clone, image, elsewhere)}
    in_clone = clone / "robosat_pink"
    assert train_command(in_clone, environments[clone]) == f"{base} bash clone/start.sh train"
    installed = image / "venv/lib/robosat_pink"
    assert train_command(installed, environments[image]) == (
        'docker run --rm -v "$PWD/job:/opt/ml" IMAGE train, with --gpus all where there is a GPU'
    )
    installed = elsewhere / "venv/lib/robosat_pink"
    assert train_command(installed, environments[elsewhere]) == f"{base} python -m robosat_pink.train"
    os.chdir(clone)  # the fixture changes back
    assert train_command(in_clone, environments[clone]) == f"{base} bash start.sh train"


def test_error_in_a_draft_names_the_file_that_the_user_would_have(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_both()
    monkeypatch.setattr(draft, "draft", lambda *_: Draft("model: {epoch: 1}\n", ()))
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")  # and no other file is written for it
    code, said = run("tiles")
    assert code == 2
    assert "\nmine.yml: model.epoch = 1: no such key" in said


def test_name_of_the_masks_band_and_their_palette_name_and_paint_the_class(run: Run) -> None:
    write_both()
    for path in Path("tiles/masks").rglob("*.tif"):
        with rasterio.open(path, "r+") as file:
            file.descriptions = ["snow"]
            file.write_colormap(1, {0: (0, 0, 0), 1: (255, 0, 0)})
    config, text, _ = drafted(run, "tiles")
    assert (config.classes[0].name, config.classes[0].color) == ("snow", "#ff0000")
    assert "TODO" not in text.partition("\n\n")[2]


def test_tags_of_predicted_tiles_name_their_classes(run: Run) -> None:
    write("tiles/imagery/a", image)
    write("tiles/masks/b", lambda x, y: labels(x, y, 3))
    for path in Path("tiles/masks").rglob("*.tif"):
        with rasterio.open(path, "r+") as file:
            file.update_tags(CLASS_0="ground", CLASS_1="road", CLASS_2="house")
    config, _, _ = drafted(run, "tiles")
    assert [(named.name, named.values) for named in config.classes] == [
        ("ground", (0,)),
        ("road", (1,)),
        ("house", (2,)),
    ]


def test_three_values_are_three_classes_the_first_of_which_is_taken_for_the_background(run: Run) -> None:
    write("tiles/imagery/a", image)
    write("tiles/labels/b", lambda x, y: labels(x, y, 3))
    config, _, said = drafted(run, "tiles")
    assert [(named.name, named.values) for named in config.classes] == [
        ("background", (0,)),
        ("class 1", (1,)),
        ("class 2", (2,)),
    ]
    assert len({named.color for named in config.classes}) == 3
    assert "0 is taken for the background" in said


def test_255_beside_small_class_numbers_is_ignored_and_the_user_is_told(run: Run) -> None:
    def mask(x: int, y: int) -> np.ndarray:
        pixels = labels(x, y)
        pixels[4:6] = 255
        return pixels

    write("tiles/imagery/a", image)
    write("tiles/masks/b", mask)
    config, _, said = drafted(run, "tiles")
    assert config.dataset.ignore_values == (255,)
    assert config.classes[0].values == (1,)
    assert "TODO: dataset.ignore_values: 255 is taken to stand for no class" in said


def test_0_and_255_are_background_and_a_class(run: Run) -> None:
    write("tiles/imagery/a", image)
    write("tiles/masks/b", lambda x, y: labels(x, y) * 255)
    config, _, _ = drafted(run, "tiles")
    assert (config.classes[0].values, config.dataset.ignore_values) == ((255,), ())


def test_classes_beside_a_hidden_background_are_written_with_the_way_to_learn_it(run: Run) -> None:
    write("tiles/imagery/a", image)
    write("tiles/masks/b", lambda x, y: labels(x, y, 3), nodata=0)
    config, _, said = drafted(run, "tiles")
    assert [named.values for named in config.classes] == [(1,), (2,)]
    assert "the masks declare 0 as nodata" in said
    assert "gdal_edit.py -unsetnodata FILE" in said


@pytest.mark.parametrize(
    ("mask", "profile", "words"),
    [
        (labels, {"nodata": 0}, "hold 1 only: the masks declare 0 as nodata"),
        (lambda x, y: 0 * labels(x, y), {}, "the 9 masks read, of 9, hold 0 only: choose masks"),
        (lambda x, y: np.stack([labels(x, y)] * 2), {}, "a mask of 2 bands; accepted: one band of class numbers"),
        (lambda x, y: labels(x, y) / np.float32(2), {}, "mask value 0.5; accepted: whole class numbers"),
        (lambda x, y: np.arange(SIDE**2, dtype="uint16").reshape(SIDE, SIDE) % 300, {}, "at most 255 classes"),
        (lambda x, y: np.uint8([0, 1, 2, 253, 254, 255])[labels(x, y, 6)], {}, "as a lossy format or resampling"),
    ],
)  # fmt: skip
def test_masks_that_cannot_be_learnt_are_refused(
    run: Run, mask: Callable[[int, int], np.ndarray], profile: dict[str, Any], words: str
) -> None:
    write("tiles/imagery/a", image)
    write("tiles/masks/b", mask, **profile)
    assert words in refused(run, 3, "tiles")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_masks_in_a_lossy_format_or_in_colors_are_refused(run: Run, suffix: str) -> None:
    write_both()
    for path in Path("tiles/masks").rglob("*.tif"):
        pixels = labels(1, 1) * 255
        picture = Image.fromarray(pixels if suffix == "jpg" else np.stack([pixels, pixels * 0, pixels], -1))
        picture.save(path.with_suffix(f".{suffix}"))
        path.unlink()
    words = {"jpg": "a mask in a lossy format (JPEG)", "png": "painted in colors"}
    assert words[suffix] in refused(run, 3, "tiles")


def rgba(x: int, y: int) -> np.ndarray:
    pixels = image(x, y, dtype="uint8", high=250)
    pixels[3], pixels[3, :4], pixels[3, 4] = 255, 0, 100  # 3 % are an edge
    return pixels


@pytest.mark.parametrize(
    ("make", "bands", "scale"),
    [
        (rgba, (1, 2, 3), 255),
        (lambda x, y: image(x, y, 3, "float32", 1), (1, 2, 3), 1),
        (lambda x, y: image(x, y, 2, "uint16", 60000), (1, 2), 65535),
        (lambda x, y: image(x, y, 1, "int16", 9000), (1,), 10000),
        (lambda x, y: image(x, y, 3, "uint8" if x % 2 else "uint16", 200), (1, 2, 3), "auto"),
    ],
    ids=["rgba", "reflectances", "bright", "one band", "two types"],
)
def test_bands_and_scale_fit_the_images(
    run: Run, make: Callable[[int, int], np.ndarray], bands: tuple[int, ...], scale: float | str
) -> None:
    write("tiles/imagery/a", make)
    write("tiles/masks/b", labels)
    config, _, said = drafted(run, "tiles")
    assert (config.channels[0].bands, config.channels[0].scale) == (bands, scale)
    assert "mean, std and scale fit" in said


def test_alpha_that_holds_more_than_a_mask_is_data_and_the_user_is_told(run: Run) -> None:
    def near_infrared(x: int, y: int) -> np.ndarray:
        pixels = image(x, y, 4, "uint8", 250)
        if (x, y) == (101, 201):
            pixels[3] = 0  # a tile of water
        return pixels

    write("tiles/imagery/a", near_infrared)
    write("tiles/masks/b", labels)
    config, _, said = drafted(run, "tiles")
    assert config.channels[0].bands == (1, 2, 3, 4)
    assert "TODO: channels: band 4 is tagged as alpha, but holds values such as" in said


def test_scale_and_offset_of_the_files_are_applied_where_all_have_them(run: Run) -> None:
    write_both()
    for number, path in enumerate(sorted(Path("tiles/imagery").rglob("*.tif"))):
        with rasterio.open(path, "r+") as file:
            file.scales, file.offsets = [0.0001] * 4, [-0.1 * (number % 2)] * 4
    config, _, _ = drafted(run, "tiles")
    assert config.channels[0].scale == "tags"


def test_zeros_that_no_file_declares_as_missing_are_told(run: Run) -> None:
    def wedge(x: int, y: int) -> np.ndarray:
        pixels = image(x, y, 3, "uint8", 250)
        pixels[:, :8] = 0
        return pixels

    write("tiles/imagery/a", wedge)
    write("tiles/masks/b", labels)
    config, _, said = drafted(run, "tiles")
    assert config.dataset.missing == "auto"
    assert "TODO: dataset.missing: 25.00% of the pixels are 0 in all bands" in said


def test_images_that_differ_in_their_bands_are_refused(run: Run) -> None:
    write("tiles/imagery/a", lambda x, y: image(x, y, 3 if (x, y) == (101, 202) else 4))
    write("tiles/masks/b", labels)
    assert re.search("has the bands 1, 2, 3, .* has 1, 2, 3, 4|has 1, 2, 3; take", refused(run, 3, "tiles"))


def test_tiles_directly_below_imagery_and_masks_are_named_by_their_folders(run: Run) -> None:
    write_both("tiles/imagery", "tiles/masks")
    config, _, _ = drafted(run, "tiles")
    assert config.dataset.image_bucket == config.dataset.mask_bucket == "./tiles"
    assert (config.dataset.imagery_directory_regex, config.dataset.mask_directory_regex) == ("imagery$", "masks$")


def test_tiles_directly_below_the_named_folders_are_found_from_inside(run: Run, here: Path) -> None:
    write_both("../x/15", "../x/labels")
    config, _, _ = drafted(run, "../x/15", "--masks", f"{here.parent}/x/labels")
    assert (config.dataset.image_bucket, config.dataset.imagery_directory_regex) == ("../x", "15$")
    assert (config.dataset.mask_bucket, config.dataset.mask_directory_regex) == (f"{here.parent}/x", "labels$")


def test_two_zooms_of_one_ground_are_split_by_blocks(run: Run) -> None:
    write_both()
    for folder, make in (("tiles/imagery/a", image), ("tiles/masks/b", labels)):
        write(folder, make, zoom=11, tiles=(range(200, 204), range(400, 404)))
    config, _, _ = drafted(run, "tiles")
    assert config.dataset.split.by == "block"
    assert config.dataset.split.zoom == 10


def test_tiles_far_apart_are_split_one_by_one(run: Run) -> None:
    apart = (range(100, 140, 10), range(200, 240, 10))
    write("tiles/imagery/a", image, tiles=apart)
    write("tiles/masks/b", labels, tiles=apart)
    config, _, _ = drafted(run, "tiles")
    assert config.dataset.split.by == "tile"


def test_days_of_one_tile_pair_with_their_own_masks_and_are_split_by_day(run: Run) -> None:
    one_tile = (range(100, 101), range(200, 201))
    for day in ("20180401", "20180501", "20180601"):
        write(f"tiles/imagery/{day}_tiled", image, tiles=one_tile)
        write(f"tiles/masks/ASO_{day}_binary", labels, tiles=one_tile)
    config, _, said = drafted(run, "tiles")
    assert config.dataset.imagery_directory_regex == r".*?(?<!\d)(?P<day>\d{8})(?!\d)"
    assert config.dataset.split.by == "group"
    assert "pairs: 3 (train 2, val 1, holdout 0)" in said


def test_one_tile_alone_is_refused(run: Run) -> None:
    one_tile = (range(100, 101), range(200, 201))
    write("tiles/imagery/a", image, tiles=one_tile)
    write("tiles/masks/b", labels, tiles=one_tile)
    assert "the 1 pairs lie on 1 ground tile(s), too few for 2 splits; add tiles" in refused(run, 3, "tiles")


def test_second_masks_that_no_name_tells_apart_are_refused_with_a_way_out(run: Run) -> None:
    write_both()
    write("tiles/masks/c", labels)
    said = refused(run, 3, "tiles")
    assert "two masks for the image a/10/100/200.tif: b/10/100/200.tif and c/10/100/200.tif" in said
    assert "--masks FOLDER" in said
    config, _, _ = drafted(run, "tiles", "--masks", "tiles/masks/c")
    assert config.dataset.mask_directory_regex == "c$"


def test_content_tells_images_from_masks_where_names_do_not(run: Run) -> None:
    write_both("tiles/20180528_tiled", "tiles/ASO_20180528_binary")
    config, _, _ = drafted(run, "tiles")
    assert config.dataset.imagery_directory_regex == "20180528_tiled$"
    assert config.dataset.mask_directory_regex == "ASO_20180528_binary$"


def test_name_tells_where_both_may_be_masks_by_content(run: Run) -> None:
    write("tiles/pictures/a", lambda x, y: labels(x, y).astype(np.uint16) * 250)
    write("tiles/LABELS/b", labels)
    config, _, _ = drafted(run, "tiles")
    assert (config.dataset.image_bucket, config.dataset.mask_bucket) == ("./tiles/pictures", "./tiles/LABELS")


def test_what_neither_content_nor_name_tells_is_asked_for(run: Run) -> None:
    write("tiles/a", labels)
    write("tiles/b", labels)
    said = refused(run, 2, "tiles")
    assert "it cannot be told which are images and which masks" in said
    assert said.endswith("such as --images ./tiles/a --masks ./tiles/b")
    config, _, _ = drafted(run, "tiles", "--images", "./tiles/a")
    assert (config.dataset.imagery_directory_regex, config.dataset.mask_directory_regex) == ("a$", "b$")


def test_name_that_contradicts_the_content_is_asked_about(run: Run) -> None:
    write_both("tiles/masks", "tiles/imagery")
    assert "by their content other directories are masks than by their names" in refused(run, 2, "tiles")


def test_images_in_several_folders_are_asked_about(run: Run) -> None:
    write_both()
    write("tiles/elevation/a", lambda x, y: image(x, y, 1, "float32", 3000))
    said = refused(run, 2, "tiles")
    assert (
        "the images lie in several folders: ./tiles/elevation/a (9 tiles, 1 band of float32); ./tiles/imagery" in said
    )
    config, _, _ = drafted(run, "tiles", "--images", "tiles/imagery")
    assert config.dataset.image_bucket == "./tiles/imagery"


@pytest.mark.parametrize(("kept", "missing"), [("imagery", "masks"), ("masks", "images")])
def test_one_side_alone_is_refused_and_the_argument_named(run: Run, kept: str, missing: str) -> None:
    write(f"tiles/{kept}/a", image if kept == "imagery" else labels)
    assert f"found no {missing}, only ./tiles/{kept}/a (9 tiles, " in refused(run, 3, "tiles")


def test_masks_of_other_ground_fail_the_check_and_nothing_is_written(run: Run) -> None:
    for number, (folder, make) in enumerate((("tiles/imagery/a", image), ("tiles/masks/b", labels))):
        write(folder, make, transform=rasterio.transform.from_origin(10000 * number, 64, 1, 1))
    code, said = run("tiles")
    assert code == 3
    assert "the draft does not pass this check, and is not written\nerror: " in said
    assert "shows other ground" in said


def test_images_and_masks_without_a_common_tile_are_refused(run: Run) -> None:
    write("tiles/imagery/a", image)
    write("tiles/masks/b", labels, zoom=11)
    said = refused(run, 3, "tiles")
    assert "no image has a mask of the same z/x/y" in said
    assert "use one zoom" in said


def test_folder_without_tiles_is_refused_by_an_example(run: Run, here: Path) -> None:
    (here / "tiles").mkdir()
    assert "no file lies there" in refused(run, 3, "tiles")
    write_tile(here / "tiles/scene.tif", image(1, 1))
    assert "found scene.tif, expected ZOOM/X/Y.tif" in refused(run, 3, "tiles")


def test_images_without_a_valid_pixel_are_refused(run: Run) -> None:
    write("tiles/imagery/a", lambda x, y: 0 * image(x, y), nodata=0)
    write("tiles/masks/b", labels)
    assert "no valid pixel, like the other 8 images read; check what they declare as nodata, 0" in refused(
        run, 3, "tiles"
    )


def test_damaged_tile_is_named(run: Run, here: Path) -> None:
    write_both()
    (here / "tiles/imagery/a/10/100/200.tif").write_bytes(b"II*\0")
    assert "imagery/a/10/100/200.tif: not a readable tile" in refused(run, 3, "tiles")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "names no folder of tiles; accepted: FOLDER or s3://BUCKET/PREFIX"),
        (["a", "b"], 2, "unrecognized arguments: b"),
        (["nowhere"], 3, "nowhere: no such folder"),
        (["here.txt"], 3, "here.txt: is a file"),
        (["tiles", "--to", "here.txt"], 2, "accepted: a name that ends with .yml or .yaml"),
        (["tiles", "--to", "no/mine.yml"], 2, "there is no folder no"),
        (["tiles", "--to", "own.yml"], 2, "own.yml exists, and is not overwritten; name another file by --to FILE"),
        (["s3://user:secret@bucket"], 2, "s3://***: it holds a user or a password"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_read(
    run: Run, here: Path, arguments: list[str], code: int, words: str
) -> None:
    for name in ("here.txt", "own.yml"):
        (here / name).write_text("mine")
    said = refused(run, code, *arguments)
    assert words in said
    assert "secret" not in said
    assert (here / "own.yml").read_text() == "mine"


def test_other_name_is_written_where_it_is_asked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_both("tiles/my 'images'/a: b", "tiles/masks")
    assert main(["tiles", "--to", "my own.yml"]) == 0
    assert load_config("my own.yml").dataset.image_bucket == "./tiles/my 'images'"
    assert "cp 'my own.yml' job/input/data/config; " in capsys.readouterr().out
    assert main(["tiles", "--to", "my own.yml"]) == 2


@pytest.mark.parametrize("prefix", ["s3://pictures", "s3://pictures/below"])
def test_buckets_are_read_as_folders_are(run: Run, s3: S3Server, prefix: str) -> None:
    write_both(tiles=FEW)
    s3.make_bucket("pictures")
    s3.upload(
        Path("tiles"), "pictures", prefix.removeprefix("s3://pictures").removeprefix("/") + "/" * ("/b" in prefix)
    )
    config, _, _ = drafted(run, prefix)
    assert (config.dataset.image_bucket, config.dataset.mask_bucket) == (f"{prefix}/imagery", f"{prefix}/masks")


def test_two_buckets_of_days_pair_by_day(run: Run, s3: S3Server) -> None:
    for day in ("20180528", "20180601"):
        write_both(f"imagery/{day}_181148_tiled", f"snow/ASO_3M_{day}_binary", tiles=FEW)
    for bucket in ("imagery", "snow"):
        s3.make_bucket(bucket)
        s3.upload(Path(bucket), bucket)
    config, _, said = drafted(run, "--images", "s3://imagery", "--masks", "s3://snow/")
    assert (config.dataset.image_bucket, config.dataset.mask_bucket) == ("s3://imagery", "s3://snow")
    assert "(?P<day>" in config.dataset.imagery_directory_regex
    assert "pairs: 8 " in said
    s3.make_bucket("empty")
    assert "s3://empty: no file lies there; expected ZOOM/X/Y.tif" in refused(run, 3, "s3://empty", "--to", "other.yml")


SCENES = {
    "s2_virginia_water": ("block", (1, 2, 3, 4), 10000),
    "l7_everest_glacier": ("block", (1, 2, 3, 4), 255),
    "l8_himachal_snow": ("block", (1, 2, 3, 4), 10000),
    "modis_patagonia_snow_20150*": ("group", (1, 2, 3, 4), 10000),
}


@pytest.mark.parametrize("scene", SCENES)
def test_real_scenes_become_experiments(run: Run, here: Path, shared: Path, scene: str) -> None:
    columns = ["2373", "2374"] if scene.startswith("s2") else ["*"]  # its tiles are large
    for kind in ("imagery", "mask"):
        for path in (path for column in columns for path in (shared / "data" / kind).glob(f"{scene}/*/{column}")):
            link = here / "tiles" / path.relative_to(shared / "data")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    config, _, said = drafted(run, "tiles")
    by, bands, scale = SCENES[scene]
    assert (config.dataset.split.by, config.channels[0].bands, config.channels[0].scale) == (by, bands, scale)
    assert "mean, std and scale fit" in said


def test_images_of_one_real_scene_alone_are_refused(run: Run, shared: Path) -> None:
    said = refused(run, 3, str(shared / "data/imagery/l8_himachal_snow"))
    assert "found no masks" in said


CASES = {
    "256-classes": (3, "at most 255 classes"),
    "jpeg-mask": (3, "a mask in a lossy format (JPEG)"),
    "jpeg-with-mask-sidecar": (0, "50.00% of all pixels have no data"),
    "mask-in-colour": (3, "a mask of 3 bands"),
    "mask-nodata-is-background": (0, "gdal_edit.py -unsetnodata"),
    "mask-one-band-a-class": (3, "a mask of 2 bands"),
    "masks-numbered-from-the-south": (3, "TMS"),
    "names-at-2x": (0, "pairs: 6 "),
    "near-infrared-tagged-alpha": (0, "band 4 is tagged as alpha"),
    "no-directory-level": (0, "pairs: 6 "),
    "offset-in-half-of-the-tiles": (0, "by the files' own scale and offset"),
    "png-mask-ignores-255": (0, "255 is taken to stand for no class"),
    "south-up-images-plain-masks": (0, "pairs: 6 "),
    "uint16-zero-is-a-value": (0, "0.00% of all pixels have no data"),
    "uint8-and-uint16": (0, "the images are of uint16 and uint8"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_cases_become_experiments_or_are_refused(run: Run, shared: Path, case: str) -> None:
    code, words = CASES[case]
    ended, said = run(str(shared / "cases" / case))
    assert ended == code
    assert words in said
