"""What a user got wrong is told in the same words by the log and the failure file, with the exit code of its kind."""

import json
import os
from collections.abc import Callable
from errno import ENOSPC
from pathlib import Path
from subprocess import CompletedProcess
from typing import IO, Any

import numpy as np
import pytest
import torch
import yaml

from conftest import S3Server, pattern, write_tile
from robosat_pink import checkpoint, train

CONFIG, DATA, CONTRACT, DEFECT = 2, 3, 5, 1  # exit codes
KNOWN_BEFORE_THE_FIRST_STEP = {"config.yml", "train_ids.txt", "test_ids.txt"}

Run = Callable[..., CompletedProcess[str]]

EXPERIMENT: dict[str, dict[str, Any]] = {
    "dataset": {
        "image_bucket": "channel:imagery",
        "imagery_directory_regex": "20180528_tiled$",
        "mask_bucket": "channel:mask",
        "mask_directory_regex": "20180528_binary$",
        "train_percent": 0.5,
    },
    "classes": [{"name": "snow"}],
    "channels": [{"bands": [1, 2]}],
    "model": {
        "name": "albunet",
        "encoder": "resnet18",
        "num_filters": 2,
        "tile_size": 64,
        "batch_size": 2,
        "epochs": 1,
    },
    "runtime": {"workers": 0},
}
IMAGE = "20180528_tiled/5/2/2.tif"
MASK = "20180528_binary/5/2/2.tif"


@pytest.fixture
def job(opt_ml: Path) -> Path:
    """An /opt/ml with an experiment and four pairs of tiles that train in a second."""
    for x in range(4):
        write_tile(opt_ml / f"input/data/imagery/20180528_tiled/5/{x}/2.tif", pattern(2, 64, 64))
        write_tile(opt_ml / f"input/data/mask/20180528_binary/5/{x}/2.tif", np.tri(64, dtype=np.uint8))
    write_experiment(opt_ml)
    return opt_ml


@pytest.fixture
def run_here(capfd: pytest.CaptureFixture[str]) -> Run:
    """The same command in this process, without the seconds that importing torch takes."""

    def run(*arguments: str) -> CompletedProcess[str]:
        capfd.readouterr()
        exit_code = train.main(arguments)
        return CompletedProcess(arguments, exit_code, *capfd.readouterr())

    return run


def write_experiment(job: Path, **changed: dict[str, Any]) -> None:
    """experiment.yml, with keys of its sections changed."""
    tree = {name: values | changed[name] if name in changed else values for name, values in EXPERIMENT.items()}
    (job / "input/data/config/experiment.yml").write_text(yaml.safe_dump(tree))


