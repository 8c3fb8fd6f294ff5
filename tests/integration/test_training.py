"""Whole runs on small written scenes: what they leave, that they repeat, that they go on where they stopped."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import rasterio
import torch
import yaml
from torch._dynamo.utils import counters

from conftest import SMALL_DATASET, SMALL_MODEL, S3Server, write_tile
from robosat_pink import checkpoint
from robosat_pink.config import Config, load_config
from robosat_pink.container import hardware
from robosat_pink.errors import ContractError
from robosat_pink.models import build_model
from robosat_pink.models.albunet import AlbuNet
from robosat_pink.sample import write_tiles
from robosat_pink.train import main
from robosat_pink.training import metrics

EXPERIMENT: dict[str, Any] = {
    "dataset": SMALL_DATASET,
    "classes": [{"name": "snow", "color": "white"}],
    "channels": [{"bands": [4, 3, 1], "mean": [0.37, 0.38, 0.36], "std": [0.2, 0.25, 0.24], "scale": 10000}],
    "model": SMALL_MODEL | {"batch_size": 3, "epochs": 2},
    "runtime": {"workers": 0},
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    write_tiles(folder, tiles=4, size=64)
    return folder


@pytest.fixture
def job(opt_ml: Path, scene: Path) -> Path:
    """An /opt/ml with the experiment, its tiles in channels, and a folder for resume points."""
    for channel in ("imagery", "mask"):
        (opt_ml / "input/data" / channel).symlink_to(scene / channel)
    (opt_ml / "input/data/config/experiment.yml").write_text(yaml.safe_dump(EXPERIMENT))
    (opt_ml / "checkpoints").mkdir()
    return opt_ml


def weights(folder: Path, name: str = "best.pth") -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / name)["state_dict"]


def identical(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def history(folder: Path) -> list[dict[str, str]]:
    """history.csv without what a clock wrote."""
    with (folder / "history.csv").open() as file:
        return [{key: value for key, value in row.items() if "seconds" not in key} for row in csv.DictReader(file)]


def test_a_run_leaves_what_the_design_promises(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    log = capsys.readouterr().out
    names = sorted(path.name for path in (job / "model").iterdir())
    assert names == [
        "MODEL_CARD.md",
        "best.pth",
        "checkpoint-00002-of-00002.pth",
        "config.yml",
        "history.csv",
        "metrics.json",
        "test_ids.txt",
        "train_ids.txt",
    ]
    assert not (job / "output/failure").exists()

    content = torch.load(job / "model/checkpoint-00002-of-00002.pth", weights_only=True)
    assert content["epoch"] == 2
    assert content["metadata"]["bands"] == [4, 3, 1]
    assert content["metadata"]["scale"] == [10000.0]
    assert content["metadata"]["classes"] == [{"name": "snow", "color": "white", "values": [1]}]
    assert set(content) == {"epoch", "state_dict", "optimizer", "metadata"}
    model = build_model("albunet", num_classes=1, num_channels=3, encoder="resnet18", num_filters=4)
    assert checkpoint.load_weights(model, job / "model/best.pth").epoch in (1, 2)

    train_ids = (job / "model/train_ids.txt").read_text().split()
    test_ids = (job / "model/test_ids.txt").read_text().split()
    assert (len(train_ids), len(test_ids)) == (10, 6)
    assert not set(train_ids) & set(test_ids)
    assert all(re.fullmatch(r"channel:imagery_20180528_sierra-\d+-\d+-15", each) for each in train_ids + test_ids)
    assert isinstance(load_config(job / "model/config.yml"), Config)

    numbers = json.loads((job / "model/metrics.json").read_text())
    assert (numbers["epoch"], numbers["holdout"]) == (2, None)
    rows = history(job / "model")
    for phase in ("train", "val"):
        line = next(line for line in log.splitlines() if line.startswith(f"phase={phase} epoch=2 "))
        for name in metrics.NAMES:
            logged = float(re.search(rf"\b{phase}_{name}=(\S+)", line)[1])  # type: ignore[index]
            assert logged == pytest.approx(numbers[phase][name], abs=1e-6)
            assert float(rows[-1][f"{phase}_{name}"]) == numbers[phase][name]
        assert set(numbers[phase]) == {*metrics.NAMES, "per_class"}
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[0]["lr"]) > float(rows[1]["lr"]) > 0


@pytest.mark.slow
def test_same_seed_same_result_to_the_last_bit_whatever_the_workers(job: Path, tmp_path: Path) -> None:
    results = []
    for overrides in ([], ["runtime.workers=1"]):
        assert main(overrides) == 0
        for point in (job / "checkpoints").iterdir():
            point.unlink()
        results.append((weights(job / "model", "checkpoint-00002-of-00002.pth"), history(job / "model")))
    assert identical(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def files_in(*folders: Path) -> set[str]:
    return {str(path.relative_to(folder)) for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_new_run_in_a_used_folder_puts_the_results_of_the_earlier_one_aside_and_nothing_else(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = job / "model", job / "output/data"
    arguments = ["dataset.split.test_percent=0.2", "model.epochs=1"]
    known = ["config.yml", "holdout_ids.txt", "test_ids.txt", "train_ids.txt"]
    assert main(arguments) == 0
    left = files_in(*folders)
    for name in ("model/checkpoint-1.pth", "model/card.md", "output/data/report.html.orig", "output/data/tiles/x.txt"):
        (job / name).touch()
    others = {"checkpoint-1.pth", "card.md", "report.html.orig", "tiles/x.txt"}
    capsys.readouterr()

    assert main(arguments) == 0  # goes on, with nothing left to do
    said = capsys.readouterr().out
    assert "results of an earlier run" not in said
    assert "nothing is left to train: for more, raise model.epochs" in said

    shutil.rmtree(job / "checkpoints")
    assert main([*arguments, "model.lr=0.5", "runtime.max_seconds=0.000001"]) == 0
    assert f"results of an earlier run from {job / 'model'} to {job / 'model/earlier-1'}" in capsys.readouterr().out
    aside = {f"earlier-1/{name}" for name in left}
    assert files_in(*folders) == others | aside | {*known, "best.pth", "checkpoint-00000-of-00001.pth"}
    assert checkpoint.load(job / "model/best.pth")["metadata"]["config"]["model"]["lr"] == 0.5
    told = [yaml.safe_load((job / folder / "config.yml").read_text()) for folder in ("model/earlier-1", "model")]
    assert [each["model"]["lr"] == 0.5 for each in told] == [False, True]


@pytest.mark.slow
def test_file_that_the_experiment_names_is_not_moved_away(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model.epochs=1"]) == 0
    shutil.rmtree(job / "checkpoints")
    weights_before = (job / "model/best.pth").read_bytes()
    monkeypatch.chdir(job)
    named = "./model/best.pth"
    assert main(["model.epochs=1", f"checkpoint.path={named}", "runtime.max_seconds=0.000001"]) == 0
    assert f"starting from {named}" in capsys.readouterr().out
    assert (job / "model/best.pth").read_bytes() == weights_before
    assert not (job / "model/metrics.json").exists()


@pytest.mark.slow
def test_another_seed_is_another_run(job: Path) -> None:
    assert main(["model.epochs=1", "runtime.seed=0"]) == 0
    first = weights(job / "model")
    shutil.rmtree(job / "checkpoints")
    assert main(["model.epochs=1", "runtime.seed=1"]) == 0
    assert not identical(first, weights(job / "model"))


@pytest.mark.slow
def test_the_same_command_goes_on_where_an_earlier_attempt_stopped(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model.epochs=3"]) == 0
    whole = weights(job / "model", "checkpoint-00003-of-00003.pth")
    numbers, rows = (job / "model/metrics.json").read_text(), history(job / "model")
    best = weights(job / "model")

    # The platform loses /opt/ml/model of an interrupted attempt and keeps /opt/ml/checkpoints.
    for folder in ("model", "checkpoints"):
        shutil.rmtree(job / folder)
        (job / folder).mkdir()
    from robosat_pink.training import loop

    train_epoch = loop.train_epoch

    def interrupted(state: loop.State, task: loop.Task, epoch: int, *rest: Any) -> dict[str, object]:
        if epoch == 3:
            raise KeyboardInterrupt
        return train_epoch(state, task, epoch, *rest)

    monkeypatch.setattr(loop, "train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(["model.epochs=3"])
    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    shutil.rmtree(job / "model")
    capsys.readouterr()

    assert main(["model.epochs=3"]) == 0
    log = capsys.readouterr().out
    assert "2 epochs and 0 steps are done" in log
    assert "phase=train epoch=2" not in log
    assert identical(whole, weights(job / "model", "checkpoint-00003-of-00003.pth"))
    assert identical(best, weights(job / "model"))
    assert history(job / "model") == rows
    assert json.loads((job / "model/metrics.json").read_text()) == json.loads(numbers)


@pytest.mark.slow
def test_a_finished_run_started_again_writes_its_results_and_trains_nothing(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == 0
    names = sorted(path.name for path in (job / "model").iterdir())
    best = weights(job / "model")
    shutil.rmtree(job / "model")
    capsys.readouterr()
    assert main([]) == 0
    assert "phase=train" not in capsys.readouterr().out
    assert sorted(path.name for path in (job / "model").iterdir()) == names
    assert identical(best, weights(job / "model"))


@pytest.mark.slow
def test_damaged_newest_resume_point_falls_back_to_the_one_before(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model.epochs=2"]) == 0
    whole = weights(job / "model", "checkpoint-00002-of-00002.pth")
    newest = job / "checkpoints/resume-00002-000000.pth"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert main(["model.epochs=2"]) == 0
    assert "1 epoch and 0 steps are done" in capsys.readouterr().out
    assert identical(whole, weights(job / "model", "checkpoint-00002-of-00002.pth"))


@pytest.mark.slow
def test_resume_point_of_another_experiment_is_refused_with_the_differing_keys(job: Path) -> None:
    assert main(["model.epochs=1"]) == 0
    assert main(["model.epochs=1", "model.lr=0.5", "dataset.split.seed=3"]) == 4
    failure = (job / "output/failure").read_text()
    assert "dataset.split.seed = 3, there 0; model.lr = 0.5, there 0.001" in failure
    assert len(failure) <= 1024


@pytest.mark.slow
def test_holdout_is_evaluated_once_with_the_best_weights(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset.split.test_percent=0.2"]) == 0
    assert len((job / "model/holdout_ids.txt").read_text().split()) == 3
    log = capsys.readouterr().out
    assert log.count("phase=holdout") == 1
    holdout = json.loads((job / "model/metrics.json").read_text())["holdout"]
    assert f"holdout_iou={holdout['iou']:.6f}" in log


@pytest.mark.slow
def test_an_earlier_run_s_ids_split_this_one(job: Path) -> None:
    assert main(["model.epochs=1"]) == 0
    shutil.copytree(job / "model", job / "earlier")
    ids = (job / "model/test_ids.txt").read_text()
    shutil.rmtree(job / "checkpoints")
    arguments = [f"dataset.split.from={job}/earlier/test_ids.txt", "dataset.train_percent=0.1", "model.epochs=1"]
    assert main(arguments) == 0
    assert (job / "model/test_ids.txt").read_text() == ids


@pytest.mark.slow
def test_several_classes_are_trained_and_told_apart(job: Path) -> None:
    experiment = EXPERIMENT | {"classes": [{"name": "ground"}, {"name": "snow", "color": "blue"}]}
    (job / "input/data/config/experiment.yml").write_text(yaml.safe_dump(experiment))
    assert main(["model.epochs=1"]) == 0
    assert list(json.loads((job / "model/metrics.json").read_text())["val"]["per_class"]) == ["ground", "snow"]


@pytest.mark.slow
def test_tiles_in_a_bucket_train_like_tiles_in_a_folder(job: Path, scene: Path, s3: S3Server) -> None:
    assert main(["model.epochs=1"]) == 0
    local = weights(job / "model")
    for bucket in ("imagery", "mask"):
        s3.make_bucket(f"snow-{bucket}")
        s3.upload(scene / bucket, f"snow-{bucket}", "2018/")
    shutil.rmtree(job / "checkpoints")
    arguments = ["dataset.image_bucket=snow-imagery/2018", "dataset.mask_bucket=s3://snow-mask/2018/", "model.epochs=1"]
    assert main(arguments) == 0
    assert identical(local, weights(job / "model"))
    assert (job / "model/train_ids.txt").read_text().startswith("snow-imagery_2018_20180528_sierra-")


@pytest.mark.slow
def test_checkpoint_path_starts_from_these_weights(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model.epochs=1"]) == 0
    shutil.copy(job / "model/best.pth", job / "start.pth")
    shutil.rmtree(job / "checkpoints")
    capsys.readouterr()
    assert main(["model.epochs=1", f"checkpoint.path={job}/start.pth", "model.lr=1e-12"]) == 0
    assert f"starting from {job}/start.pth" in capsys.readouterr().out
    start, end = weights(job, "start.pth"), weights(job / "model")
    assert torch.allclose(start["final.weight"], end["final.weight"], atol=1e-6)


@pytest.mark.slow
def test_losses_and_metrics_are_per_tile_whatever_the_batch_size(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only evaluated, all with the same weights, in batches of 1, 4 (which leaves a rest) and 16."""
    from robosat_pink.training import loop

    monkeypatch.setattr(
        loop,
        "train_epoch",
        lambda state, task, epoch, save: loop.evaluate(state, task, task.data.split.train, "train", epoch),
    )
    found = []
    for batch_size in (1, 4, 16):
        shutil.rmtree(job / "checkpoints", ignore_errors=True)
        assert main(["model.epochs=1", "runtime.precision=fp32", f"model.batch_size={batch_size}"]) == 0
        numbers = json.loads((job / "model/metrics.json").read_text())
        found.append((numbers["train"], numbers["val"]))
    for other in found[1:]:
        for phase, first in zip(other, found[0], strict=True):
            assert phase["per_class"] == first["per_class"]
            assert phase["loss"] == pytest.approx(first["loss"], rel=1e-5)


