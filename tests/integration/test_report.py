"""The report of a run: its numbers are those of the files, and a browser shows it without a request."""

import csv
import io
import itertools
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from PIL import Image

from chromium import Chromium
from robosat_pink import checkpoint
from robosat_pink.container.failure_file import user_message
from robosat_pink.distributed.process_group import World
from robosat_pink.errors import ContractError
from robosat_pink.report.page import SplitResult
from robosat_pink.report.summary import baseline_sentence
from robosat_pink.sample import write_tiles
from robosat_pink.train import main
from robosat_pink.training import final_evaluation, metrics
from robosat_pink.training.phase_metrics import PhaseMetrics

EXPERIMENT = {
    "dataset": {
        "image_bucket": "channel:imagery",
        "mask_bucket": "channel:mask",
        "train_percent": 0.5,
        "split": {"test_percent": 0.25},
    },
    "classes": [{"name": "snow", "color": "white"}],
    "channels": [{"bands": [4, 3, 2, 1], "mean": [0.37, 0.38, 0.37, 0.36], "std": [0.2] * 4, "scale": 10000}],
    "model": {"name": "albunet", "encoder": "resnet18", "num_filters": 4, "tile_size": 64, "batch_size": 3, "epochs": 3}
    | {"lr": 0.001},
    "runtime": {"workers": 0, "precision": "fp32"},
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes of 16 tiles each, the second a copy of other days' weather."""
    folder = tmp_path_factory.mktemp("scenes")
    for seed, day in enumerate(("20180528", "20180601")):
        write_tiles(folder / day, tiles=4, size=64, seed=seed)
        for kind in ("imagery", "mask"):
            (folder / kind).mkdir(exist_ok=True)
            (folder / day / kind / "20180528_sierra").rename(folder / kind / f"{day}_sierra")
    return folder


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's /opt/ml; its log is beside."""
    base = tmp_path_factory.mktemp("opt_ml")
    lay_out(base, scenes, EXPERIMENT)
    ended = subprocess.run(
        [sys.executable, "-m", "robosat_pink.train"],
        env={"SAGEMAKER_BASE_DIR": str(base), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(base)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (base / "log").write_text(ended.stdout)
    return base


def lay_out(base: Path, scenes: Path, experiment: dict[str, object]) -> None:
    for folder in ("input/data/config", "model", "output/data"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for channel in ("imagery", "mask"):
        (base / "input/data" / channel).symlink_to(scenes / channel)
    # An image pairs with the mask of its own day.
    dataset = experiment["dataset"] | {  # type: ignore[operator]
        "imagery_directory_regex": r"(?P<day>\d{8})_sierra",
        "mask_directory_regex": r"(?P<day>\d{8})_sierra",
    }
    (base / "input/data/config/experiment.yml").write_text(yaml.safe_dump(experiment | {"dataset": dataset}))


class Tables(HTMLParser):
    """The tables of a page by their captions: rows of values, where a <data> element has one, else of text."""

    def __init__(self) -> None:
        super().__init__()
        self.by_caption: dict[str, list[list[str]]] = {}
        self.caption, self.row, self.cell, self.value = "", [""], "", None  # type: ignore[var-annotated]
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("caption", "td", "th"):
            self.inside, self.cell, self.value = tag, "", None
        elif tag == "tr":
            self.row = []
        elif tag == "data" and self.value is None:
            self.value = dict(attrs)["value"]

    def handle_endtag(self, tag: str) -> None:
        if tag == "caption":
            self.caption = self.cell
            self.by_caption[self.caption] = []
        elif tag in ("td", "th"):
            self.row.append(self.cell if self.value is None else self.value)
        elif tag == "tr":
            self.by_caption[self.caption].append(self.row)
        if tag == self.inside:
            self.inside = ""

    def handle_data(self, data: str) -> None:
        self.cell += data if self.inside else ""


def tables(base: Path) -> dict[str, list[list[str]]]:
    parser = Tables()
    parser.feed((base / "output/data/report.html").read_text())
    return parser.by_caption


def numbers_below(table: list[list[str]], column: str) -> dict[str, float]:
    position = table[0].index(column)
    return {row[0]: float(row[position] or "nan") for row in table[1:]}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def same(shown: float, written: str | float | None) -> bool:
    """Whether both numbers are equal to the last digit, or undefined."""
    value = float("nan") if written in (None, "nan") else float(written)  # type: ignore[arg-type]
    return shown == value or (shown != shown and value != value)


PRINTED = {"iou": "IoU", "miou": "mean IoU", "f1": "F1", "mcc": "MCC"}


def test_run_leaves_report_table_pictures_and_card(run: Path) -> None:
    output = run / "output/data"
    assert {path.name for path in output.iterdir()} == {
        *("report.html", "scenes.csv", "curves.png", "precision_recall.png", "reliability.png", "tiles")
    }
    tiles = sorted(path.name for path in (output / "tiles").iterdir())
    assert [name.rpartition("-channel")[0] for name in tiles] == [
        f"{kind}-{number}" for kind in ("best", "median", "worst") for number in (1, 2)
    ]
    for name in tiles:
        assert Image.open(output / "tiles" / name).size == (4 * 64 + 3 * 8, 64)
    assert (run / "model/MODEL_CARD.md").exists()
    assert (output / "report.html").stat().st_size < 5_000_000


def test_report_metrics_history_and_log_have_the_same_numbers(run: Path) -> None:
    written = json.loads((run / "model/metrics.json").read_text())
    history = rows_of(run / "model/history.csv")
    log = (run / "log").read_text()
    shown = tables(run)["All metrics"]
    best = written["best_epoch"]
    assert shown[0][:3] == ["", "held-out tiles", "validation tiles"]
    held_out, val = numbers_below(shown, "held-out tiles"), numbers_below(shown, "validation tiles")
    train = numbers_below(shown, "training, last epoch")
    last = numbers_below(shown, "validation, last epoch") if best < 3 else val
    for name in metrics.NAMES:
        printed = PRINTED.get(name, name)
        assert same(held_out[printed], written["holdout"][name])
        assert same(train[printed], written["train"][name])
        assert same(train[printed], history[-1][f"train_{name}"])
        assert same(last[printed], written["val"][name])
        assert same(last[printed], history[-1][f"val_{name}"])
        assert same(val[printed], history[best - 1][f"val_{name}"])
        assert f"holdout_{name}={held_out[printed]:.6f}" in log
        assert re.search(rf"phase=val epoch={best} .*\bval_{name}={val[printed]:.6f}", log)


def test_scenes_sum_up_to_the_whole_and_the_whole_is_what_the_run_measured(run: Path) -> None:
    written = json.loads((run / "model/metrics.json").read_text())
    history = rows_of(run / "model/history.csv")[written["best_epoch"] - 1]
    rows = rows_of(run / "output/data/scenes.csv")
    assert {row["scene"] for row in rows} == {"20180528_sierra", "20180601_sierra"}
    for split, known in (
        ("holdout", written["holdout"]),
        ("val", {name: float(history[f"val_{name}"]) for name in metrics.NAMES}),
    ):
        split_rows = [row for row in rows if row["part"] == split]
        columns = [name for name in split_rows[0] if name.startswith("pixels_")]
        assert columns == [f"pixels_{pair}" for pair in (
            "background_as_background", "background_as_snow", "snow_as_background", "snow_as_snow"
        )]  # fmt: skip
        counts = sum(np.array([int(row[name]) for name in columns]).reshape(2, 2) for row in split_rows)
        scores = metrics.scores(counts, ["snow"], known["loss"])
        assert all(same(scores[name], known[name]) for name in metrics.NAMES)
        ids = (run / "model" / ("holdout_ids.txt" if split == "holdout" else "test_ids.txt")).read_text().split()
        assert sum(int(row["tiles"]) + int(row["empty"]) for row in split_rows) == len(ids)
        assert sum(int(row["pixels"]) for row in split_rows) == counts.sum()
        for row in split_rows:
            of_scene = [tile_id for tile_id in ids if row["scene"] in tile_id]
            assert int(row["tiles"]) + int(row["empty"]) == len(of_scene)
        title = "Held-out" if split == "holdout" else "Validation"
        (shown,) = (table for caption, table in tables(run).items() if caption.startswith(f"{title} tiles by scene"))
        assert shown[-1][:3] == ["all", str(sum(int(row["tiles"]) for row in split_rows)), str(counts.sum())]
        names = [name for name in metrics.NAMES if name != "loss"]
        assert all(same(float(value or "nan"), known[name]) for value, name in zip(shown[-1][3:], names, strict=True))
        (confusion,) = (table for caption, table in tables(run).items() if caption.startswith(f"{title} tiles: pixels"))
        assert [[int(count) for count in row[1:]] for row in confusion[1:]] == counts.tolist()


def test_numbers_of_the_best_weights_are_in_metrics_report_card_and_checkpoint(run: Path) -> None:
    written = json.loads((run / "model/metrics.json").read_text())
    best = written["best"]
    assert set(best) == {"epoch", "threshold", "val", "holdout"}
    assert best["epoch"] == written["best_epoch"]
    assert checkpoint.load(run / "model/best.pth")["threshold"] == best["threshold"]
    assert best["threshold"]["val_iou"] >= best["threshold"]["val_iou_at_0.5"] == best["val"]["iou"]
    assert best["val"]["at_threshold"]["iou"] == best["threshold"]["val_iou"]
    history = rows_of(run / "model/history.csv")[best["epoch"] - 1]
    card = (run / "model/MODEL_CARD.md").read_text()
    for split, known in (
        ("holdout", written["holdout"]),
        ("val", {name: history[f"val_{name}"] for name in metrics.NAMES}),
    ):
        numbers = best[split]
        assert all(same(math.nan if numbers[name] is None else numbers[name], known[name]) for name in metrics.NAMES)
        assert numbers["ground_tiles"] > 1
        low, high = numbers["intervals"]["iou"]
        assert low <= numbers["iou"] <= high
        assert 0 <= numbers["ece"] < 1
        assert numbers["boundary_f1"] == numbers["per_class"]["snow"]["boundary_f1"]
        assert sum(point["pixels"] for point in numbers["reliability"]) == sum(
            int(row["pixels"]) for row in rows_of(run / "output/data/scenes.csv") if row["part"] == split
        )
        title = "Held-out" if split == "holdout" else "Validation"
        places = f"{title} tiles: 95 % intervals over {numbers['ground_tiles']} places"
        iou = tables(run)[places][1]
        assert iou == ["IoU", *(str(value) for value in (numbers["iou"], low, high, numbers["at_threshold"]["iou"]))]
    assert f"| iou | {best['holdout']['iou']:.4f} | " in card
    assert f"The boundary F1, {best['holdout']['boundary_f1']:.4f} on held-out tiles" in card


def test_counts_of_a_scene_are_those_of_its_tiles_and_masks(run: Path, scenes: Path) -> None:
    """Truth by scene, counted from the files."""
    for row in rows_of(run / "output/data/scenes.csv"):
        name = "holdout_ids.txt" if row["part"] == "holdout" else "test_ids.txt"
        truth = np.zeros(2, dtype=int)
        for tile_id in (run / "model" / name).read_text().split():
            scene, x, y, z = tile_id.removeprefix("channel:imagery_").rsplit("-", 3)
            if scene == row["scene"]:
                with rasterio.open(scenes / "imagery" / scene / z / x / f"{y}.tif") as image:
                    valid = (image.read() != 0).any(axis=0)
                with rasterio.open(scenes / "mask" / scene / z / x / f"{y}.tif") as mask:
                    truth += np.bincount(mask.read(1)[valid], minlength=2)
        assert truth[0] == int(row["pixels_background_as_background"]) + int(row["pixels_background_as_snow"])
        assert truth[1] == int(row["pixels_snow_as_background"]) + int(row["pixels_snow_as_snow"])


def test_page_names_what_was_run(run: Path) -> None:
    page = (run / "output/data/report.html").read_text()
    for words in ("robosat_pink 0.1.0", " CPU core", "image_bucket: channel:imagery", "num_filters: 4", "test_percent"):
        assert words in page
    counts = {row[0]: row[1] for row in tables(run)["What was found"][1:]}
    assert (counts["pairs of image and mask"], counts["scenes"], counts["tile zoom"]) == ("32", "2", "15")
    times = tables(run)["Where the time went"]
    assert [row[0] for row in times[1:]] == [
        *("training", "waiting for tiles, in training", "evaluating after each epoch", "evaluating held-out tiles"),
        *("start-up, listing tiles, writing", "evaluating for the report", "all"),
    ]
    assert 'href="https://www.openstreetmap.org/?mlat=37.' in page
    assert page.count('aria-label="Map of the tiles: 16 train, 8 val, 8 holdout"') == 1


def test_map_of_errors_and_example_tiles_link_to_each_other(run: Path) -> None:
    page = (run / "output/data/report.html").read_text()
    kinds = ["best"] * 2 + ["median"] * 2 + ["worst"] * 2
    marks = re.findall(
        r'<a class="mark" id="(.*?)" href="#(.*?)" aria-label="(\d): (.*?) tile, (.*?), IoU (.*?)">', page
    )
    assert [mark[:4] for mark in marks] == [
        (f"square-{number}", f"tile-{number}", str(number), kind) for number, kind in enumerate(kinds, 1)
    ]
    for number, (_, _, _, _, zxy, iou) in enumerate(marks, 1):
        article = page.partition(f'<article class="tile" id="tile-{number}">')[2].partition("</article>")[0]
        assert f">{iou}</data> · {zxy}</h4>" in article
        assert f'<a href="#square-{number}">{number} in the map of errors</a>' in article
    # 16 squares of two days, which are of any split.
    listed = [(run / "model" / name).read_text().split() for name in ("holdout_ids.txt", "test_ids.txt")]
    places = {name.rpartition("sierra-")[2] for names in listed for name in names}
    squares = {words: int(count) for words, count in re.findall(r"</i>([^<]*): (\d+) squares?</span>", page)}
    assert squares.get("not evaluated", 0) == 16 - len(places)
    assert sum(squares.values()) == 16
    assert "Held-out tiles and validation tiles. Each square is a tile of zoom 15." in page


def test_nothing_in_the_page_is_fetched_from_elsewhere(run: Path) -> None:
    page = (run / "output/data/report.html").read_text()
    sources = re.findall(r'\b(?:src|srcset|data|poster|action)="([^"]*)"', page)
    assert all(source.startswith("data:") for source in sources)
    assert len(sources) == 9 + 1 + 1 + 6 * 4
    assert re.findall(r"<(?:script|iframe|object|embed|video|audio)\b|@import|url\(", page) == []
    assert "default-src 'none'" in page
    assert all(alt.strip() for alt in re.findall(r'<img [^>]*alt="([^"]*)"', page))


def test_page_speaks_of_the_page_s_own_parts_only(run: Path) -> None:
    """Every link leads to a section, and no id stands twice."""
    page = (run / "output/data/report.html").read_text()
    names = re.findall(r'\bid="([^"]*)"', page)
    assert len(names) == len(set(names))
    assert set(re.findall(r'href="#([^"]*)"', page)) <= set(names)
    assert set(re.findall(r'aria-labelledby="([^"]*)"', page)) <= set(names)


@pytest.mark.slow
def test_four_lines_of_the_model_card_load_and_apply_the_model(run: Path, tmp_path: Path, scenes: Path) -> None:
    card = (run / "model/MODEL_CARD.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "other"
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    assert len(code[1].splitlines()) == 4
    name = (run / "model/test_ids.txt").read_text().split()[0]
    scene, x, y, z = name.removeprefix("channel:imagery_").rsplit("-", 3)
    (tmp_path / "tile.tif").symlink_to(scenes / "imagery" / scene / z / x / f"{y}.tif")
    (tmp_path / "best.pth").symlink_to(run / "model/best.pth")
    printing = 'print(mask.shape, mask.dtype, mask.sum()); mask.tofile("mask")'
    subprocess.run([sys.executable, "-c", f"{code[1]}{printing}"], cwd=tmp_path, check=True)
    mask = np.fromfile(tmp_path / "mask", dtype=np.uint8).reshape(64, 64)
    with rasterio.open(scenes / "mask" / scene / z / x / f"{y}.tif") as file:
        truth = file.read(1)
    counts = np.bincount(2 * truth.ravel() + mask.ravel(), minlength=4).reshape(2, 2)
    best = checkpoint.load(run / "model/best.pth")["epoch"]
    known = float(rows_of(run / "model/history.csv")[best - 1]["val_accuracy"])
    assert np.diag(counts).sum() / counts.sum() > known - 0.25


def test_card_says_bands_scale_zoom_and_numbers(run: Path) -> None:
    card = (run / "model/MODEL_CARD.md").read_text()
    held_out = json.loads((run / "model/metrics.json").read_text())["holdout"]
    assert "| bands | 4, 3, 2, 1 of the files" in card
    assert "divided by 10000" in card
    assert "| tile zoom | 15, tiles of 64 x 64 pixels |" in card
    assert f"| iou | {held_out['iou']:.4f} |" in card
    assert "32 pairs of tiles: 16 trained on, 8 for validation, 8 held out" in card


@pytest.mark.parametrize(("iou", "words"), [(0.95, "of 0.9000."), (0.9, "of 0.9000: this network is no better.")])
def test_score_stands_beside_that_of_calling_every_pixel_the_class(iou: float, words: str) -> None:
    result = SplitResult({"iou": iou}, [[0, 10], [0, 90]], scenes=[], largest_difference=0.0)
    assert baseline_sentence(result, ["snow"]) == f"Calling every pixel snow would score an IoU {words}"
    assert baseline_sentence(result, ["snow", "ice"]) == ""


@pytest.mark.slow
def test_several_classes_have_their_own_rows_and_no_threshold(scenes: Path, opt_ml: Path) -> None:
    experiment = EXPERIMENT | {"classes": [{"name": "ground"}, {"name": "snow <i>"}]}
    experiment["model"] = EXPERIMENT["model"] | {"epochs": 1, "loss": "cross_entropy"}  # type: ignore[operator]
    lay_out(opt_ml, scenes, experiment)
    assert main(["dataset.split.test_percent=0"]) == 0
    page = (opt_ml / "output/data/report.html").read_text()
    assert not (opt_ml / "output/data/precision_recall.png").exists()
    assert "snow &lt;i&gt;" in page
    assert "snow <i>" not in page
    assert [row[0] for row in tables(opt_ml)["By class, validation tiles"][1:]] == ["ground", "snow <i>"]
    assert "iou_snow <i>" in rows_of(opt_ml / "output/data/scenes.csv")[0]


@pytest.mark.parametrize(
    "error", [ValueError("no"), MemoryError("no"), type("Panic", (BaseException,), {})("no"), ContractError("no")]
)
def test_report_that_fails_leaves_the_training_a_success_and_a_traceback_of_defects_alone(
    error: BaseException,
    scenes: Path,
    opt_ml: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lay_out(opt_ml, scenes, EXPERIMENT)

    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(final_evaluation, "evaluate_tiles", broken)
    assert main(["model.epochs=1"]) == 0
    log = capsys.readouterr().out
    assert f"warning: no report: {user_message(error)}; model and metrics are complete" in log
    assert ("Traceback" in log) == (not isinstance(error, ContractError))
    assert not (opt_ml / "output/failure").exists()
    assert json.loads((opt_ml / "model/metrics.json").read_text())["best"] is None


@pytest.mark.slow
def test_padding_is_no_part_of_a_tile(opt_ml: Path) -> None:
    """Most tiles are of 100 pixels, some of 72: padded to 128 both, or to each other where a batch has some of each."""
    for folder, size in (("20180528", 100), ("20180601", 72)):
        write_tiles(opt_ml / folder, tiles=5 if size == 100 else 2, size=size)
        for kind in ("imagery", "mask"):
            (opt_ml / kind).mkdir(exist_ok=True)
            (opt_ml / folder / kind / "20180528_sierra").rename(opt_ml / kind / f"{folder}_sierra")
    lay_out(opt_ml, opt_ml, EXPERIMENT)
    assert main(["model.epochs=1", "dataset.split.test_percent=0", "dataset.train_percent=0.3"]) == 0

    missing = pixels = empty = 0
    for name in (opt_ml / "model/test_ids.txt").read_text().split():
        scene, x, y, z = name.removeprefix("channel:imagery_").rsplit("-", 3)
        with rasterio.open(opt_ml / "imagery" / scene / z / x / f"{y}.tif") as image:
            valid = (image.read() != 0).any(axis=0)
        empty += not valid.any()
        missing += int((~valid).sum()) * valid.any()
        pixels += valid.size * valid.any()
    assert missing
    dataset = {row[0]: row[1] for row in tables(opt_ml)["What was found"][1:]}
    assert dataset["tile size"] == "100 x 100 pixels"
    assert dataset["ground resolution"] == "about 9.7 m"  # 40,075,017 m * cos 37.9° / 2^15 / 100
    assert dataset["validation pixels with data"] == f"{1 - missing / pixels:.1%}"
    assert dataset["validation tiles without data"] == str(empty)
    assert "tiles of 100 x 100 pixels |" in (opt_ml / "model/MODEL_CARD.md").read_text()
    for path in (opt_ml / "output/data/tiles").iterdir():
        side = 72 if "20180601" in path.name else 100
        assert Image.open(path).size == (4 * side + 3 * 8, side)


class Clock:
    """The watch's, by which the time is over once an epoch has been evaluated."""

    def __init__(self) -> None:
        self.is_over = False

    def monotonic(self) -> float:
        return time.monotonic() + 1e6 * self.is_over


@pytest.mark.slow
def test_run_whose_time_is_over_leaves_the_report_of_its_epochs_and_later_that_of_all(
    scenes: Path, opt_ml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out(opt_ml, scenes, EXPERIMENT)
    (opt_ml / "checkpoints").mkdir()
    clock, finish = Clock(), PhaseMetrics.finish

    def finished(phase_metrics: PhaseMetrics, world: World) -> dict[str, Any]:
        clock.is_over = phase_metrics.phase == "val"
        return finish(phase_metrics, world)

    with monkeypatch.context() as patch:
        patch.setattr("robosat_pink.training.stopping.time", clock)
        patch.setattr(PhaseMetrics, "finish", finished)
        assert main(["runtime.max_seconds=1000"]) == 0
    log = capsys.readouterr().out
    assert "stopped at runtime.max_seconds = 1000 after 1 epoch and 1 step" in log
    assert "phase=holdout" not in log
    page, card = (opt_ml / "output/data/report.html").read_text(), (opt_ml / "model/MODEL_CARD.md").read_text()
    assert re.search(r"Stopped [-\d]+ [\d:]+ UTC at runtime\.max_seconds = 1000\.", page)
    assert tables(opt_ml)["All metrics"][0][:3] == ["", "validation tiles", "training, last epoch"]
    assert "The held-out tiles are looked at once, after the last epoch." in page
    assert "16 trained on, 8 for validation, 8 held out" in card
    assert "The validation tiles chose the best epoch. Pixels" in card
    assert "Calling every pixel snow would score an IoU of 0." in card
    assert "Calling every pixel snow would score an IoU of 0." in page
    begun = "start-up, listing tiles, writing"  # nobody knows it of several attempts
    assert begun not in page

    assert main(["runtime.max_seconds=1000"]) == 0
    page = (opt_ml / "output/data/report.html").read_text()
    assert tables(opt_ml)["All metrics"][0][1] == "held-out tiles"
    assert "Finished " in page
    assert begun not in page


@pytest.mark.slow
def test_report_of_a_hundred_tiles_is_made_in_seconds_and_stays_small(
    opt_ml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiles(tmp_path, tiles=11, size=128)
    for channel in ("imagery", "mask"):
        (opt_ml / "input/data" / channel).symlink_to(tmp_path / channel)
    (opt_ml / "input/data/config/experiment.yml").write_text(yaml.safe_dump(EXPERIMENT))
    arguments = ["dataset.split.test_percent=0", "dataset.train_percent=0.17", "model.epochs=1"]
    assert main(arguments) == 0
    log = capsys.readouterr().out
    assert "val 100" in log
    made = re.search(r"report\.html, made in ([\d.]+) s", log)
    assert made is not None
    print(f"made in {made[1]} s")
    assert (opt_ml / "output/data/report.html").stat().st_size < 5_000_000


@pytest.fixture(scope="module")
def chromium(browser: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(browser, tmp_path_factory.mktemp("profile")) as shown:
        yield shown


@pytest.mark.parametrize("width", [1280, 390])
def test_browser_shows_the_page_without_an_error_or_a_request(run: Path, chromium: Chromium, width: int) -> None:
    address = (run / "output/data/report.html").as_uri()
    chromium.open(address, width)
    assert chromium.complaints == []
    assert {request for request in chromium.requests if not request.startswith("data:")} == {address}
    assert chromium.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)") is True
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width  # nothing runs over the right edge
    picture = np.asarray(Image.open(io.BytesIO(chromium.picture())).convert("L"))
    assert picture.shape[1] == width
    assert (picture < 128).mean() > 0.01  # something is written


def test_request_and_error_are_noticed(chromium: Chromium, tmp_path: Path) -> None:
    """What the test before this relies on."""
    page = tmp_path / "page.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><script>throw Error("broken")</script>')
    chromium.open(page.as_uri(), 1280)
    assert "http://127.0.0.1:9/x.png" in chromium.requests
    assert any("broken" in complaint for complaint in chromium.complaints)


@pytest.mark.parametrize("width", [1280, 390])
def test_keyboard_goes_from_a_square_to_its_tile_and_back(run: Path, chromium: Chromium, width: int) -> None:
    chromium.open((run / "output/data/report.html").as_uri(), width)
    chromium.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
    chromium.evaluate("document.querySelector('nav a[href=\"#errors\"]').focus()")
    focused = "document.activeElement.id || document.activeElement.getAttribute('href')"
    chromium.press("Enter")
    chromium.press("Tab")
    assert chromium.evaluate(focused) == "square-1"
    ring = "getComputedStyle(document.activeElement).outlineStyle"
    assert chromium.evaluate(ring) == "solid"
    for _ in range(4):
        chromium.press("Tab")
    chromium.press("Enter")
    assert chromium.evaluate("location.hash") == "#tile-5"
    assert chromium.evaluate("document.querySelector('#tile-5').getBoundingClientRect().top") < 900
    chromium.press("Tab")
    assert chromium.evaluate(focused) == "#square-5"
    assert chromium.evaluate(ring) == "solid"
    chromium.press("Enter")
    assert chromium.evaluate("document.querySelector(':target').id") == "square-5"


def test_printed_page_has_all_words_colors_and_no_navigation(run: Path, chromium: Chromium) -> None:
    chromium.open((run / "output/data/report.html").as_uri(), 680)  # as wide as A4 between its margins
    hidden = "document.querySelector('details pre').checkVisibility()"
    assert chromium.evaluate(hidden) is False
    chromium.call("Emulation.setEmulatedMedia", media="print")
    assert chromium.evaluate(hidden) is True
    assert chromium.evaluate("[...document.querySelectorAll('nav, .skip')].every(e => !e.checkVisibility())")
    assert chromium.evaluate("getComputedStyle(document.querySelector('.key i')).printColorAdjust") == "exact"
    wide = "[...document.querySelectorAll('.scroll, pre')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert chromium.evaluate(wide) == 0
    chromium.call("Emulation.setEmulatedMedia", media="")


def test_keyboard_reaches_what_scrolls_and_what_leads_elsewhere(run: Path, chromium: Chromium) -> None:
    chromium.open((run / "output/data/report.html").as_uri(), 390)
    unreachable = """[...document.querySelectorAll("body *")].filter(element =>
        ["auto", "scroll"].includes(getComputedStyle(element).overflowX) && element.tabIndex < 0).length"""
    assert chromium.evaluate(unreachable) == 0
    assert chromium.evaluate("[...document.links].every(link => link.tabIndex >= 0 && link.innerText.trim() !== '')")
    headings = chromium.evaluate(
        "[...document.querySelectorAll('h1,h2,h3,h4')].map(heading => Number(heading.tagName[1]))"
    )
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))
