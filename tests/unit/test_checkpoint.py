"""Checkpoints: whole or not there, nothing but data in them, and the newest whole one is found again."""

import logging
import os
import threading
import time
from pathlib import Path
from pickle import PicklingError
from random import Random

import pytest
import torch
from torch import nn

from conftest import S3Server
from robosat_pink import checkpoint
from robosat_pink.checkpoint import ResumePoints
from robosat_pink.errors import CheckpointError, DataError
from robosat_pink.models import build_model

ARITHMETIC = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])}


def network() -> nn.Linear:
    """Two numbers in, one out, all weights zero."""
    model = nn.Linear(2, 1)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def assert_loaded(model: nn.Linear) -> None:
    """1 * 10 + 2 * 100 + 3."""
    assert model(torch.tensor([10.0, 100.0])).item() == 213


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded_and_is_nothing_but_data(tmp_path: Path) -> None:
    path = tmp_path / "best.pth"
    content = {"epoch": 3, "state_dict": ARITHMETIC, "metadata": {"classes": ["snow"], "best": None, "bands": (1, 2)}}
    checkpoint.save(path, content)
    for found in (checkpoint.load(path), checkpoint.load(str(path)), torch.load(path, weights_only=True)):
        assert found["epoch"] == 3
        assert found["metadata"] == content["metadata"]
        assert torch.equal(found["state_dict"]["weight"], ARITHMETIC["weight"])
    assert names(tmp_path) == ["best.pth"]


def test_save_that_fails_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "best.pth"
    checkpoint.save(path, {"epoch": 1})
    with pytest.raises((AttributeError, PicklingError)):
        checkpoint.save(path, {"epoch": 2, "function": lambda: None})
    assert checkpoint.load(path) == {"epoch": 1}
    assert names(tmp_path) == ["best.pth"]


