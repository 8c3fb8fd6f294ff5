"""The files of a model: in a folder, in SageMaker's archive, in a bucket."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from conftest import S3Server
from robosat_pink.errors import CheckpointError, DataError
from robosat_pink.prediction.model_files import find
from robosat_pink.storage.error_advice import NotFound

CONTENT = {"best.pth": b"weights", "test_ids.txt": b"a-1-2-3\n", "checkpoint-00002-of-00002.pth": b"others"}


def write_folder(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    return folder


def archive(prefix: str = "", content: dict[str, bytes] = CONTENT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, data in content.items():
            entry = tarfile.TarInfo(prefix + name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return file.getvalue()


@pytest.mark.parametrize("prefix", ["", "./"])
def test_a_folder_an_archive_and_a_channel_of_either_hold_the_same_model(tmp_path: Path, prefix: str) -> None:
    folder = write_folder(tmp_path / "model")
    job = tmp_path / "job"
    job.mkdir()
    (job / "model.tar.gz").write_bytes(archive(prefix))
    store = {"channels": {"model": job, "plain": folder}}
    names = (folder, f"{folder}/", folder / "best.pth", job, job / "model.tar.gz", "channel:model", "channel:plain")
    for name in (*names, "channel:model/model.tar.gz", "channel:plain/best.pth"):
        files = find(str(name), store)
        assert files.weights == b"weights"
        assert files.read("test_ids.txt") == CONTENT["test_ids.txt"]
        with pytest.raises(NotFound):
            files.read("holdout_ids.txt")
    assert sorted(path.name for path in job.iterdir()) == ["model.tar.gz"], "nothing is unpacked beside it"


def test_any_checkpoint_may_be_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    assert find(f"{folder}/checkpoint-00002-of-00002.pth", {}).weights == b"others"


def test_a_prefix_in_a_bucket(s3: S3Server, tmp_path: Path) -> None:
    s3.make_bucket("models")
    s3.upload(write_folder(tmp_path / "model"), "models", "run/")
    s3.client.put_object(Bucket="models", Key="job/output/model.tar.gz", Body=archive())
    store: dict[str, Any] = {"endpoint_url": s3.endpoint_url}
    for name in ("s3://models/run", "s3://models/run/best.pth", "s3://models/job/output/"):
        assert find(name, store).weights == b"weights"
        assert find(name, store).read("test_ids.txt") == CONTENT["test_ids.txt"]
    with pytest.raises(NotFound, match=r"s3://models/none: holds neither best\.pth nor model\.tar\.gz"):
        find("s3://models/none", store)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"no archive", "not an archive"), (archive()[:-30], "not an archive"), (archive("", {}), "holds no best.pth")],
    ids=["text", "half", "empty"],  # an archive's bytes have the time
)
def test_archive_that_holds_no_model_is_refused_by_name(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "model.tar.gz").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        find(str(tmp_path), {})


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent"):
        find(str(tmp_path / "absent"), {})