def cut(path: Path) -> None:
    """Leave the header of a tile and half of its pixels: it opens and cannot be read."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def overwrite(path: Path) -> None:
    """What a careless download leaves: the name of a tile, and a page of text."""
    path.write_bytes(b"<html>404</html>")


def write_mask_with_a_7(job: Path) -> None:
    mask = np.tri(64, dtype=np.uint8)
    mask[3, 5] = 7
    write_tile(job / "input/data/mask" / MASK, mask)


def cause_of(run: CompletedProcess[str], job: Path, exit_code: int) -> str:
    """The first line of the failure file, once what holds for every mistake of a user is checked."""
    assert run.returncode == exit_code, run.stdout + run.stderr
    failure = (job / "output/failure").read_bytes().decode("ascii")
    assert len(failure) <= 1024
    cause = failure.splitlines()[0]
    assert [line for line in run.stdout.splitlines() if line.startswith("error: ")] == [f"error: {cause}"]
    assert "Traceback" not in run.stdout
    assert "error" not in run.stderr.lower()
    assert {path.name for path in (job / "model").iterdir()} <= KNOWN_BEFORE_THE_FIRST_STEP
    assert not list(job.rglob("*.sagemaker-ignore"))
    return cause


# The ten mistakes, each through the container's command.


def test_no_experiment_file_is_told_with_the_folder(job: Path, run_train: Run) -> None:
    (job / "input/data/config/experiment.yml").unlink()
    cause = cause_of(run_train(), job, CONTRACT)
    assert cause.startswith(f"{job}/input/data/config must hold exactly one experiment file")
    assert "it holds nothing" in cause


def test_two_experiment_files_are_told_by_name(job: Path, run_train: Run) -> None:
    (job / "input/data/config/second.json").write_text("{}")
    cause = cause_of(run_train(), job, CONTRACT)
    assert cause.startswith(f"{job}/input/data/config must hold exactly one experiment file")
    assert "experiment.yml, second.json" in cause


def test_misspelt_key_is_told_with_the_nearest_name(job: Path, run_train: Run) -> None:
    write_experiment(job, model={"epoch": 3})
    cause = cause_of(run_train(), job, CONFIG)
    assert cause.startswith("experiment.yml: model.epoch = 3: ")
    assert "model.epochs" in cause


def test_wrong_type_is_told_with_what_is_accepted(job: Path, run_train: Run) -> None:
    write_experiment(job, model={"epochs": "many"})
    cause = cause_of(run_train(), job, CONFIG)
    assert cause.startswith('experiment.yml: model.epochs = "many": accepted: a whole number')


def test_tile_size_that_the_network_cannot_take_is_told_with_one_that_it_can(job: Path, run_train: Run) -> None:
    write_experiment(job, model={"tile_size": 96})
    cause = cause_of(run_train(), job, CONFIG)
    assert cause == "experiment.yml: model.tile_size = 96: albunet needs a multiple of 64; try 128"


def test_train_percent_1_is_told_with_its_range(job: Path, run_train: Run) -> None:
    write_experiment(job, dataset={"train_percent": 1.0})
    cause = cause_of(run_train(), job, CONFIG)
    assert cause.startswith("experiment.yml: dataset.train_percent = 1.0: accepted: ")
    assert "below 1" in cause


def test_expression_that_matches_nothing_is_told_with_the_directories_there_are(job: Path, run_train: Run) -> None:
    write_experiment(job, dataset={"imagery_directory_regex": "2019"})
    cause = cause_of(run_train(), job, DATA)
    assert cause.startswith("dataset.imagery_directory_regex = '2019' matches no directory of channel:imagery")
    assert "20180528_tiled" in cause


@pytest.mark.slow
def test_bucket_that_does_not_exist_is_told_by_name(job: Path, run_train: Run, s3: S3Server) -> None:
    s3.make_bucket("planet-snowcover-snow")
    write_experiment(job, dataset={"image_bucket": "planet-snowcover-imagrey", "mask_bucket": "planet-snowcover-snow"})
    cause = cause_of(run_train(), job, DATA)
    assert cause.startswith("dataset.image_bucket: s3://planet-snowcover-imagrey: ")
    assert "does not exist" in cause


def test_corrupt_tile_is_told_by_name(job: Path, run_train: Run) -> None:
    cut(job / "input/data/imagery" / IMAGE)
    cause = cause_of(run_train(), job, DATA)
    assert cause.startswith(f"channel:imagery/{IMAGE}: damaged")


def test_mask_value_that_no_class_lists_is_told_with_tile_and_value(job: Path, run_train: Run) -> None:
    write_mask_with_a_7(job)
    cause = cause_of(run_train(), job, DATA)
    assert cause.startswith(f"channel:mask/{MASK}: mask value 7 in 1 pixel")


def test_run_without_a_mistake_exits_0_and_leaves_no_failure_file(job: Path, run_train: Run) -> None:
    run = run_train()
    assert run.returncode == 0
    assert "error:" not in (run.stdout + run.stderr).lower()
    assert not (job / "output/failure").exists()
    assert not list(job.rglob("*.sagemaker-ignore"))


# Variations of the mistakes.


def test_missing_config_channel_is_told_with_the_folder(job: Path, run_here: Run) -> None:
    (job / "input/data/config/experiment.yml").unlink()
    (job / "input/data/config").rmdir()
    assert cause_of(run_here(), job, CONTRACT).startswith(f"{job}/input/data/config does not exist")


def test_every_mistake_in_the_file_has_its_line_in_log_and_failure_file(job: Path, run_here: Run) -> None:
    write_experiment(job, dataset={"train_percent": 1.0}, model={"epoch": 3, "lr": "fast", "tile_size": 96})
    run = run_here()
    cause_of(run, job, CONFIG)
    failure = (job / "output/failure").read_text().partition("\n\n")[0].splitlines()
    for key in ("dataset.train_percent", "model.epoch", "model.lr", "model.tile_size"):
        (line,) = (each for each in failure if each.startswith(f"experiment.yml: {key} = "))
        assert line in run.stdout


def test_more_mistakes_than_the_failure_file_holds_leave_the_first_on_its_first_line(job: Path, run_here: Run) -> None:
    write_experiment(job, runtime={f"switch_{number:02d}": number for number in range(40)})
    run = run_here()
    assert cause_of(run, job, CONFIG).startswith("experiment.yml: runtime.switch_00 = 0: no such key")
    assert "runtime.switch_39 = 39: no such key" in run.stdout


def test_failure_file_is_ascii_whatever_the_mistake_is_written_in(job: Path, run_here: Run) -> None:
    run = run_here("model.schedule=réseau❄")
    assert run.returncode == CONFIG
    assert 'command line: model.schedule = "réseau❄"' in run.stdout
    failure = (job / "output/failure").read_bytes().decode("ascii")
    assert failure.startswith(r'command line: model.schedule = "r\xe9seau\u2744"')


@pytest.mark.parametrize("share", ["1", "1.0", "1.5", "0", "-0.1", "nan"])
def test_train_percent_must_lie_strictly_between_0_and_1(job: Path, run_here: Run, share: str) -> None:
    cause = cause_of(run_here(f"dataset.train_percent={share}"), job, CONFIG)
    assert cause.startswith(f'command line: dataset.train_percent = "{share}": accepted: ')


def test_mistake_in_a_hyperparameter_is_told_with_its_file(job: Path, run_here: Run) -> None:
    (job / "input/config/hyperparameters.json").write_text(json.dumps({"model.epochs": "many"}))
    cause = cause_of(run_here(), job, CONFIG)
    assert cause.startswith('hyperparameters.json: model.epochs = "many": accepted: a whole number')


def test_mask_expression_that_matches_nothing_is_told_by_its_own_key(job: Path, run_here: Run) -> None:
    cause = cause_of(run_here("dataset.mask_directory_regex=.*_tiled"), job, DATA)
    assert cause.startswith("dataset.mask_directory_regex = '.*_tiled' matches no directory of channel:mask")
    assert "20180528_binary" in cause


def test_channel_that_the_job_does_not_have_is_told_with_those_it_has(job: Path, run_here: Run) -> None:
    cause = cause_of(run_here("dataset.mask_bucket=channel:masks"), job, CONFIG)
    assert cause.startswith("channel:masks: there is no channel 'masks'")
    assert "config, imagery, mask" in cause


def test_folder_that_does_not_exist_is_told_by_name(job: Path, run_here: Run) -> None:
    cause = cause_of(run_here(f"dataset.mask_bucket={job}/masks"), job, DATA)
    assert cause.startswith(f"dataset.mask_bucket: {job}/masks: no such folder")


def test_prefix_that_holds_nothing_is_told_with_its_bucket(job: Path, run_here: Run, s3: S3Server) -> None:
    s3.make_bucket("planet-snowcover-imagery")
    cause = cause_of(run_here("dataset.image_bucket=planet-snowcover-imagery/2018"), job, DATA)
    assert cause.startswith("dataset.image_bucket: no directories lie below s3://planet-snowcover-imagery/2018; check")


@pytest.mark.parametrize("tile", [f"imagery/{IMAGE}", f"mask/{MASK}"])
@pytest.mark.parametrize("damage", [empty, overwrite])
def test_file_that_is_no_tile_is_told_by_name(
    job: Path, run_here: Run, tile: str, damage: Callable[[Path], None]
) -> None:
    damage(job / "input/data" / tile)
    assert cause_of(run_here(), job, DATA).startswith(f"channel:{tile}: ")


def test_mask_of_another_size_than_its_image_is_told_with_both_names(job: Path, run_here: Run) -> None:
    write_tile(job / "input/data/mask" / MASK, np.tri(32, 64, dtype=np.uint8))
    cause = cause_of(run_here(), job, DATA)
    assert cause.startswith(f"channel:mask/{MASK}: 64 x 32 pixels")
    assert f"channel:imagery/{IMAGE} has 64 x 64" in cause


@pytest.mark.parametrize("damage", [cut, overwrite])
def test_corrupt_tile_met_in_a_worker_process_is_told_in_the_same_words(
    job: Path, run_here: Run, damage: Callable[[Path], None]
) -> None:
    damage(job / "input/data/imagery" / IMAGE)
    causes = {cause_of(run_here(f"runtime.workers={workers}"), job, DATA) for workers in (0, 1)}
    assert len(causes) == 1


def test_mask_value_is_accepted_once_a_class_lists_it(job: Path, run_here: Run) -> None:
    write_mask_with_a_7(job)
    assert run_here("classes.0.values=[1,7]").returncode == 0


# What a failure leaves, and what it takes away.


@pytest.mark.slow
@pytest.mark.parametrize("part", ["train", "test"])
def test_corrupt_tile_leaves_no_half_trained_model_whichever_part_it_lies_in(
    job: Path, run_here: Run, part: str
) -> None:
    assert run_here().returncode == 0
    x = (job / f"model/{part}_ids.txt").read_text().split()[0].split("-")[-3]
    for path in (job / "model").iterdir():
        path.unlink()
    cut(job / f"input/data/imagery/20180528_tiled/5/{x}/2.tif")
    cause_of(run_here(), job, DATA)  # and with it, that no checkpoint and no metrics are there


@pytest.mark.slow
def test_corrupt_tile_in_a_later_epoch_leaves_the_earlier_epoch_s_files_whole(job: Path, run_here: Run) -> None:
    (job / "checkpoints").mkdir()
    assert run_here().returncode == 0
    numbers = (job / "model/metrics.json").read_text()
    cut(job / "input/data/imagery" / IMAGE)
    assert run_here("model.epochs=2").returncode == DATA
    assert (job / "output/failure").read_text().startswith(f"channel:imagery/{IMAGE}: damaged")
    weights = sorted(path.relative_to(job).as_posix() for path in job.rglob("*.pth"))
    assert weights == ["checkpoints/resume-00001-000000.pth", "model/best.pth", "model/checkpoint-00001-of-00001.pth"]
    assert [checkpoint.load(job / path)["epoch"] for path in weights] == [1, 1, 1]
    assert (job / "model/metrics.json").read_text() == numbers
    assert not list(job.rglob("*.sagemaker-ignore"))


def test_disk_that_fills_up_under_a_checkpoint_leaves_none(
    job: Path, run_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: set[str] = set()

    def save(content: object, file: IO[bytes]) -> None:
        file.write(b"half")
        shown.update(path.name for path in (job / "model").iterdir())
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    monkeypatch.setattr(torch, "save", save)
    assert run_here().returncode != 0
    assert "No space left on device" in (job / "output/failure").read_text().splitlines()[0]
    assert shown == {*KNOWN_BEFORE_THE_FIRST_STEP, f"checkpoint-00001-of-00001.pth.{os.getpid()}.sagemaker-ignore"}
    assert {path.name for path in (job / "model").iterdir()} == KNOWN_BEFORE_THE_FIRST_STEP
    assert not list(job.rglob("*.sagemaker-ignore"))


def test_what_a_killed_attempt_left_half_written_is_cleared(job: Path, run_here: Run) -> None:
    (job / "checkpoints").mkdir()
    for path in ("model/checkpoint-00009-of-00050.pth", "checkpoints/resume-00009-000000.pth"):
        (job / f"{path}.sagemaker-ignore").write_bytes(b"half")
    assert run_here().returncode == 0
    assert not list(job.rglob("*.sagemaker-ignore"))


def test_internal_error_exits_1_with_type_and_text_first_and_its_traceback_in_the_log(
    job: Path, run_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("robosat_pink.training.run.run", run)
    done = run_here()
    assert done.returncode == DEFECT
    failure = (job / "output/failure").read_bytes().decode("ascii")
    assert failure.startswith("ZeroDivisionError: division by zero\n")
    assert len(failure) <= 1024
    assert done.stdout.splitlines()[0] == "error: ZeroDivisionError: division by zero"
    assert "Traceback" in done.stdout
    assert done.stdout.endswith("ZeroDivisionError: division by zero\n")


def test_failure_file_tells_the_latest_attempt_only(job: Path, run_here: Run) -> None:
    assert cause_of(run_here("model.epoch=3"), job, CONFIG).startswith("command line: model.epoch ")
    assert cause_of(run_here("dataset.imagery_directory_regex=2019"), job, DATA).startswith("dataset.imagery_directory")
    assert "model.epoch " not in (job / "output/failure").read_text()
    assert run_here().returncode == 0
    assert not (job / "output/failure").exists()
