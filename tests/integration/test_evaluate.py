"""`evaluate`: its numbers are those of training to the last digit, and with neighbours those of `predict`'s map."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml
from PIL import Image

from conftest import SMALL_DATASET, SMALL_MODEL, S3Server
from robosat_pink import evaluate, predict, train
from robosat_pink.models import build_model
from robosat_pink.sample import write_tiles
from robosat_pink.training import metrics
from test_legacy import EXPERIMENTS, original_checkpoint

EPOCHS = 3
LAST = f"predict.model=channel:model/checkpoint-0000{EPOCHS}-of-0000{EPOCHS}.pth"
NAMES = ("background", "snow")
EXPERIMENT = {
    "dataset": SMALL_DATASET | {"train_percent": 0.4, "split": {"test_percent": 0.2}},
    "classes": [{"name": "snow"}],
    "channels": [{"bands": [4, 3, 1], "scale": 10000, "mean": "auto", "std": "auto"}],
    "model": SMALL_MODEL | {"batch_size": 3, "epochs": EPOCHS},
    "predict": {"model": "channel:model", "tiles": "val", "buffer": 0},
    "runtime": {"workers": 0, "precision": "fp32"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The /opt/ml of a finished training on 16 tiles of 64 x 64 pixels."""
    base = tmp_path_factory.mktemp("trained")
    write_tiles(base / "input/data", tiles=4, size=64)
    (base / "checkpoints").mkdir()
    write_experiment(base, EXPERIMENT)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(base))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert train.main([]) == 0
    return base


def write_experiment(base: Path, experiment: dict[str, Any]) -> None:
    folder = base / "input/data/config"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.yml").write_text(yaml.safe_dump(experiment))


@pytest.fixture
def job(trained: Path, opt_ml: Path) -> Path:
    """An /opt/ml with the trained model as its channel `model`, and with copies of the tiles."""
    shutil.copytree(trained / "model", opt_ml / "input/data/model")
    for channel in ("imagery", "mask"):
        shutil.copytree(trained / "input/data" / channel, opt_ml / "input/data" / channel)
    write_experiment(opt_ml, EXPERIMENT)
    return opt_ml


