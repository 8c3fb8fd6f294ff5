"""Checkpoints and resume points that are damaged in any way are told as such: exit code 4, never a defect's."""

import contextlib
import copy
import dataclasses
import io
import math
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from resumable import SPLIT, Network, Tiles, experiment, made, point_of
from robosat_pink import checkpoint
from robosat_pink.distributed.process_group import World
from robosat_pink.errors import CheckpointError
from robosat_pink.training import metrics, resume
from robosat_pink.training.initial_checkpoint import InitialCheckpoint
from robosat_pink.training.phase_metrics import PhaseMetrics
from robosat_pink.training.resume_point import PHASE_METRICS
from robosat_pink.training.state import State


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def refused(folder: Path, content: bytes) -> str:
    (folder / "best.pth").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_weights(Network(), checkpoint.load(folder / "best.pth"), name="best.pth")
    return str(caught.value)


def test_bytes_at_random_cut_or_flipped_are_damage(tmp_path: Path) -> None:
    drawn, whole = random.Random(0), saved({"epoch": 1, "state_dict": Network().state_dict()})
    for length in (0, 1, 4, 100, 5000):
        refused(tmp_path, drawn.randbytes(length))
        refused(tmp_path, b"PK\x03\x04" + drawn.randbytes(length))
    for _ in range(50):
        refused(tmp_path, whole[: drawn.randrange(len(whole))])
    refusals = 0
    for _ in range(200):
        place = drawn.randrange(len(whole))
        (tmp_path / "best.pth").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            checkpoint.load_weights(Network(), checkpoint.load(tmp_path / "best.pth"))  # or it meant nothing
        except CheckpointError:
            refusals += 1
    assert refusals > 100


def test_archive_that_unpacks_to_more_than_itself_is_refused_unread(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        with archive.open("archive/data/0", "w", force_zip64=True) as entry:
            for _ in range(200):
                entry.write(bytes(10**6))
    assert "it is damaged" in refused(tmp_path, file.getvalue())


def test_archive_of_ten_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "best.pth").open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(CheckpointError, match="longer than the 8,000,000,000 bytes that are accepted"):
        checkpoint.load(tmp_path / "best.pth")


def test_what_is_no_file_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "resume-00002-000000.pth")
    (tmp_path / "resume-00003-000000.pth").mkdir()
    for name in ("resume-00002-000000.pth", "resume-00003-000000.pth"):
        with pytest.raises(CheckpointError, match=f"{name}: not a checkpoint that can be loaded"):
            checkpoint.load(tmp_path / name)
    checkpoint.save(tmp_path / "resume-00001-000000.pth", {"epoch": 1})
    point = checkpoint.ResumePoints(tmp_path).newest()
    assert point is not None
    assert point.content == {"epoch": 1}


@pytest.mark.parametrize(
    "state_dict",
    [
        {1: torch.zeros(1)},
        {"final.weight": torch.zeros(1, 3, 1, 1).to_sparse()},
        {"final.weight": torch.zeros(1, 3, 1, 1, dtype=torch.complex64)},
        {"final.weight": torch.zeros(1, 3, 1, 1, device="meta")},
        {"final.weight": torch.full((1, 3, 1, 1), torch.nan)},
        {"final.bias": torch.full((1,), torch.inf)},
        {"final.weight": 1.0},
        {"final.weight": torch.zeros(1).expand(10**6, 10**6)},
        {"final.weight": torch.zeros(1, 3, 1, 1, dtype=torch.float8_e4m3fn)},
        {"final.weight": torch.zeros(1, 3, 1, 1, dtype=torch.bool)},
        {"final.weight": torch.zeros(1, 3, 1, 1, dtype=torch.uint16)},
        {"final.weight": torch.full((1, 3, 1, 1), 1e300, dtype=torch.float64)},
        {"resnet.norm.num_batches_tracked": torch.zeros((), dtype=torch.float8_e4m3fn)},
        [],
        None,
    ],
    ids=range(15),
)
def test_weights_of_no_usual_kind_are_refused(state_dict: Any) -> None:
    weights = Network().state_dict() | state_dict if isinstance(state_dict, dict) else state_dict
    with pytest.raises(CheckpointError, match=r"^best\.pth: "):
        checkpoint.load_weights(Network(), {"epoch": [], "state_dict": weights}, name="best.pth")


ODD: tuple[Any, ...] = (None, -1, "x", [1], {"a": 1}, torch.tensor(float("nan")), 2**70, 0.5)


def test_any_part_of_a_resume_point_that_is_missing_or_odd_is_damage() -> None:
    """Or it is taken where it means the same: never anything but a CheckpointError."""
    config = experiment()
    whole = dict(point_of(config).content)
    free = {"tallies", "train", "scaler"}  # these may be absent
    for key in whole:
        for odd in ODD:
            content = copy.deepcopy(whole) | {key: odd}
            if odd is ODD[0] and key not in free:
                del content[key]
            try:
                restore(content)
            except CheckpointError as error:
                assert str(error)  # noqa: PT017 - some are taken: a scaler that is off, one epoch more or less
            else:
                assert key in {*free, "skipped", "best_epoch", "step", "history"}, (key, odd)


def restore(content: dict[str, Any]) -> State:
    config = dataclasses.replace(experiment(), model=dataclasses.replace(experiment().model, epochs=99))
    state = made(Network())
    resume.restore(state, InitialCheckpoint("a.pth", content, True), config, Tiles(), SPLIT)  # type: ignore[arg-type]
    return state


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize(
    "moment",
    [
        *(torch.zeros(5), torch.full((3, 2, 1, 1), torch.nan), 1.0, None),
        *(torch.zeros(3, 2, 1, 1, dtype=torch.int64), torch.zeros(3, 2, 1, 1).to_sparse()),
        torch.zeros(1).expand(10**6, 10**6),  # a terabyte, if it were made whole
    ],
    ids=range(7),
)
def test_moments_of_another_shape_or_not_finite_are_refused(key: str, moment: Any) -> None:
    content = copy.deepcopy(dict(point_of(experiment()).content))
    content["optimizer"]["state"][0][key] = moment
    with pytest.raises(CheckpointError, match=r"a\.pth: .*optimizer"):
        restore(content)


