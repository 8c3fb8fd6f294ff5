"""`train --check`: what it says of an experiment is what an independent count of the files says."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml
from torch import Tensor, nn

from conftest import S3Server
from robosat_pink import check
from robosat_pink.config import ChannelConfig, ClassConfig, Config, DatasetConfig, ModelConfig, RuntimeConfig
from robosat_pink.container.quantities import count
from robosat_pink.datasets.normalisation import Moments
from robosat_pink.distributed.launcher import ProcessRank
from robosat_pink.distributed.process_group import World
from robosat_pink.errors import ContractError
from robosat_pink.sample import write_tiles
from robosat_pink.survey import Survey, balancing_weights, limit_line, suggested_classes
from robosat_pink.train import main
from robosat_pink.training.task import Compute

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
NAME = re.compile(r"(?P<scene>[^/]+)/(?P<z>\d+)/(?P<x>\d+)/(?P<y>\d+)\.tif")


@pytest.fixture(scope="module")
def buckets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as planet-snowcover's buckets: two days of imagery, their masks, and what pairs with nothing."""
    folder = tmp_path_factory.mktemp("buckets")
    days = {
        "20180528_161500_tiled": "ASO_3M_SD_USCATE_20180528_binary",
        "20180525_1a_tiled": "ASO_3M_SD_USCOGE_20180525_binary",
    }
    for seed, (images, masks) in enumerate(days.items()):
        write_tiles(folder / "made", tiles=4 + seed, size=64, seed=seed)
        shutil.copytree(folder / "made/imagery/20180528_sierra", folder / "planet-snowcover-imagery" / images)
        shutil.copytree(folder / "made/mask/20180528_sierra", folder / "planet-snowcover-snow" / masks)
        shutil.rmtree(folder / "made")
    first = sorted((folder / "planet-snowcover-imagery/20180528_161500_tiled").rglob("*.tif"))
    first[0].unlink()
    second = sorted((folder / "planet-snowcover-snow/ASO_3M_SD_USCOGE_20180525_binary").rglob("*.tif"))
    second[-1].unlink()
    return folder


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Survey]:
    """What a check has read."""
    kept: list[Survey] = []
    survey = check.survey
    monkeypatch.setattr(check, "survey", lambda *arguments: kept.append(survey(*arguments)) or kept[-1])
    monkeypatch.setattr(check, "step_seconds", lambda *_: 0.5)  # a network of 512 pixels takes its time
    return kept