def written(job: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((job / "output/data/metrics.json").read_text())
    return content


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def confusion_in(job: Path) -> np.ndarray:
    """Truth by prediction (2, 2), over the scenes of scenes.csv."""
    columns = [f"pixels_{truth}_as_{predicted}" for truth in NAMES for predicted in NAMES]
    rows = rows_of(job / "output/data/scenes.csv")
    return np.array([[int(row[column]) for column in columns] for row in rows]).sum(axis=0).reshape(2, 2)


def test_numbers_of_the_last_checkpoint_are_those_of_training_to_the_last_digit(job: Path) -> None:
    assert evaluate.main([LAST]) == 0
    of_training = json.loads((job / "input/data/model/metrics.json").read_text())["val"]
    numbers = written(job)["evaluated"]
    assert {name: numbers[name] for name in metrics.NAMES} == {name: of_training[name] for name in metrics.NAMES}
    per_class = {name: numbers["per_class"]["snow"][name] for name in metrics.CLASS_NAMES}
    assert per_class == of_training["per_class"]["snow"]
    assert written(job)["model"]["epoch"] == EPOCHS
    assert numbers["at_threshold"] is written(job)["threshold"] is None  # only best.pth holds a threshold


def test_numbers_of_the_best_weights_are_those_of_training_to_the_last_digit(job: Path) -> None:
    assert evaluate.main([]) == 0
    of_training = json.loads((job / "input/data/model/metrics.json").read_text())["best"]
    history = rows_of(job / "input/data/model/history.csv")[of_training["epoch"] - 1]
    content = written(job)
    for name in metrics.NAMES:
        assert content["evaluated"][name] == float(history[f"val_{name}"]) or history[f"val_{name}"] == "nan"
    assert content["evaluated"] == of_training["val"]
    assert content["threshold"]["value"] == of_training["threshold"]["value"]
    assert content["model"]["epoch"] == of_training["epoch"]


def test_numbers_with_symmetries_are_those_of_training_with_symmetries(job: Path, trained: Path) -> None:
    """The finished run resumes with the key changed, and evaluates its last weights once more."""
    for folder in ("model", "checkpoints"):
        shutil.copytree(trained / folder, job / folder, dirs_exist_ok=True)
    assert train.main(["model.symmetries=true"]) == 0
    of_training = json.loads((job / "model/metrics.json").read_text())["val"]
    assert evaluate.main([LAST, "predict.symmetries=true"]) == 0
    numbers = written(job)["evaluated"]
    assert {name: numbers[name] for name in metrics.NAMES} == {name: of_training[name] for name in metrics.NAMES}
    assert numbers["loss"] != json.loads((trained / "model/metrics.json").read_text())["val"]["loss"]
    assert "averaged over the eight flips and rotations" in (job / "output/data/report.html").read_text()


@pytest.mark.parametrize("buffer", [0, 20])
def test_numbers_are_those_of_the_map_that_predict_makes_beside_its_masks(job: Path, buffer: int) -> None:
    """A tile without a mask, a neighbour of others, is in the map only."""
    shutil.rmtree(next((job / "input/data/mask/20180528_sierra/15").iterdir()))
    arguments = [f"predict.buffer={buffer}", "predict.tiles=all"]
    assert predict.main([*arguments, "predict.probability=false", "predict.mosaic=false"]) == 0
    counts = np.zeros((2, 2), dtype=int)
    for path in (job / "input/data/mask").rglob("*.tif"):
        predicted = job / "output/data/predictions" / path.relative_to(job / "input/data/mask")
        with rasterio.open(path) as mask, rasterio.open(predicted) as classes:
            truth, found = mask.read(1), classes.read(1)
            np.add.at(counts, (truth[found != 255], found[found != 255]), 1)
    assert evaluate.main(arguments) == 0
    assert np.abs(confusion_in(job) - counts).sum() <= 2  # of 49,152: batches differ, and so do the last bits
    content = written(job)
    assert content["tiles"]["evaluated"] + content["tiles"]["without_data"] == 12
    assert (content["tiles"]["images_without_mask"], content["tiles"]["masks_without_image"]) == (4, 0)
    assert content["settings"] == {"buffer": buffer, "symmetries": False, "batch_size": 3}


def test_page_says_what_was_evaluated_and_nothing_of_a_training(job: Path) -> None:
    assert evaluate.main(["predict.tiles=holdout", "predict.buffer=8"]) == 0
    page = (job / "output/data/report.html").read_text()
    content = written(job)
    for words in (
        content["model"]["digest"],
        "best.pth",
        "predict.tiles = holdout",
        "at least 8 pixels",
        "images of",
        "Evaluated tiles",
    ):
        assert words.lower() in page.lower()
    for words in ("best epoch", "Curves", "history.csv", "validation tiles chose", "classify("):
        assert words not in page
    names = re.findall(r'\bid="([^"]*)"', page)
    assert set(re.findall(r'href="#([^"]*)"', page)) <= set(names)
    assert len(names) == len(set(names))
    assert f'<data value="{content["evaluated"]["iou"]}">' in page
    assert {path.name for path in (job / "output/data").iterdir()} == {
        *("report.html", "metrics.json", "scenes.csv", "precision_recall.png", "reliability.png", "tiles")
    }
    assert {row["part"] for row in rows_of(job / "output/data/scenes.csv")} == {"evaluated"}
    pictures = list((job / "output/data/tiles").iterdir())
    assert pictures
    for picture in pictures:
        assert Image.open(picture).size == (4 * 64 + 3 * 8, 64)  # without the border


def test_model_stays_as_it_is_and_results_of_an_earlier_run_are_moved_away(job: Path) -> None:
    before = {path.name: path.read_bytes() for path in (job / "input/data/model").iterdir()}
    for path in (job / "input/data/model").iterdir():
        shutil.copy(path, job / "model")
    assert evaluate.main([f"predict.model={job}/model"]) == 0
    first = (job / "output/data/metrics.json").read_bytes()
    assert evaluate.main([f"predict.model={job}/model", "predict.tiles=holdout"]) == 0
    assert {path.name: path.read_bytes() for path in (job / "model").iterdir()} == before
    assert (job / "output/data/earlier-1/metrics.json").read_bytes() == first
    assert (job / "output/data/earlier-1/report.html").exists()


def test_tiles_that_the_model_has_learnt_from_are_said(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = (job / "input/data/model/train_ids.txt").read_text().split()
    words = f"the model has learnt from {len(ids)} of these 16 tiles"
    assert evaluate.main(["predict.tiles=all"]) == 0
    assert f"warning: {words}" in capsys.readouterr().out
    assert words in (job / "output/data/report.html").read_text()
    assert evaluate.main(["predict.tiles=channel:model/holdout_ids.txt"]) == 0
    said = capsys.readouterr().out
    assert "has learnt from" not in said
    assert '\nexperiment: {"dataset": ' in said


def test_threshold_of_the_experiment_takes_the_place_of_the_models(job: Path) -> None:
    assert evaluate.main(["predict.threshold=0.25"]) == 0
    content = written(job)
    assert content["threshold"] == {"value": 0.25, "origin": "the threshold is that of predict.threshold"}
    at_threshold, half = content["evaluated"]["at_threshold"], content["evaluated"]
    assert at_threshold["recall"] > half["recall"]
    assert "above 0.25" in (job / "output/data/report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["predict.model=null"], 2, "predict.model is missing"),
        (["predict.if_damaged=skip"], 2, "predict.if_damaged = skip: not in an evaluation"),
        (["predict.threshold=0.333"], 2, "accepted: from 0.005 to 0.995 in steps of 0.005, such as 0.335"),
        (["predict.threshold=0"], 2, "such as 0.005"),
        (["predict.threshold=chosen", LAST], 2, "has none, unlike best.pth of a finished run"),
        (["channels.0.bands=[1, 2, 3]"], 2, "channels[].bands = [1, 2, 3], but the model learnt from [4, 3, 1]"),
        (
            ["dataset.mask_directory_regex=2019.*"],
            3,
            "mask_directory_regex = '2019.*' matches no directory of channel:mask",
        ),
        (["dataset.mask_bucket=channel:none"], 2, "there is no channel 'none'"),
        (["predict.images_regex=2019.*"], 3, "predict.images_regex = '2019.*' matches no directory of channel:imagery"),
        (
            ["predict.images=channel:imagery/20180528_sierra"],
            3,
            "predict.images: channel:imagery/20180528_sierra holds no",
        ),
        (["predict.tiles=channel:model/history.csv"], 3, "names none of the 16 tiles"),
        (["predict.buffer=100"], 3, "predict.buffer = 100"),
    ],
)
def test_what_cannot_be_evaluated_is_an_error_and_leaves_nothing(
    job: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert evaluate.main(arguments) == code
    assert message in capsys.readouterr().out
    assert message in (job / "output/failure").read_text()
    assert list((job / "output/data").iterdir()) == []


def test_masks_of_other_tiles_are_an_error_that_says_where_they_were_looked_for(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    column = next((job / "input/data/mask/20180528_sierra/15").iterdir())
    column.rename(job / "input/data/7")
    shutil.rmtree(job / "input/data/mask/20180528_sierra/15")
    (job / "input/data/mask/20180528_sierra/15").mkdir()
    (job / "input/data/7").rename(job / "input/data/mask/20180528_sierra/15/7")
    assert evaluate.main([]) == 3
    shown = capsys.readouterr().out
    assert "no image has a mask of the same z/x/y" in shown
    assert "channel:mask, expression '.*': 4 tiles in the directories 20180528_sierra" in shown


def test_time_that_runs_out_leaves_nothing(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["runtime.max_seconds=0.000001"]) == 0
    assert "stopped at runtime.max_seconds = 1e-06; the same command starts again" in capsys.readouterr().out
    assert list((job / "output/data").iterdir()) == []


def test_several_classes_have_no_threshold(opt_ml: Path, tmp_path: Path) -> None:
    write_tiles(opt_ml / "input/data", tiles=2, size=64)
    torch.manual_seed(0)
    network = build_model("albunet", num_classes=2, num_channels=3, encoder="resnet18", num_filters=4)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    classes = [{"name": "rock", "color": "gray"}, {"name": "snow"}]
    several = {"classes": classes, "channels": [{"bands": [4, 3, 1]}], "predict": {"model": f"{tmp_path}/weights.pth"}}
    write_experiment(opt_ml, EXPERIMENT | several)
    assert evaluate.main([]) == 0
    content = written(opt_ml)
    assert list(content["evaluated"]["per_class"]) == ["rock", "snow"]
    assert content["evaluated"]["at_threshold"] is content["threshold"] is content["model"]["epoch"] is None
    assert (opt_ml / "output/data/report.html").exists()
    assert evaluate.main(["predict.threshold=chosen"]) == 2


def test_check_evaluates_nothing(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--check"]) == 0
    assert "nothing was evaluated" in capsys.readouterr().out
    assert list((job / "output/data").iterdir()) == []


def test_other_ranks_leave_the_evaluation_to_rank_0(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert evaluate.main([]) == 0
    assert list((job / "output/data").iterdir()) == []
    monkeypatch.setenv("RANK", "0")
    assert evaluate.main([]) == 0
    assert written(job)["tiles"]["evaluated"] > 0


# By experiments/tuolumne-N.yml: the directories of images and masks, as planet-snowcover's buckets name them.
SCENES = {
    1: ("20180528_181110_1025_3B_AnalyticMS_SR_clip_tiled", "ASO_3M_SD_USCATE_20180528_binary"),
    2: ("20180601_181447_0f52_3B_AnalyticMS_SR_tiled", "ASO_3M_SD_USCASJ_20180601_tiles_02"),
    3: (
        "20180423_181409_0f31_3B_AnalyticMS_SR_tiled",
        "ASO_3M_SD_USCAJW_20180423/ASO_3M_SD_USCAJW_20180423-MASK_02-COG",
    ),
}


def test_three_scenes_in_buckets_are_one_command_each_with_a_checkpoint_of_planet_snowcover(
    s3: S3Server, opt_ml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As planet-snowcover compared them with the airborne survey of their days, by one model."""
    for bucket in ("planet-snowcover-imagery", "planet-snowcover-snow", "planet-snowcover-models"):
        s3.make_bucket(bucket)
    for seed, (images, masks) in SCENES.items():
        write_tiles(tmp_path / images, tiles=2, size=64, seed=seed)
        s3.upload(tmp_path / images / "imagery/20180528_sierra", "planet-snowcover-imagery", f"{images}/")
        s3.upload(tmp_path / images / "mask/20180528_sierra", "planet-snowcover-snow", f"{masks}/")
    torch.manual_seed(0)
    network = build_model("albunet", num_classes=1, num_channels=4, encoder="resnet50", num_filters=4)
    torch.save(original_checkpoint(network, 50), tmp_path / "old.pth")
    s3.client.put_object(Bucket="planet-snowcover-models", Key="old.pth", Body=(tmp_path / "old.pth").read_bytes())
    arguments = [
        *("predict.model=s3://planet-snowcover-models/old.pth", "channels.0.scale=raw", "predict.buffer=16"),
        *("model.num_filters=4", "runtime.workers=0"),  # small and quick
    ]
    losses = []
    for number, (images, masks) in SCENES.items():
        code = evaluate.main(["--config", str(EXPERIMENTS / f"tuolumne-{number}.yml"), *arguments])
        assert code == 0, capsys.readouterr().out
        (row,) = rows_of(opt_ml / "output/data/scenes.csv")
        content = written(opt_ml)
        assert (row["scene"], int(row["tiles"]) + int(row["empty"])) == (images, 4)
        assert float(row["iou"]) == content["evaluated"]["iou"]
        assert content["masks"]["expression"].rstrip("$") == masks.rpartition("/")[2]
        assert content["model"]["epoch"] == 50
        assert content["threshold"] is None
        losses.append(content["evaluated"]["loss"])
    assert len(set(losses)) == 3


def test_wrong_option_is_answered_with_those_that_there_are(opt_ml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--sumary", "folder"]) == 2
    assert (
        "accepted: [--summary FOLDER ...] [--config FILE] [--check [FILE]] [KEY=VALUE ...]" in capsys.readouterr().out
    )