@pytest.mark.parametrize("change", [("exp_avg_sq", -1.0), ("step", -1.0), ("step", torch.nan), ("step", 10**30)])
def test_moments_that_adam_never_has_are_refused(change: tuple[str, float]) -> None:
    content = copy.deepcopy(dict(point_of(experiment()).content))
    key, value = change
    entry = content["optimizer"]["state"][0]
    entry[key] = torch.full_like(entry[key], value) if value != 10**30 else value
    with pytest.raises(CheckpointError, match=r"a\.pth: .*optimizer"):
        restore(content)


def test_moments_of_another_program_s_optimizer_are_looked_at_before_they_are_taken() -> None:
    whole = point_of(experiment()).content
    for key, value in (("exp_avg_sq", torch.zeros(1).expand(10**6, 10**6)), ("step", torch.zeros(1).expand(10**12))):
        content = copy.deepcopy({name: whole[name] for name in ("epoch", "state_dict", "optimizer")})
        content["optimizer"]["state"][0][key] = value
        with pytest.raises(CheckpointError, match=r"a\.pth: "):
            restore(content)


@pytest.mark.parametrize("extra", [{7: {}}, {"x": {}}, {0: 5}, {0: {}}])
def test_optimizer_state_of_another_kind_is_refused(extra: dict[Any, Any]) -> None:
    content = copy.deepcopy(dict(point_of(experiment()).content))
    content["optimizer"]["state"] |= extra
    with pytest.raises(CheckpointError, match=r"a\.pth: "):
        restore(content)


SCORES = dict.fromkeys(metrics.CLASS_NAMES, 0.5)
PHASE = dict.fromkeys((*metrics.NAMES, *PHASE_METRICS), 0.5) | {
    "iou": float("nan"),
    "waited_s": 0.1,
    "per_class": {"snow": SCORES},
}
ROW = {"epoch": 1, "lr": 0.1, "train": PHASE, "val": PHASE}


def point_with(row: Any, **more: Any) -> dict[str, Any]:
    content = copy.deepcopy(dict(point_of(experiment()).content))
    best = content["state_dict"]
    return content | {"epoch": 1, "history": [row], "best_epoch": 1, "best_state_dict": best} | more


def test_history_as_it_is_written_is_taken_and_a_best_epoch_that_is_not_in_it_refused() -> None:
    restore(point_with(ROW))
    for best in (0, 2):
        with pytest.raises(CheckpointError, match="its best_epoch"):
            restore(point_with(ROW, best_epoch=best))
    with pytest.raises(CheckpointError, match="its history"):
        restore(point_with(ROW, train=PHASE | {"per_class": {"snow": 5}}))


def test_metrics_that_an_older_version_did_not_know_are_undefined() -> None:
    older = {name: value for name, value in PHASE.items() if name != "kappa"} | {"per_class": {"snow": {"iou": 0.5}}}
    state = restore(point_with(ROW | {"val": older}, train=older))
    assert state.train_metrics is not None
    for phase in (state.train_metrics, state.history[0]["val"]):
        assert math.isnan(phase["kappa"])
        assert math.isnan(phase["per_class"]["snow"]["f1"])
        assert (phase["mcc"], phase["per_class"]["snow"]["iou"]) == (0.5, 0.5)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 10**400, "x", None])
@pytest.mark.parametrize("key", ["seconds", "waited_s", "retries"])
def test_noted_sums_that_are_none_are_damage(key: str, value: Any) -> None:
    content = PhaseMetrics(experiment(), torch.device("cpu"), "train", 1, 3).content()
    state = made(Network())
    for noted, is_damaged in ((content, False), (content | {key: value}, True)):
        state.partial_metrics = [noted]
        with pytest.raises(CheckpointError, match="sums of its epoch") if is_damaged else contextlib.nullcontext():
            state.restore_partial_metrics(PhaseMetrics(experiment(), torch.device("cpu"), "train", 1, 3), World())


@pytest.mark.parametrize(
    "row",
    [
        *(1, {}, {"epoch": 1, "lr": 0.1, "train": {}, "val": {}}),
        *(ROW | {"epoch": 2}, ROW | {"epoch": -3}, ROW | {"lr": 10**400}, ROW | {"more": torch.zeros(1)}),
        *(ROW | {"val": PHASE | {"loss": each}} for each in (10**400, float("inf"), "x", None)),
        *(ROW | {"val": PHASE | {"per_class": {"snow": each}}} for each in ("garbage", 5, {}, SCORES | {"iou": "x"})),
        ROW | {"val": PHASE | {"more": torch.zeros(1)}},
    ],
    ids=range(16),
)
def test_history_of_another_kind_is_refused(row: Any) -> None:
    content = point_with(row)
    with pytest.raises(CheckpointError, match="its history"):
        restore(content)


def test_steps_of_seven_digits_are_found_again(tmp_path: Path) -> None:
    points = checkpoint.ResumePoints(tmp_path)
    points.save(1, 999_999, {"step": 999_999})
    points.save(1, 1_000_000, {"step": 1_000_000})
    found = checkpoint.ResumePoints(tmp_path).newest()
    assert found is not None
    assert found.content == {"step": 1_000_000}