def damaged(content: bytes, how: str) -> bytes:
    middle = len(content) // 2
    return {
        "empty": b"",
        "another format": b"II*\x00" + bytes(100),
        "half": content[:middle],
        "last bytes missing": content[:-5],
        "a flipped bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    }[how]


@pytest.mark.parametrize("how", ["empty", "another format", "half", "last bytes missing", "a flipped bit"])
def test_damaged_file_is_an_error_that_names_it(tmp_path: Path, how: str) -> None:
    path = tmp_path / "best.pth"
    checkpoint.save(path, {"state_dict": {"weight": torch.arange(5000.0)}})
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(CheckpointError, match=f"^{path}: "):
        checkpoint.load(path)


def test_file_that_holds_no_dictionary_is_an_error_that_says_what_it_holds(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match=r"list\.pth: holds list"):
        checkpoint.load(tmp_path / "list.pth")


class MakesAFolder:
    """Unpickled without care, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_file_with_code_in_it_is_refused_and_the_code_does_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": MakesAFolder(tmp_path / "made")}, tmp_path / "evil.pth")
    for read in (checkpoint.load, lambda path: checkpoint.load_weights(network(), path)):
        with pytest.raises(CheckpointError, match=f"^{tmp_path}/evil.pth: "):
            read(tmp_path / "evil.pth")
    assert not (tmp_path / "made").exists()


def test_weights_are_taken_from_a_state_dict_or_a_whole_checkpoint_in_memory() -> None:
    model = network()
    bare = checkpoint.load_weights(model, ARITHMETIC)
    assert_loaded(model)
    assert (bare.tensors, bare.epoch, bare.metadata) == (2, None, {})

    model = network()
    content = {"epoch": 7, "state_dict": ARITHMETIC, "optimizer": {}, "metadata": {"version": "0.1.0"}}
    whole = checkpoint.load_weights(model, content)
    assert_loaded(model)
    assert (whole.tensors, whole.epoch, whole.metadata) == (2, 7, {"version": "0.1.0"})


def test_weights_are_read_from_a_path_a_bucket_and_a_channel(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path / "best.pth", {"epoch": 7, "state_dict": ARITHMETIC})
    s3.make_bucket("trained-models")
    s3.upload(tmp_path, "trained-models", "run 1/")
    monkeypatch.chdir(tmp_path)
    places = {
        tmp_path / "best.pth": {},
        str(tmp_path / "best.pth"): {},
        "./best.pth": {},
        "best.pth": {},
        "s3://trained-models/run 1/best.pth": {},
        "trained-models/run 1/best.pth": {"endpoint_url": s3.endpoint_url},
        "channel:weights/best.pth": {"channels": {"weights": tmp_path}},
    }
    for place, where in places.items():
        model = network()
        assert checkpoint.load_weights(model, place, **where).epoch == 7
        assert_loaded(model)


@pytest.mark.parametrize("place", ["{folder}/gone.pth", "s3://trained-models/gone.pth", "s3://no-such-bucket/a.pth"])
def test_weights_that_are_not_there_are_an_error_that_names_them(tmp_path: Path, s3: S3Server, place: str) -> None:
    s3.make_bucket("trained-models")
    place = place.format(folder=tmp_path)
    with pytest.raises(DataError, match=f"^{place}: "):
        checkpoint.load_weights(network(), place)


def test_weights_of_another_network_are_an_error_with_every_key_that_does_not_fit_and_change_nothing(
    tmp_path: Path,
) -> None:
    model = nn.ModuleDict({name: network() for name in ("encoder", "center", "decoder")})
    weights = model.state_dict()
    weights["center.weight"] = torch.ones(1, 2)
    for name in ("decoder.weight", "decoder.bias"):
        weights[f"other.{name}"] = weights.pop(name)
    weights["encoder.weight"] = torch.ones(1, 5)
    weights["encoder.bias"] = torch.ones(())
    checkpoint.save(tmp_path / "other.pth", {"state_dict": weights})
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_weights(model, tmp_path / "other.pth")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/other.pth: ")
    for part in (
        "missing: decoder.bias, decoder.weight;",
        "unexpected: other.decoder.bias, other.decoder.weight;",
        "encoder.weight (1, 5) for (1, 2)",
        "encoder.bias () for (1,)",
    ):
        assert part in message
    assert "center" not in message
    assert not any(parameter.any() for parameter in model.parameters())


def test_long_list_of_keys_is_cut_and_counted() -> None:
    weights = ARITHMETIC | {f"layer{number}": torch.zeros(1) for number in range(10)}
    with pytest.raises(CheckpointError, match=r"unexpected: layer0, .*, layer7 and 2 more(;|$)"):
        checkpoint.load_weights(network(), weights)


def test_only_the_last_epoch_is_kept_beside_what_is_no_epoch(tmp_path: Path) -> None:
    others = ["best.pth", "checkpoint-final.pth", "checkpoint-00001-of-00009.pth.bak", "metrics.json"]
    for name in [*others, "checkpoint-00009-of-00009.pth"]:
        (tmp_path / name).write_text("earlier run")
    for epoch in (1, 2, 3):
        path = checkpoint.save_epoch(tmp_path, epoch, 50, {"epoch": epoch})
        assert path == tmp_path / f"checkpoint-{epoch:05d}-of-00050.pth"
        assert names(tmp_path) == sorted([*others, path.name])
    assert checkpoint.load(path) == {"epoch": 3}


def test_epoch_that_cannot_be_saved_leaves_the_one_before_it(tmp_path: Path) -> None:
    checkpoint.save_epoch(tmp_path, 1, 2, {"epoch": 1})
    with pytest.raises((AttributeError, PicklingError)):
        checkpoint.save_epoch(tmp_path, 2, 2, {"epoch": lambda: 2})
    assert names(tmp_path) == ["checkpoint-00001-of-00002.pth"]


def save_resume_points(points: ResumePoints, *epochs: int) -> None:
    for epoch in epochs:
        points.save(epoch, 0, {"epoch": epoch})


def test_last_two_resume_points_are_kept_and_the_newest_is_found(tmp_path: Path) -> None:
    save_resume_points(ResumePoints(tmp_path), 8, 9, 10, 11)
    assert names(tmp_path) == ["resume-00010-000000.pth", "resume-00011-000000.pth"]
    assert ResumePoints(tmp_path).newest() == (tmp_path / "resume-00011-000000.pth", {"epoch": 11})


def test_folder_without_resume_points_has_no_newest(tmp_path: Path) -> None:
    (tmp_path / "resume-00001-000000.pth.sagemaker-ignore").write_text("half")
    assert ResumePoints(tmp_path).newest() is None


@pytest.mark.parametrize("how", ["empty", "half", "last bytes missing"])
def test_damaged_newest_resume_point_gives_way_to_the_one_before_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    save_resume_points(ResumePoints(tmp_path), 4, 5)
    newest = tmp_path / "resume-00005-000000.pth"
    newest.write_bytes(damaged(newest.read_bytes(), how))
    points = ResumePoints(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert points.newest() == (tmp_path / "resume-00004-000000.pth", {"epoch": 4})
    assert len(caplog.messages) == 1
    assert str(newest) in caplog.messages[0]
    save_resume_points(points, 5)
    anew = tmp_path / "resume-00005-000000-1.pth"  # no name is written twice
    assert names(tmp_path) == ["resume-00004-000000.pth", anew.name]
    assert ResumePoints(tmp_path).newest() == (anew, {"epoch": 5})
    save_resume_points(points, 5)
    assert names(tmp_path) == [anew.name, "resume-00005-000000-2.pth"]


def test_when_all_resume_points_are_damaged_there_is_none_and_a_warning_for_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_resume_points(ResumePoints(tmp_path), 4, 5)
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert ResumePoints(tmp_path).newest() is None
    assert [name for name in names(tmp_path) if any(name in message for message in caplog.messages)] == names(tmp_path)


def test_resume_points_just_written_outlive_damaged_ones_of_later_epochs(tmp_path: Path) -> None:
    for epoch in (8, 9):
        (tmp_path / f"resume-{epoch:05d}-000000.pth").write_bytes(b"damaged")
    points = ResumePoints(tmp_path)
    save_resume_points(points, 1)
    assert ResumePoints(tmp_path).newest() == (tmp_path / "resume-00001-000000-1.pth", {"epoch": 1})
    save_resume_points(points, 2)
    assert names(tmp_path) == ["resume-00001-000000-1.pth", "resume-00002-000000-1.pth"]


def test_resume_point_that_was_there_stays_until_two_newer_ones_are(tmp_path: Path) -> None:
    save_resume_points(ResumePoints(tmp_path), 1)
    points = ResumePoints(tmp_path)  # of a run that did not read it
    save_resume_points(points, 2)
    assert names(tmp_path) == ["resume-00001-000000.pth", "resume-00002-000000.pth"]
    save_resume_points(points, 3)
    assert names(tmp_path) == ["resume-00002-000000.pth", "resume-00003-000000.pth"]


def test_marker_files_and_foreign_files_are_neither_read_nor_removed(tmp_path: Path) -> None:
    foreign = [
        "resume-00003-000000.pth.sagemaker-uploading",
        "resume-00009-000000.pth.sagemaker-uploaded",
        "resume-00009-000000.pth.sagemaker-ignore",
        "resume-9.pth",
        "my-resume-00009-000000.pth",
        "checkpoint-00009-of-00009.pth",
    ]
    for name in foreign:
        (tmp_path / name).write_text("not ours")
    (tmp_path / "algo-1").mkdir()
    save_resume_points(ResumePoints(tmp_path), 1, 2, 3)
    assert names(tmp_path) == sorted([*foreign, "algo-1", "resume-00002-000000.pth", "resume-00003-000000.pth"])
    assert ResumePoints(tmp_path).newest() == (tmp_path / "resume-00003-000000.pth", {"epoch": 3})


def test_resume_points_of_an_epoch_begun_anew_are_newer_than_those_of_its_first_try(tmp_path: Path) -> None:
    points = ResumePoints(tmp_path)
    for step in (8000, 9000, 10, 20):
        points.save(1, step, {"step": step})
        assert ResumePoints(tmp_path).newest().content == {"step": step}  # type: ignore[union-attr]
    assert names(tmp_path) == ["resume-00001-000010-1.pth", "resume-00001-000020-1.pth"]
    points.save(2, 0, {"step": 0})
    assert ResumePoints(tmp_path).newest().content == {"step": 0}  # type: ignore[union-attr]


def test_resume_point_that_is_being_uploaded_goes_once_it_is_not(tmp_path: Path) -> None:
    points = ResumePoints(tmp_path)
    save_resume_points(points, 1)
    marker = tmp_path / "resume-00001-000000.pth.sagemaker-uploading"
    marker.touch()
    save_resume_points(points, 2, 3)
    assert names(tmp_path) == [f"resume-0000{epoch}-000000.pth" for epoch in (1,)] + [
        marker.name,
        "resume-00002-000000.pth",
        "resume-00003-000000.pth",
    ]
    marker.unlink()
    save_resume_points(points, 4)
    assert names(tmp_path) == ["resume-00003-000000.pth", "resume-00004-000000.pth"]


@pytest.mark.slow
def test_thousand_saves_beside_an_uploader_never_leave_fewer_than_two_whole_points(tmp_path: Path) -> None:
    """As the platform copies: a mark beside the newest for a while, files that appear and vanish at any moment."""
    random = Random(0)
    points, is_over = ResumePoints(tmp_path), threading.Event()
    touched: list[str] = []

    def upload() -> None:
        while not is_over.is_set():
            newest = max((name for name in os.listdir(tmp_path) if name.endswith(".pth")), default=None)
            if newest is None:
                continue
            mark = tmp_path / f"{newest}{checkpoint.UPLOADING_SUFFIX}"
            mark.touch()
            there = (tmp_path / newest).exists()
            time.sleep(random.uniform(0, 0.003))
            if there and not (tmp_path / newest).exists():
                touched.append(newest)
            (tmp_path / f"{newest}.sagemaker-uploaded").touch()
            mark.unlink()
            for name in os.listdir(tmp_path):
                if name.endswith(".sagemaker-uploaded") and random.random() < 0.5:
                    (tmp_path / name).unlink(missing_ok=True)

    uploader = threading.Thread(target=upload)
    uploader.start()
    try:
        for number in range(1, 1001):
            points.save(number // 10, number % 10, {"number": number})
            whole = sorted(path for path in tmp_path.iterdir() if checkpoint.RESUME_FILE.fullmatch(path.name))[-2:]
            assert [checkpoint.load(path)["number"] for path in whole] == list(range(max(number - 1, 1), number + 1))
    finally:
        is_over.set()
        uploader.join()
    assert touched == []
    points.save(200, 0, {})
    assert len([path for path in tmp_path.iterdir() if checkpoint.RESUME_FILE.fullmatch(path.name)]) == 2


@pytest.mark.parametrize("old", ["pixel.convs.{0}.", "pixel.conv{1}."])
def test_unet_of_november_2026_computes_what_it_did(tmp_path: Path, old: str) -> None:
    """Its path of single pixels stored weights 10 times smaller than those used, under other names."""
    torch.manual_seed(0)
    network = build_model("unet", num_classes=1, num_channels=2, num_filters=2).eval()
    names = {
        f"pixel.{name}.": old.format(number, number + 1)
        for number, name in enumerate(("conv_in", "conv_hidden", "conv_out"))
    }
    stored = {}
    for key, value in network.state_dict().items():
        now = next((now for now in names if key.startswith(now)), None)
        stored[key.replace(now, names[now]) if now else key] = value / 10 if now else value
    assert stored.keys() != network.state_dict().keys()
    content = {"state_dict": stored, "trained_state_dict": dict(stored)}
    torch.save(content, tmp_path / "best.pth")
    image = torch.randn(1, 2, 16, 16)
    for given in (tmp_path / "best.pth", content, stored):
        other = build_model("unet", num_classes=1, num_channels=2, num_filters=2).eval()
        checkpoint.load_weights(other, given)
        assert torch.allclose(other(image), network(image), atol=1e-6)
    resumed = checkpoint.load(tmp_path / "best.pth")["trained_state_dict"]
    assert resumed.keys() == network.state_dict().keys()
    assert all(torch.allclose(resumed[key], value) for key, value in network.state_dict().items())
