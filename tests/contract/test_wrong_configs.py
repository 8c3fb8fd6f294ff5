"""Whatever stands in input/config ends with exit 2 or 5 and a failure file; and a secret in it is shown nowhere."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import SMALL_DATASET, SMALL_MODEL, write_job
from robosat_pink import checkpoint, train
from robosat_pink.config import Config
from robosat_pink.config.keys import leaf_keys
from robosat_pink.container.redaction import SECRET_NAME

EXPERIMENT: dict[str, Any] = {
    "dataset": SMALL_DATASET,
    "classes": [{"name": "snow"}],
    "channels": [{"bands": [1, 2]}],
    "model": SMALL_MODEL | {"batch_size": 2, "epochs": 1},
    "runtime": {"workers": 0},
}
NAMES = ("hyperparameters", "inputdataconfig", "resourceconfig", "checkpointconfig")
NO_OBJECTS: list[bytes] = [
    b"[1]",
    b"1",
    b'"a"',
    b"{",
    b'{"a": "\xff"}',
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"1" * 10_000,
]
OBJECTS: list[Any] = [
    {"hosts": 1, "LocalPath": 1, "config": 1, "model": 1},
    {"hosts": {"a": 1}, "LocalPath": ["a"], "config": "File", "model.lr": None},
    {"hosts": [1, None], "LocalPath": {"a": None}, "config": [], "a": {"b": [{"c": None}]}, "x": 1},
    {"hosts": ["a"], "current_host": {"a": 1}, "LocalPath": "a\0b", "config\0": {}, "\ud800": "\ud800", "": ""},
    {"hosts": ["a"], "current_host": 3.5, "LocalPath": True, "config": 0.5, "model.lr": {"a": [1]}, "a.b.c": 1},
    {"hosts": ["b", "a"], "current_host": "c" * 10_000, "LocalPath": -1, "config": "x" * 10_000, "classes.0": "1"},
    {"hosts": "algo-1", "LocalPath": [[]], "imagery": [1], "channels": "[" * 50_000},
]


@pytest.fixture
def job(opt_ml: Path) -> Path:
    return write_job(opt_ml, EXPERIMENT, tiles=3)


def refused(job: Path, capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What log and failure file say, once they are as they should be."""
    capfd.readouterr()
    code = train.main(arguments)
    out, err = capfd.readouterr()
    failure = (job / "output/failure").read_text()
    assert code in (2, 5), out + failure
    assert out.startswith("error: ")
    assert "Traceback" not in out
    assert len(out) < 20_000
    assert err == ""
    assert len(failure) <= 1024
    return out + failure


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", NO_OBJECTS, ids=range(len(NO_OBJECTS)))
def test_file_that_holds_no_object_is_refused(
    job: Path, capfd: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    (job / f"input/config/{name}.json").write_bytes(content)
    assert f"{name}.json: " in refused(job, capfd)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", OBJECTS, ids=range(len(OBJECTS)))
def test_values_of_wrong_kinds_are_refused(
    job: Path, capfd: pytest.CaptureFixture[str], name: str, value: dict[str, Any]
) -> None:
    (job / f"input/config/{name}.json").write_text(json.dumps(value))
    assert f"{name}.json: " in refused(job, capfd)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_file_of_usual_size_is_refused_without_a_wait(
    job: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    path = job / f"input/config/{name}.json"
    with path.open("wb") as file:
        file.truncate(10**8)
    assert "longer than the 1,000,000 bytes that are accepted" in refused(job, capfd)
    path.unlink()
    os.mkfifo(path)
    assert "it is a pipe or a device; accepted: a regular file" in refused(job, capfd)
    path.unlink()
    path.mkdir()
    assert "Is a directory" in refused(job, capfd)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_mark_is_no_part_of_the_json(job: Path, capfd: pytest.CaptureFixture[str], encoding: str) -> None:
    (job / "input/config/hyperparameters.json").write_bytes(json.dumps({"model.lr": "fast"}).encode(encoding))
    assert 'hyperparameters.json: model.lr = "fast"' in refused(job, capfd)


def test_alias_bomb_leaves_a_failure_file(job: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lists = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12))
    (job / "input/data/config/experiment.yml").write_text(f"l0: &l0 [x]\n{lists}\nmodel: *l11")
    assert "more than 20,000 values" in refused(job, capfd)


@pytest.mark.parametrize(
    "hyperparameters",
    [
        {"pass": "hemlock/1"},
        {"auth": {"user": {"deep": ["hemlock/1"]}}},
        {"store": json.dumps({"key": "hemlock/1"})},
        {"model.lr": {"DB_PWD": "hemlock/1"}},
        {"model.lr": json.dumps({"ADMIN_PASSPHRASE": "hemlock/1"})},
        {"dataset.endpoint_url": "https://user:hemlock@store.example"},
        {"dataset.image_bucket": "https://b.s3.example/?X-Amz-Signature=hemlock", "model.lr": "x"},
        {"dataset.token": "/hemlock"},
        {"creds": json.dumps({"k": ["hemlock"]})},
        {"dataset.image_bucket": "AKIA:hemlock@bucket/x"},
        {"model.name": "/hemlock"},
    ],
)
def test_secret_hyperparameter_is_in_no_message(
    job: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, hyperparameters: dict[str, Any]
) -> None:
    monkeypatch.setenv("STORE_KEY", "/hemlock")
    (job / "input/config/hyperparameters.json").write_text(json.dumps(hyperparameters))
    assert "hemlock" not in refused(job, capfd)


def test_address_with_a_password_is_refused_with_where_it_belongs(job: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = refused(job, capfd, "dataset.endpoint_url=https://user:hemlock@store.example")
    assert 'dataset.endpoint_url = "https://***@store.example": accepted: an address' in said
    assert "it holds a user or a password, which belong into environment variables" in said


def test_secret_in_a_run_that_trains_is_in_nothing_that_it_leaves(
    job: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_PASSPHRASE", "hemlock/1")
    monkeypatch.setenv("STORE_TOKEN", 'a"hemlöck')
    expression = '.*|hemlock/1|a"hemlöck|https://a:hemlock@b?sig=hemlock'
    experiment = EXPERIMENT | {"dataset": SMALL_DATASET | {"imagery_directory_regex": expression}}
    (job / "input/data/config/experiment.yml").write_text(yaml.safe_dump(experiment))
    assert train.main([]) == 0
    out, err = capfd.readouterr()
    assert "hem" not in out + err
    left = [path for folder in ("model", "checkpoints", "output") for path in (job / folder).rglob("*")]
    assert {"best.pth", "config.yml", "report.html", "MODEL_CARD.md"} <= {path.name for path in left}
    assert [path for path in left if path.is_file() and b"hemlock" in path.read_bytes()] == []
    assert "***" in json.dumps(checkpoint.load(job / "model/best.pth")["metadata"])


def test_no_key_of_an_experiment_is_taken_for_a_secret() -> None:
    assert [name for name, _ in leaf_keys(Config) if SECRET_NAME.search(name)] == []


def test_folder_that_cannot_be_written_is_told_before_the_first_epoch(
    job: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (job / "input/config/checkpointconfig.json").write_text(json.dumps({"LocalPath": "/proc/self"}))
    assert "/proc/self: cannot be written: " in refused(job, capfd)


@pytest.mark.parametrize("words", [["password", "hemlock"], ["password hemlock"], ["password=my", "hemlock"]])
def test_word_after_a_secret_s_name_on_the_command_line_is_not_shown(
    job: Path, capfd: pytest.CaptureFixture[str], words: list[str]
) -> None:
    said = refused(job, capfd, *words)
    assert "command line: " in said
    assert "hemlock" not in said
