"""The /opt/ml tree: what the platform puts there is read as it is meant, what a run leaves is where it belongs."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from robosat_pink.container.contract import Container
from robosat_pink.container.failure_file import failure_text
from robosat_pink.errors import ContractError, DataError


def write_config(opt_ml: Path, name: str, value: object) -> Path:
    path = opt_ml / "input/config" / f"{name}.json"
    path.write_text(json.dumps(value))
    return path


def write_experiments(opt_ml: Path, *names: str) -> Path:
    folder = opt_ml / "input/data/config"
    for name in names:
        (folder / name).write_text("")
    return folder


def test_tree_is_in_opt_ml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAGEMAKER_BASE_DIR", raising=False)
    assert Container.here().model == Path("/opt/ml/model")


def test_base_dir_moves_the_whole_tree(opt_ml: Path) -> None:
    write_config(opt_ml, "hyperparameters", {"model.lr": "0.1"})
    folder = write_experiments(opt_ml, "run.yml")
    (opt_ml / "checkpoints").mkdir()
    container = Container.here()
    container.write_failure(DataError("no tiles"))
    assert container.model == opt_ml / "model"
    assert container.output_data == opt_ml / "output/data"
    assert container.checkpoints == opt_ml / "checkpoints"
    assert container.channels() == {"config": folder}
    assert container.experiment_file() == folder / "run.yml"
    assert container.hyperparameters() == {"model.lr": "0.1"}
    assert (opt_ml / "output/failure").read_text().startswith("no tiles\n")


@pytest.mark.parametrize("name", ["run.yml", "run.yaml", "run.json", "run.toml", "run.JSON"])
def test_experiment_file_is_found_beside_hidden_and_other_files(opt_ml: Path, name: str) -> None:
    folder = write_experiments(opt_ml, name, f".{name}", ".DS_Store", "README.md", f"{name}.bak")
    assert Container.here().experiment_file() == folder / name


@pytest.mark.parametrize(
    ("names", "there"),
    [
        ([], "it holds nothing"),
        (["README.md", "run.ini"], "it holds README.md, run.ini"),
        ([".run.yml"], "it holds .run.yml"),
        (["b.toml", "a.yml"], "it holds a.yml, b.toml"),
    ],
)
def test_no_experiment_file_or_two_are_an_error_that_lists_what_is_there(
    opt_ml: Path, names: list[str], there: str
) -> None:
    folder = write_experiments(opt_ml, *names)
    with pytest.raises(ContractError) as caught:
        Container.here().experiment_file()
    for part in (f"{folder} ", "exactly one experiment file", ".yml, .yaml, .json, .toml", there):
        assert part in str(caught.value)


def test_missing_config_channel_is_an_error_that_names_its_folder(opt_ml: Path) -> None:
    folder = opt_ml / "input/data/config"
    folder.rmdir()
    with pytest.raises(ContractError, match=f"^{folder} does not exist: .*channel named config"):
        Container.here().experiment_file()


def test_hyperparameters_are_text_plain_or_encoded_as_json_without_reserved_names(opt_ml: Path) -> None:
    kept = {
        "model.epochs": "5",
        "model.lr": "1e-4",
        "model.name": '"albunet"',
        "channels": '[{"bands": [1, 2]}]',
        "checkpoint.path": "null",
        "default_user": "kept",
    }
    reserved = {
        "sagemaker_program": '"train.py"',
        "sagemaker_region": '"us-east-1"',
        "_tuning_objective_metric": "val:iou",
        "default_user_module_name": "train",
    }
    write_config(opt_ml, "hyperparameters", reserved | kept)
    assert Container.here().hyperparameters() == kept


def test_hyperparameters_written_by_hand_as_json_become_text(opt_ml: Path) -> None:
    written = {"model.pretrained": True, "checkpoint.path": None, "model.lr": 1e-05, "model.loss": {"lovasz": 0.5}}
    write_config(opt_ml, "hyperparameters", written)
    texts = {
        "model.pretrained": "true",
        "checkpoint.path": "null",
        "model.lr": "1e-05",
        "model.loss": '{"lovasz": 0.5}',
    }
    assert Container.here().hyperparameters() == texts


@pytest.mark.parametrize("content", [None, "", "{}", "null"])
def test_hyperparameters_may_be_missing_or_empty(opt_ml: Path, content: str | None) -> None:
    if content is not None:
        (opt_ml / "input/config/hyperparameters.json").write_text(content)
    assert Container.here().hyperparameters() == {}


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("hyperparameters", Container.hyperparameters),
        ("inputdataconfig", Container.channels),
        ("checkpointconfig", lambda container: container.checkpoints),
    ],
)
@pytest.mark.parametrize("content", [b'{"model.lr": ', b"model.lr=1", b'["model.lr"]', b'{"model.lr": "\xff"}'])
def test_broken_json_is_an_error_that_names_the_file(
    opt_ml: Path, name: str, read: Callable[[Container], object], content: bytes
) -> None:
    path = opt_ml / "input/config" / f"{name}.json"
    path.write_bytes(content)
    with pytest.raises(ContractError, match=f"^{path}: "):
        read(Container.here())


def test_channels_are_those_of_inputdataconfig(opt_ml: Path) -> None:
    data = opt_ml / "input/data"
    for name in ("imagery", "checkpoints"):
        (data / name).mkdir()
    file_mode = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"}
    declared = {"config": file_mode, "imagery": {"TrainingInputMode": "FastFile"}, "masks": {}, "weights": None}
    write_config(opt_ml, "inputdataconfig", declared)
    assert Container.here().channels() == {name: data / name for name in ("config", "imagery", "masks", "weights")}


@pytest.mark.parametrize("declared", [None, {}])
def test_channels_are_the_folders_there_are_where_nothing_is_declared(opt_ml: Path, declared: object) -> None:
    data = opt_ml / "input/data"
    (data / "imagery").mkdir()
    (data / "imagery-manifest").write_text("[]")
    if declared is not None:
        write_config(opt_ml, "inputdataconfig", declared)
    assert Container.here().channels() == {"config": data / "config", "imagery": data / "imagery"}


def test_tree_without_input_has_no_channels(tmp_path: Path) -> None:
    assert Container(tmp_path).channels() == {}


def test_pipe_mode_is_refused_with_the_channel_and_the_modes_there_are(opt_ml: Path) -> None:
    modes = {"config": "File", "imagery": "Pipe"}
    write_config(opt_ml, "inputdataconfig", {name: {"TrainingInputMode": mode} for name, mode in modes.items()})
    with pytest.raises(ContractError, match=r"'imagery' is in Pipe mode.*File or FastFile"):
        Container.here().channels()


def test_without_checkpoint_folder_and_checkpointconfig_there_are_no_resume_points(opt_ml: Path) -> None:
    Container.here().prepare()
    assert Container.here().checkpoints is None


@pytest.mark.parametrize("config", [{}, {"LocalPath": None}, {"LocalPath": ""}])
def test_checkpoint_folder_is_the_default_where_checkpointconfig_names_none(opt_ml: Path, config: object) -> None:
    (opt_ml / "checkpoints").mkdir()
    write_config(opt_ml, "checkpointconfig", config)
    assert Container.here().checkpoints == opt_ml / "checkpoints"


def test_checkpoint_folder_that_the_job_names_replaces_the_default(opt_ml: Path, tmp_path: Path) -> None:
    for folder in (opt_ml / "checkpoints", tmp_path / "state"):
        folder.mkdir()
    write_config(opt_ml, "checkpointconfig", {"LocalPath": str(tmp_path / "state")})
    assert Container.here().checkpoints == tmp_path / "state"


def test_checkpoint_folder_that_the_job_names_is_made_if_it_is_missing(opt_ml: Path, tmp_path: Path) -> None:
    write_config(opt_ml, "checkpointconfig", {"LocalPath": str(tmp_path / "deep/state")})
    Container.here().prepare()
    assert Container.here().checkpoints == tmp_path / "deep/state"
    assert (tmp_path / "deep/state").is_dir()


def test_prepare_makes_the_output_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path / "new"))
    Container.here().prepare()
    assert (tmp_path / "new/model").is_dir()
    assert (tmp_path / "new/output/data").is_dir()
    assert not (tmp_path / "new/checkpoints").exists()


def test_prepare_clears_half_written_files_and_the_failure_of_an_earlier_attempt_alone(opt_ml: Path) -> None:
    (opt_ml / "checkpoints").mkdir()
    left_behind = [
        "model/best.pth.sagemaker-ignore",
        "checkpoints/resume-00002-000000.pth.sagemaker-ignore",
        "output/failure",
    ]
    kept = [
        "model/best.pth",
        "checkpoints/resume-00001-000000.pth",
        "checkpoints/resume-00001-000000.pth.sagemaker-uploading",
        "output/data/curves.png",
        "input/data/config/run.yml",
    ]
    for name in left_behind + kept:
        (opt_ml / name).write_text("old")
    Container.here().prepare()
    assert [name for name in left_behind if (opt_ml / name).exists()] == []
    assert [name for name in kept if (opt_ml / name).read_text() == "old"] == kept


def test_prepare_clears_half_written_files_in_the_checkpoint_folder_that_the_job_names(
    opt_ml: Path, tmp_path: Path
) -> None:
    leftover = tmp_path / "state/resume-00002-000000.pth.sagemaker-ignore"
    leftover.parent.mkdir()
    leftover.write_text("half")
    write_config(opt_ml, "checkpointconfig", {"LocalPath": str(leftover.parent)})
    Container.here().prepare()
    assert not leftover.exists()


def test_only_a_training_makes_the_model_folder(tmp_path: Path) -> None:
    Container(tmp_path).prepare(trains=False)
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
    Container(tmp_path).prepare()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "output"]


@pytest.mark.parametrize(("blocked", "folder"), [("model", "model"), ("output", "output/data"), (".", "model")])
def test_folder_that_cannot_be_made_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocked: str, folder: str
) -> None:
    base = tmp_path / "base"
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(base))
    if blocked != ".":
        base.mkdir()
    (base / blocked).write_text("a file where a folder should be")
    with pytest.raises(ContractError, match=f"^{base / folder} cannot be made: .*SAGEMAKER_BASE_DIR"):
        Container.here().prepare()


def test_failure_of_an_earlier_attempt_that_cannot_be_removed_is_an_error_that_names_it(
    opt_ml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ContractError, match=f"^{opt_ml}/output/failure cannot be removed: Read-only file system"):
        Container(opt_ml).prepare()


def test_failure_file_replaces_an_older_one_and_leaves_nothing_beside_it(opt_ml: Path) -> None:
    for cause in ("first cause", "second cause"):
        error = DataError(cause)
        Container.here().write_failure(error)
        assert (opt_ml / "output/failure").read_text(encoding="ascii") == failure_text(error)
    assert sorted(entry.name for entry in (opt_ml / "output").iterdir()) == ["data", "failure"]


def test_failure_file_does_not_need_the_output_folder(tmp_path: Path) -> None:
    Container(tmp_path / "new").write_failure(DataError("no tiles"))
    assert (tmp_path / "new/output/failure").read_text().startswith("no tiles\n")


def test_a_person_watches_a_terminal_but_not_that_of_local_mode(opt_ml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(ours), os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert Container.here().is_interactive()
        write_config(opt_ml, "resourceconfig", {"current_host": "algo-1", "hosts": ["algo-1"]})
        assert not Container.here().is_interactive()


def test_nobody_watches_a_file(opt_ml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr(sys, "stderr", log)
        assert not Container.here().is_interactive()


def test_tree_that_cannot_be_written_ends_the_run_with_its_exit_code_and_the_cause(
    run_train: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path / "file"))
    ended = run_train()
    assert f"{tmp_path}/file/model cannot be made: " in ended.stdout
    assert ended.returncode == 5


@pytest.mark.parametrize(
    "hosts", [["localhost", "x" * 70], ["m..n"], ["a\0"], ["\ud800"], ["a", "b", "a"], [""], ["a b"], ["a." * 200]]
)
def test_what_is_no_host_s_name_or_stands_twice_is_refused(opt_ml: Path, hosts: list[str]) -> None:
    write_config(opt_ml, "resourceconfig", {"hosts": hosts})
    with pytest.raises(ContractError, match=r"resourceconfig.json: hosts = \[.*accepted: a list of the names"):
        Container.here().hosts()


def test_names_and_addresses_are_hosts(opt_ml: Path) -> None:
    hosts = ["10.0.0.1", "a_b", "algo-1", "algo-2.local.", "fe80::1"]
    write_config(opt_ml, "resourceconfig", {"hosts": hosts})
    assert Container.here().hosts() == (tuple(hosts), "10.0.0.1")


@pytest.mark.parametrize("text", ["/\ud800", "/a\0", "/" + "a" * 256])
def test_what_no_path_can_be_is_refused(opt_ml: Path, text: str) -> None:
    write_config(opt_ml, "checkpointconfig", {"LocalPath": text})
    with pytest.raises(ContractError, match=r"checkpointconfig.json: LocalPath = .*accepted: text, up to 255 bytes"):
        Container.here().prepare()
    write_config(opt_ml, "inputdataconfig", {text: {}})
    with pytest.raises(ContractError, match=r"inputdataconfig.json: .* = {}: accepted: .*folder name of up to 255"):
        Container.here().channels()


def test_secret_in_a_value_that_is_refused_is_not_shown(opt_ml: Path) -> None:
    write_config(opt_ml, "resourceconfig", {"hosts": {"password": "x" * 10 + "hemlock" * 50}})
    with pytest.raises(ContractError) as caught:
        Container.here().hosts()
    assert "hemlock" not in str(caught.value)