@pytest.mark.slow
def test_the_device_is_asked_for_numbers_once_a_phase(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it ask for a number within a step, but on a CPU, which waits for nothing, for losses that are none."""
    from robosat_pink.training import loop

    asked: list[str] = []
    for name in ("item", "tolist", "__bool__", "__float__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda tensor, name=name, original=original: (asked.append(name), original(tensor))[1]
        )
    found: dict[str, list[int]] = {}

    def watch(place: Any, name: str) -> None:
        original = getattr(place, name)

        def counted(*arguments: Any) -> Any:
            asked.clear()
            value = original(*arguments)
            found.setdefault(name, []).append(len(asked))
            return value

        monkeypatch.setattr(place, name, counted)

    watch(loop.PhaseMetrics, "finish")
    watch(loop.PhaseMetrics, "add")
    watch(loop, "training_step")
    assert main(["model.epochs=1"]) == 0
    assert found["finish"] == [1, 1]
    assert set(found["add"]) == set(found["training_step"]) == {0}


@pytest.mark.slow
def test_last_checkpoint_is_the_last_epoch_s_even_where_a_resume_only_scores_the_held_out(job: Path) -> None:
    arguments = ["dataset.split.test_percent=0.2", "model.epochs=3"]
    assert main(arguments) == 0
    last = weights(job / "model", "checkpoint-00003-of-00003.pth")
    shutil.rmtree(job / "model")
    assert main(arguments) == 0
    assert identical(weights(job / "model", "checkpoint-00003-of-00003.pth"), last)


@pytest.mark.slow
def test_fewer_epochs_than_are_done_are_refused(job: Path) -> None:
    assert main(["model.epochs=2"]) == 0
    assert main(["model.epochs=1"]) == 4
    assert "was written after 2 epochs, but model.epochs = 1" in (job / "output/failure").read_text()


@pytest.mark.slow
def test_masks_of_one_class_only_are_warned_of(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As binary masks look that declare their background as nodata."""
    for path in (job / "input/data/mask").resolve().rglob("*.tif"):
        with rasterio.open(path) as file:
            pixels, profile = file.read(), file.profile
        copy = job / "mask" / path.relative_to((job / "input/data/mask").resolve())
        write_tile(copy, pixels, nodata=0, crs=profile["crs"], transform=profile["transform"])
    assert main(["model.epochs=1", f"dataset.mask_bucket={job}/mask"]) == 0
    assert "every valid pixel of the val tiles is of one class" in capsys.readouterr().out


@pytest.mark.slow
def test_reading_in_the_main_process_leaves_the_network_its_threads(job: Path) -> None:
    torch.set_num_threads(2)
    try:
        assert main(["model.epochs=1", "runtime.workers=0"]) == 0
        assert torch.get_num_threads() == min(2, hardware.cpu_count())
    finally:
        torch.set_num_threads(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "override",
    ["runtime.precision=fp16", "runtime.recompute=none", "runtime.recompute=blocks", "runtime.accumulation=2"],
)
def test_ways_to_compute_train_and_go_on_where_they_stopped(job: Path, override: str) -> None:
    settings = [override, "runtime.precision=fp32"] if "precision" not in override else [override]
    assert main(["model.epochs=1", *settings]) == 0
    assert main(settings) == 0
    assert [row["epoch"] for row in history(job / "model")] == ["1", "2"]
    assert all(each.isfinite().all() for each in weights(job / "model").values())


def test_memory_that_does_not_suffice_ends_the_run_with_the_settings_that_fit(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = AlbuNet.forward

    def limited(model: AlbuNet, image: torch.Tensor) -> torch.Tensor:
        if len(image) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(model, image)

    monkeypatch.setattr(AlbuNet, "forward", limited)
    assert main([]) == ContractError.exit_code
    assert "set runtime.accumulation = 3, which" in (job / "output/failure").read_text()


def test_checkpoint_that_cannot_be_written_in_the_background_ends_the_run(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ContractError("the disk is full")

    monkeypatch.setattr(checkpoint, "save_epoch", fail)
    assert main([]) == ContractError.exit_code
    assert "the disk is full" in (job / "output/failure").read_text()


@pytest.mark.slow
def test_run_that_gets_no_better_ends_early_and_stays_ended(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["model.epochs=9", "model.patience=2", "model.lr=1e-30", "model.batch_norm=frozen"]
    for _ in range(2):
        assert main(arguments) == 0
        assert "ended early: no better epoch than 1 for model.patience = 2 epochs" in capsys.readouterr().out
        assert [row["epoch"] for row in history(job / "model")] == ["1", "2", "3"]
        assert json.loads((job / "model/metrics.json").read_text())["best_epoch"] == 1


@pytest.mark.slow
def test_run_whose_time_is_over_stops_cleanly_and_goes_on_another_time(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("robosat_pink.training.progress.LINE_S", 0.0)
    assert main(["runtime.max_seconds=0.001"]) == 0
    assert "stopped at runtime.max_seconds = 0.001 after 0 epochs and 1 step" in capsys.readouterr().out
    assert [path.name for path in (job / "checkpoints").iterdir()] == ["resume-00000-000001.pth"]
    assert not (job / "output/data/report.html").exists()  # there is no epoch to report on
    assert main([]) == 0
    log = capsys.readouterr().out
    assert "0 epochs and 1 step are done" in log
    assert "epoch 1 train: 1 of 4 batches" not in log
    assert "epoch 1 train: 2 of 4 batches" in log


def test_batches_with_a_non_finite_loss_are_named_and_too_many_end_the_run(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = EXPERIMENT | {"channels": [{"bands": [4, 3, 1], "scale": 1e-44}]}
    (job / "input/data/config/experiment.yml").write_text(yaml.safe_dump(experiment))
    assert main(["runtime.skipped_batches=1"]) == 1
    log = capsys.readouterr().out
    ids = (job / "model/train_ids.txt").read_text().split()
    warning, error = (line for line in log.splitlines() if "the loss is non-finite" in line)
    assert warning.startswith("warning: epoch 1, step(s) 1: ")
    assert "epoch 1, step(s) 2: " in error
    assert "only 1 batch(es) may be skipped for that (runtime.skipped_batches)" in error
    assert [sum(each in line for each in ids) for line in (warning, error)] == [3, 3]
    assert not (job / "model/best.pth").exists()


def test_epoch_whose_batches_were_all_skipped_is_no_error_of_the_tiles_masks(job: Path) -> None:
    experiment = EXPERIMENT | {"channels": [{"bands": [4, 3, 1], "scale": 1e-44}]}
    (job / "input/data/config/experiment.yml").write_text(yaml.safe_dump(experiment))
    assert main(["runtime.skipped_batches=100"]) == 1
    failure = (job / "output/failure").read_text()
    assert "epoch 1: the loss is non-finite (NaN or inf) in every step; check the tiles named above, chan" in failure


@pytest.mark.slow
def test_checkpoint_of_an_earlier_run_is_resumed_with_its_optimizer_and_epoch(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours of an epoch: weights, optimizer and epoch, as robosat.pink wrote them."""
    assert main(["model.epochs=2", "model.schedule=constant"]) == 0
    whole = weights(job / "model", "checkpoint-00002-of-00002.pth")
    for folder in ("model", "checkpoints"):
        shutil.rmtree(job / folder)
        (job / folder).mkdir()
    assert main(["model.epochs=1", "model.schedule=constant"]) == 0
    shutil.move(job / "model/checkpoint-00001-of-00001.pth", job / "first.pth")
    for folder in ("model", "checkpoints"):
        shutil.rmtree(job / folder)
        (job / folder).mkdir()
    resume = [f"checkpoint.resume={job}/first.pth", "model.epochs=2", "model.schedule=constant"]
    assert main(resume) == 0
    assert f"continuing from {job}/first.pth: 1 epoch and 0 steps are done" in capsys.readouterr().out
    assert identical(weights(job / "model", "checkpoint-00002-of-00002.pth"), whole)
    assert [row["epoch"] for row in history(job / "model")] == ["2"]


@pytest.mark.slow
def test_compiled_network_is_compiled_once_for_the_batches_that_most_are(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither for the last batch, which is smaller, nor for evaluation; and it learns the same, in float32."""
    settings = ["model.epochs=1", "runtime.precision=fp32"]
    assert main(settings) == 0
    plain = weights(job / "model")
    for folder in ("model", "checkpoints"):
        shutil.rmtree(job / folder)
        (job / folder).mkdir()
    compile_ = torch.compile
    monkeypatch.setattr(  # inductor takes minutes for what does not matter here
        torch, "compile", lambda model, **how: compile_(model, backend="aot_eager", fullgraph=True, **how)
    )
    torch._dynamo.reset()
    counters.clear()
    # That backend needs no compiler.
    monkeypatch.setattr("robosat_pink.container.device.check_compiler", lambda device: None)
    assert main([*settings, "runtime.compile=true"]) == 0
    assert counters["stats"]["unique_graphs"] == 1
    out = capsys.readouterr().out
    assert "the network is compiled in the first step" in out
    assert out.count("epoch 1 train: the step that compiled the network took ") == 1
    compiled = weights(job / "model")
    assert plain.keys() == compiled.keys()
    for key, value in plain.items():
        torch.testing.assert_close(compiled[key], value, rtol=1e-3, atol=1e-4, msg=key)