def tiles_of(folder: Path, expression: str) -> dict[tuple[str, str, str], Path]:
    """z, x, y of every tile whose directory matches."""
    found = {}
    for path in folder.rglob("*.tif"):
        match = NAME.fullmatch(str(path.relative_to(folder)))
        assert match is not None
        if re.match(expression, match["scene"]):
            found[match["z"], match["x"], match["y"]] = path
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "smoke", "tuolumne-1", "gunnison-east"])
def test_counts_shares_and_statistics_are_those_of_an_independent_count(
    name: str,
    opt_ml: Path,
    buckets: Path,
    s3: S3Server,
    found: list[Survey],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tree = yaml.safe_load((EXPERIMENTS / f"{name}.yml").read_text())
    data, arguments = tree["dataset"], []
    if name in ("demo", "smoke"):  # the job's own channels, here in a bucket
        write_tiles(opt_ml / "made", tiles=8 if name == "demo" else 3, size=64)
        folders = opt_ml / "made/imagery", opt_ml / "made/mask"
        arguments = ["dataset.image_bucket=s3://sample-imagery", "dataset.mask_bucket=s3://sample-mask"]
        names = "sample-imagery", "sample-mask"
    else:
        names = data["image_bucket"], data["mask_bucket"]
        folders = buckets / names[0], buckets / names[1]
    for bucket, folder in zip(names, folders, strict=True):
        s3.make_bucket(bucket)
        s3.upload(folder, bucket)

    assert main(["--check", str(EXPERIMENTS / f"{name}.yml"), *arguments]) == 0
    said = capsys.readouterr().out

    images = tiles_of(folders[0], data.get("imagery_directory_regex", ".*"))
    masks = tiles_of(folders[1], data.get("mask_directory_regex", ".*"))
    pairs = sorted(images.keys() & masks.keys())
    train = round(data["train_percent"] * len(pairs))
    assert (
        f"pairs: {len(pairs)} (train {train}, val {len(pairs) - train}, holdout 0); without partner: "
        f"{count(len(images.keys() - masks.keys()), 'image')}, {count(len(masks.keys() - images.keys()), 'mask')}"
    ) in said
    scenes = {images[each].relative_to(folders[0]).parts[0] for each in pairs}
    for scene in scenes:
        assert f"  {scene}: {len(pairs)} pairs (train {train}, val {len(pairs) - train})" in said

    (survey,) = found
    assert len(survey.coverage.rows) == min(64, train)
    pixels, ignored, values = np.zeros(2, dtype=int), 0, []
    by_row = sorted(pairs, key=lambda each: tuple(map(int, each)))
    for row in survey.coverage.rows:
        with rasterio.open(images[by_row[row]]) as image, rasterio.open(masks[by_row[row]]) as mask:
            numbers, truth = image.read([1, 2, 3, 4]), mask.read(1)
        valid = (numbers != 0).any(axis=0)
        pixels += np.bincount(truth[valid], minlength=2)
        ignored += int((~valid).sum())
        values.append(numbers[:, valid])
    assert survey.coverage.pixels.tolist() == pixels.tolist()
    assert survey.coverage.ignored == ignored
    shares = pixels / pixels.sum()
    assert f"background {shares[0]:.2%}, snow {shares[1]:.2%}" in said
    everything = np.concatenate(values, axis=1).astype(np.float64) / 10000
    np.testing.assert_allclose(survey.mean, everything.mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(survey.std, everything.std(axis=1), rtol=1e-9)
    told = re.findall(r"  band \d: .*, mean ([\d.]+), std ([\d.]+)", said)
    np.testing.assert_allclose([float(mean) for mean, _ in told], everything.mean(axis=1), rtol=0.01)
    np.testing.assert_allclose([float(std) for _, std in told], everything.std(axis=1), rtol=0.01)
    assert "checked; nothing was trained" in said
    assert re.search(r"time, on cpu in torch\.\w+: about .* per epoch, .* for \d+ epochs; \d+ tiles were read", said)
    assert re.search(r"limit: the steps take [\d.]+ tiles/s, reading gave [\d.]+: ", said)
    assert re.search(r"disk, model: [\d.]+ [kMG]B .* where [\d.]+ [MGT]B are free", said)
    assert re.search(r"cache: up to [\d.]+ [kMG]B of decoded tiles in .*; [\d.]+ [kMG]B to download", said)
    assert list((opt_ml / "model").iterdir()) == []


@pytest.fixture
def job(opt_ml: Path) -> Callable[..., list[str]]:
    """The arguments that check a written experiment of tiles in folders."""
    write_tiles(opt_ml, tiles=3, size=64)

    def make(**channel: object) -> list[str]:
        experiment = {
            "dataset": {"image_bucket": f"{opt_ml}/imagery", "mask_bucket": f"{opt_ml}/mask"},
            "classes": [{"name": "snow"}],
            "channels": [{"bands": [1, 2, 3, 4], **channel}],
            "model": {"name": "albunet", "encoder": "resnet18", "num_filters": 4, "tile_size": 64, "epochs": 2},
        }
        (opt_ml / "experiment.yml").write_text(yaml.safe_dump(experiment))
        return ["--check", str(opt_ml / "experiment.yml")]

    return make


def test_suggested_channel_can_be_pasted_and_then_fits(
    job: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(job(scale=255)) == 0
    suggested = re.search(r"suggested: (\{.*\})", capsys.readouterr().out)
    assert suggested is not None
    channel = yaml.safe_load(suggested[1])
    assert channel["scale"] == 10000
    assert main(job(**{key: channel[key] for key in ("mean", "std", "scale")})) == 0
    said = capsys.readouterr().out
    assert "suggested: {" not in said
    assert "mean, std and scale fit" in said


def test_band_of_one_value_is_told_and_what_is_suggested_for_it_can_be_pasted_too(
    job: Callable[..., list[str]], opt_ml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = job(scale=10000)
    for path in (opt_ml / "imagery").rglob("*.tif"):
        with rasterio.open(path, "r+") as file:
            file.write(np.full((64, 64), 7000, file.dtypes[0]), 4)
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "nothing can be learnt from it: band 4\n" in said
    suggested = re.search(r"suggested: (\{.*\})", said)
    assert suggested is not None
    channel = yaml.safe_load(suggested[1])
    assert (channel["mean"][3], channel["std"][3]) == (0.7, 1)
    assert main(job(**{key: channel[key] for key in ("mean", "std", "scale")})) == 0
    assert "mean, std and scale fit" in capsys.readouterr().out


def with_snow(folder: Path, pixels: int) -> None:
    """Rewrite every mask: so many of its 4,096 pixels are snow."""
    for path in (folder / "mask").rglob("*.tif"):
        with rasterio.open(path, "r+") as file:
            file.write((np.arange(64 * 64) < pixels).astype(np.uint8).reshape(64, 64), 1)
    for path in (folder / "imagery").rglob("*.tif"):  # without missing pixels
        with rasterio.open(path, "r+") as file:
            file.write(np.maximum(file.read(), 1))


SUGGESTED_CLASSES = re.compile(r"  suggested(.*), to balance the classes: classes: (\[.*\])")


def test_suggested_class_weight_can_be_pasted_and_then_fits(
    job: Callable[..., list[str]], opt_ml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """64 of 4,096 pixels: the root of 4032 / 64 is 7.94."""
    arguments = [*job(), "model.loss=cross_entropy"]
    with_snow(opt_ml, 64)
    assert main(arguments) == 0
    suggested = SUGGESTED_CLASSES.search(capsys.readouterr().out)
    assert suggested is not None
    classes = yaml.safe_load(suggested[2])
    assert classes == [{"name": "snow", "weight": 7.9}]
    assert main([*arguments, f"classes={json.dumps(classes)}"]) == 0
    assert not SUGGESTED_CLASSES.search(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("snow", "loss", "words"),
    [
        (64, "lovasz", ", with that loss"),  # beside the advice to add cross entropy
        (64, "dice", None),
        (1200, "cross_entropy", None),  # 29 %
        (0, "cross_entropy", None),
    ],
)
def test_weights_are_suggested_only_with_a_loss_that_takes_them_where_classes_are_unbalanced(
    job: Callable[..., list[str]],
    opt_ml: Path,
    capsys: pytest.CaptureFixture[str],
    snow: int,
    loss: str,
    words: str | None,
) -> None:
    arguments = [*job(), f"model.loss={loss}"]
    with_snow(opt_ml, snow)
    assert main(arguments) == 0
    suggested = SUGGESTED_CLASSES.search(capsys.readouterr().out)
    assert (suggested and suggested[1]) == words


@pytest.mark.parametrize(
    ("pixels", "is_binary", "weights"),
    [
        ([900, 100], True, [1, 3]),
        ([100, 900], True, [1, 1 / 3]),
        ([999_999, 1], True, [1, 10]),
        ([1, 999_999], True, [1, 0.1]),
        ([6400, 1600, 400], False, [0.5, 1, 2]),
        ([6400, 1600, 0, 400], False, [0.5, 1, np.nan, 2]),
        ([1_000_000, 10_000, 1], False, [0.1, 1, 1]),
        ([100, 0], True, [1, np.nan]),
        ([0, 0], True, [np.nan, np.nan]),
    ],
)
def test_weights_are_the_root_of_median_frequency_balancing_up_to_a_ratio(
    pixels: list[int], is_binary: bool, weights: list[float]
) -> None:
    np.testing.assert_allclose(balancing_weights(np.array(pixels), is_binary), weights)


def test_suggested_classes_keep_what_the_experiment_says_of_them() -> None:
    classes = (
        ClassConfig(name="rock: bare", color="#804020", values=(0,)),
        ClassConfig(name="snow", values=(1, 2), weight=5.0),
        ClassConfig(name="ice", weight=3.0, values=(3,)),
    )
    config = Config(
        dataset=DatasetConfig(image_bucket="imagery", mask_bucket="mask"),
        classes=classes,
        channels=(ChannelConfig(bands=(1,)),),
        model=ModelConfig(name="unet", loss="cross_entropy"),
    )
    assert yaml.safe_load(suggested_classes(config, np.array([1600, 1600, 0]))) == [
        {"name": "rock: bare", "color": "#804020", "values": [0]},
        {"name": "snow", "values": [1, 2]},
        {"name": "ice", "values": [3], "weight": 3.0},
    ]


def test_nothing_is_suggested_where_no_pixel_is_valid(
    job: Callable[..., list[str]], opt_ml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = job(scale=10000)
    for path in (opt_ml / "imagery").rglob("*.tif"):
        with rasterio.open(path, "r+") as file:
            file.write(np.zeros((4, 64, 64), file.dtypes[0]))
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "no pixel is valid: there is nothing to suggest" in said
    assert "suggested: {" not in said


def test_check_needs_no_folder_of_a_job_and_leaves_nothing(
    job: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path / "nowhere"))
    assert main([*job(), "model.epochs=7"]) == 0
    assert "for 7 epochs; " in capsys.readouterr().out
    assert main([*job(), "dataset.imagery_directory_regex=nothing"]) == 3
    assert "matches no directory" in capsys.readouterr().out
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.slow
def test_check_without_a_file_takes_the_job_s(
    job: Callable[..., list[str]], opt_ml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (_, path) = job()
    shutil.copy(path, opt_ml / "input/data/config")
    for arguments in (["--check"], ["--check", "model.epochs=9"], ["model.epochs=9", "--check"]):
        assert main(arguments) == 0
        assert f"for {9 if len(arguments) > 1 else 2} epochs; " in capsys.readouterr().out


def test_padding_is_no_part_of_a_tile(
    job: Callable[..., list[str]], opt_ml: Path, found: list[Survey], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = job()
    for kind in ("imagery", "mask"):
        shutil.rmtree(opt_ml / kind)
    write_tiles(opt_ml, tiles=3, size=100)
    assert main(arguments) == 0
    said = capsys.readouterr().out
    (survey,) = found
    tiles = tiles_of(opt_ml / "imagery", ".*")
    by_row = sorted(tiles, key=lambda each: tuple(map(int, each)))
    missing = 0
    for row in survey.coverage.rows:
        with rasterio.open(tiles[by_row[row]]) as image:
            missing += int((image.read() == 0).all(axis=0).sum())
    share = missing / (len(survey.coverage.rows) * 100 * 100)
    assert f"in {len(survey.coverage.rows)} training tiles of 100 x 100: " in said
    assert f"; {share:.2%} of all pixels have no data" in said
    assert survey.decoded_bytes == len(survey.coverage.rows) * 100 * 100 * (4 * 2 + 1)


def test_class_that_is_nowhere_is_warned_of(job: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = job()
    classes = 'classes=[{"name": "ground", "values": [0]}, {"name": "snow", "values": [1]}, {"name": "ice"}]'
    assert main([*arguments, classes]) == 0
    said = capsys.readouterr().out
    assert "warning: no pixel of the 6 training tiles is ice (mask value 2): the masks do not have that value" in said


def test_tiles_of_two_types_are_measured_as_they_are_fed(
    job: Callable[..., list[str]], opt_ml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 8 training tiles, 5 hold 51 in 8 bits and 3 hold 4000 in 16 bits: 0.2 and 0.4 by their own scale."""
    arguments = job()
    for number, path in enumerate(sorted((opt_ml / "imagery").rglob("*.tif"))):
        value, dtype = ((51, "uint8"), (4000, "uint16"))[number % 2]
        with rasterio.open(path) as file:
            profile = file.profile | {"dtype": dtype}
        with rasterio.open(path, "w", **profile) as file:
            file.write(np.full((4, 64, 64), value, dtype))
    assert main([*arguments, "dataset.train_percent=0.89"]) == 0
    said = capsys.readouterr().out
    assert "channels.0, valid pixels: digital numbers divided by 255 and 10000" in said
    assert "mean 0.2750, std 0.0968" in said
    assert "mean: [0.275, 0.275, 0.275, 0.275], std: [0.09682, 0.09682, 0.09682, 0.09682], scale: auto" in said


def test_checkpoint_of_another_band_count_is_refused_before_a_run(
    job: Callable[..., list[str]], opt_ml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = job()
    assert main(["--config", arguments[1], "model.epochs=1"]) == 0
    capsys.readouterr()
    assert main([*arguments, f"checkpoint.path={opt_ml}/model/best.pth", "channels.0.bands=[1, 2]"]) == 4
    assert "trained for 4 band(s)" in capsys.readouterr().out


@pytest.mark.slow
def test_what_a_resume_would_refuse_is_refused_before_it(
    job: Callable[..., list[str]], opt_ml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (opt_ml / "checkpoints").mkdir()
    arguments = job()
    assert main(["--config", arguments[1], "model.epochs=1"]) == 0
    assert main([*arguments, f"checkpoint.resume={opt_ml}/model/best.pth"]) == 4
    assert "holds no optimizer" in capsys.readouterr().out
    (point,) = (opt_ml / "checkpoints").glob("resume-00001-000000.pth")
    assert main([*arguments, f"checkpoint.resume={point}", "model.lr=0.5"]) == 4
    assert "is of another experiment: model.lr = 0.5" in capsys.readouterr().out
    assert main([*arguments, f"checkpoint.resume={point}"]) == 0
    assert f"continuing from {point}: 1 epoch and 0 steps are done" in capsys.readouterr().out


def test_processes_are_counted(job: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*job(), "runtime.processes=2"]) == 0
    assert ", by 2 processes: about" in capsys.readouterr().out
    assert main([*job(), "runtime.processes=8"]) == 2
    assert "model.batch_size = 7: the batch is shared by 8 processes" in capsys.readouterr().out


def test_compiler_that_a_run_would_lack_is_told_before_it(
    job: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as all_there:
        all_there.setattr("robosat_pink.container.device.check_compiler", lambda device: None)
        assert main([*job(), "runtime.compile=true"]) == 0
    assert ", not compiled (which takes a minute or more): about" in capsys.readouterr().out
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main([*job(), "runtime.compile=true", "runtime.device=cpu"]) != 0
    assert "runtime.compile = true: a compiler (g++) is missing" in capsys.readouterr().out


class Network(nn.Conv2d):
    """With memory for so many tiles at a time."""

    def __init__(self, most: int = 99) -> None:
        super().__init__(2, 1, 1)
        self.most = most
        self.seen: set[int] = set()

    def forward(self, image: Tensor) -> Tensor:
        self.seen.add(len(image))
        if len(image) > self.most:
            raise torch.OutOfMemoryError("Tried to allocate 20 MiB")
        return super().forward(image)


def stepped_through(network: Network, processes: int, accumulation: int) -> None:
    config = Config(
        dataset=DatasetConfig(image_bucket="imagery", mask_bucket="mask"),
        classes=(ClassConfig(name="snow"),),
        channels=(ChannelConfig(bands=(1, 2)),),
        model=ModelConfig(name="albunet", tile_size=64, batch_size=12),
        runtime=RuntimeConfig(accumulation=accumulation),
    )
    world = World(ProcessRank(size=processes))
    compute = Compute(torch.device("cpu"), None, torch.contiguous_format, world)
    assert check.step_seconds(config, network, compute) > 0


@pytest.mark.parametrize(
    ("processes", "accumulation", "at_once"), [(1, 1, 12), (1, 5, 3), (5, 1, 3), (2, 4, 2), (5, 2, 2)]
)
def test_check_steps_through_as_many_tiles_as_a_process_computes_at_a_time(
    processes: int, accumulation: int, at_once: int
) -> None:
    network = Network()
    stepped_through(network, processes, accumulation)
    assert network.seen == {at_once}


def test_memory_that_a_training_would_run_out_of_is_explained_before_it() -> None:
    with pytest.raises(
        ContractError, match=r"for 12 tile.* of 64 x 64 at a time; 2 fit: set runtime\.accumulation = 8"
    ):
        stepped_through(Network(most=2), 1, 1)
    with pytest.raises(ContractError, match=r"for 3 tile.* try runtime\.accumulation = 4, or more processes"):
        stepped_through(Network(most=2), 2, 2)


def test_moments_of_parts_are_those_of_the_whole() -> None:
    random = np.random.default_rng(0)
    parts = [random.normal(1e4, 3, (2, size)) for size in (5, 0, 1, 1000)]
    moments = Moments(2)
    for part in parts:
        moments.add(part)
    whole = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(moments.mean, whole.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(moments.std, whole.std(axis=1), rtol=1e-12)


def test_disk_is_measured_where_the_folder_will_be(tmp_path: Path) -> None:
    line = check._disk_line("model", tmp_path / "a/b/model", 2_000_000_000, 3_000_000_000)
    assert line.startswith(f"disk, model: 2.0 GB (3.0 GB at peak) in {tmp_path}/a/b/model, where ")


@pytest.mark.parametrize(
    ("fetched", "seconds", "cache_bytes", "words"),
    [
        (
            0,
            1.0,
            10**9,
            "reading gave 20.0: from the cache, so that the first epoch's limit is not known; later epochs",
        ),
        (9, 1.0, 10**9, "reading gave 20.0: the steps are the limit of the first epoch; later epochs read from memory"),
        (9, 4.0, 10**9, "reading gave 5.0: reading may be the limit of the first epoch; later epochs read from memory"),
        (9, 4.0, 10**6, "later epochs fetch again what does not fit into the cache (2.0 MB of tiles)"),
        (9, 4.0, None, "reading gave 5.0: reading may be the limit of each epoch"),
        (9, 1.0, None, "reading gave 20.0: the steps are the limit of each epoch"),
    ],
)
def test_check_says_whether_steps_or_reading_limit_a_run(
    fetched: int, seconds: float, cache_bytes: int | None, words: str
) -> None:
    assert words in limit_line(*read_in(fetched, seconds, cache_bytes, tiles=100), rank_rate=8.0, ranks=1)


def test_cache_larger_than_memory_is_read_from_its_disk() -> None:
    # 10^9 tiles of 64 x 64 x 5 bytes; 2 ranks whose steps take 8 tiles/s each
    line = limit_line(*read_in(9, 1.0, 10**15, tiles=10**9), rank_rate=8.0, ranks=2)
    assert "the steps take 8.0 tiles/s in each of 2 ranks, reading gave 20.0: " in line
    assert "later epochs read 327.7 kB/s from the cache's disk, for its 20.5 TB do not fit into half of the" in line


def read_in(fetched: int, seconds: float, cache_bytes: int | None, tiles: int) -> tuple[Any, Any]:
    """Tiles, and a survey that read 20 of them."""
    reader = SimpleNamespace(cache=None if cache_bytes is None else SimpleNamespace(max_bytes=cache_bytes))
    surveyed = SimpleNamespace(
        coverage=SimpleNamespace(rows=np.arange(20)),
        seconds=seconds,
        fetched_bytes=fetched,
        decoded_bytes=20 * 64 * 64 * 5,
    )

    class Tiles:
        def __len__(self) -> int:
            return tiles

    found = Tiles()
    found.reader = reader  # type: ignore[attr-defined]
    return found, surveyed
