"""What a run resumes from, and what it takes over."""

import dataclasses
import logging
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.amp.grad_scaler import GradScaler

from resumable import SPLIT, Network, Tiles, experiment, learn, made, original_checkpoint, point_of
from robosat_pink import checkpoint
from robosat_pink.checkpoint import ResumePoints
from robosat_pink.config import ChannelConfig, Config
from robosat_pink.config.sections import CheckpointConfig
from robosat_pink.datasets.split import Split
from robosat_pink.errors import CheckpointError, ConfigError
from robosat_pink.training import experiment_diff, initial_checkpoint, resume, tile_ids
from robosat_pink.training.channel_scales import resolve_scales
from robosat_pink.training.initial_checkpoint import InitialCheckpoint
from robosat_pink.training.state import State


def test_checkpoint_of_the_original_is_resumed_with_weights_optimizer_and_epoch() -> None:
    content, theirs = original_checkpoint(epoch=2)
    ours = made(Network())
    config = experiment(model={"epochs": 3})
    resume.restore(ours, InitialCheckpoint("theirs.pth", content, is_resumed=True), config, Tiles(), SPLIT)  # type: ignore[arg-type]
    assert (ours.epoch, ours.step, ours.history) == (2, 0, [])
    for state in (ours, theirs):
        learn(state, 2)
    expected = theirs.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in ours.model.state_dict().items())


def test_optimizer_whose_moments_do_not_fit_is_refused_by_the_parameter_s_name() -> None:
    content, _ = original_checkpoint()
    content["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1)
    ours = made(Network())
    with pytest.raises(CheckpointError, match=r"theirs\.pth: .* no moments for resnet\.conv\.weight of \(3, 2, 1, 1\)"):
        resume.restore(ours, InitialCheckpoint("theirs.pth", content, True), experiment(), Tiles(), SPLIT)  # type: ignore[arg-type]


def test_weights_alone_cannot_be_resumed() -> None:
    content = {"epoch": 1, "state_dict": Network().state_dict()}
    with pytest.raises(CheckpointError, match=r"holds no optimizer; checkpoint\.path starts from weights alone"):
        resume.restore(made(Network()), InitialCheckpoint("a.pth", content, True), experiment(), Tiles(), SPLIT)  # type: ignore[arg-type]


def test_checkpoint_with_more_epochs_than_are_asked_for_is_refused() -> None:
    content, _ = original_checkpoint(epoch=9)
    with pytest.raises(CheckpointError, match=r"was written after 9 epochs, but model\.epochs = 3; raise"):
        resume.restore(
            made(Network()), InitialCheckpoint("a.pth", content, True), experiment(model={"epochs": 3}), Tiles(), SPLIT
        )  # type: ignore[arg-type]


def test_resume_point_of_another_experiment_is_refused_with_the_keys_unless_told_otherwise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    start = point_of(experiment())
    other = experiment(model={"lr": 0.5})
    with pytest.raises(CheckpointError, match=r"another experiment: model\.lr = 0\.5, there 2\.5e-05\. .*if_different"):
        resume.restore(made(Network()), start, other, Tiles(), SPLIT)  # type: ignore[arg-type]
    other = dataclasses.replace(other, checkpoint=CheckpointConfig(if_different="continue"))
    state = made(Network())
    with caplog.at_level(logging.WARNING):
        resume.restore(state, start, other, Tiles(), SPLIT)  # type: ignore[arg-type]
    assert "model.lr = 0.5, there 2.5e-05" in caplog.text
    assert torch.equal(state.model.state_dict()["final.weight"], start.content["state_dict"]["final.weight"])


def test_redacted_value_of_a_resume_point_is_like_any_of_its_shape() -> None:
    start = point_of(experiment())
    dataset = start.content["metadata"]["config"]["dataset"]
    dataset["imagery_directory_regex"] = "***"
    bucket = dataset["image_bucket"]
    dataset["image_bucket"] = f"***{bucket[-2:]}"
    resume.restore(made(Network()), start, experiment(), Tiles(), SPLIT)  # type: ignore[arg-type]
    dataset["image_bucket"] = f"***{bucket}x"
    with pytest.raises(CheckpointError, match="another experiment"):
        resume.restore(made(Network()), start, experiment(), Tiles(), SPLIT)  # type: ignore[arg-type]


def test_resumed_run_has_the_weight_decay_of_its_experiment() -> None:
    model = Network()
    state = State(model, torch.optim.Adam(model.parameters(), weight_decay=0.25), GradScaler("cpu", enabled=False))
    config = experiment(model={"decay": 0.25}, checkpoint={"if_different": "continue"})
    resume.restore(state, point_of(experiment()), config, Tiles(), SPLIT)  # type: ignore[arg-type]
    assert [group["weight_decay"] for group in state.optimizer.param_groups] == [0.25]


def test_how_a_run_goes_and_how_long_may_change() -> None:
    start = point_of(experiment())
    other = experiment(
        model={"epochs": 90, "patience": 3, "symmetries": True},
        runtime={"workers": 3, "processes": 2},
        checkpoint={"every_minutes": 1.0, "resume": "a.pth"},
    )
    resume.restore(made(Network()), start, other, Tiles(), SPLIT)  # type: ignore[arg-type]


def test_resume_point_comes_before_what_the_experiment_names(tmp_path: Path) -> None:
    (tmp_path / "points").mkdir()
    checkpoint.save(tmp_path / "named.pth", {"epoch": 7})
    named = experiment(checkpoint={"resume": str(tmp_path / "named.pth")})
    points = ResumePoints(tmp_path / "points")
    start = initial_checkpoint.find(named, points, {})
    assert start is not None
    assert (start.content, start.is_resumed) == ({"epoch": 7}, True)
    points.save(1, 0, {"epoch": 1, "history": []})
    start = initial_checkpoint.find(named, points, {})
    assert start is not None
    assert (start.content["epoch"], start.is_resume_point) == (1, True)
    weights = experiment(checkpoint={"path": str(tmp_path / "named.pth")})
    start = initial_checkpoint.find(weights, None, {})
    assert start is not None
    assert not start.is_resumed
    assert initial_checkpoint.find(experiment(), None, {}) is None


def test_ids_are_packed_and_come_back() -> None:
    parts = {"train": ["a-1-2-3", "b-1-2-3"], "val": ["c-1-2-3"]}
    packed = tile_ids.compress(parts)
    assert all(each.dtype == torch.uint8 for each in packed.values())
    assert tile_ids.decompress(packed) == parts


@pytest.mark.parametrize(
    ("split", "config"),
    [
        (Split(np.arange(5), np.arange(5, 6), np.arange(0)), experiment()),
        (SPLIT, experiment(runtime={"seed": 1}, checkpoint={"if_different": "continue"})),
        (SPLIT, experiment(model={"batch_size": 3}, checkpoint={"if_different": "continue"})),
    ],
    ids=["other tiles", "another seed", "another batch size"],
)
def test_epoch_whose_batches_have_changed_restarts(split: Split, config: Config) -> None:
    start = point_of(experiment())
    content = {**start.content, "step": 3, "tallies": [{}]}
    state = made(Network())
    resume.restore(state, InitialCheckpoint(start.name, content, True), config, Tiles(), split)  # type: ignore[arg-type]
    assert (state.step, state.partial_metrics) == (0, None)
    state = made(Network())
    resume.restore(state, InitialCheckpoint(start.name, content, True), experiment(), Tiles(), SPLIT)  # type: ignore[arg-type]
    assert (state.step, state.partial_metrics) == (3, [{}])


def test_another_seed_is_another_experiment() -> None:
    with pytest.raises(CheckpointError, match=r"runtime\.seed = 1, there 0"):
        resume.restore(
            made(Network()),
            point_of(experiment()),
            experiment(runtime={"seed": 1}),
            Tiles(),  # type: ignore[arg-type]
            SPLIT,
        )


@pytest.mark.parametrize(
    "scale",
    [*("banana", [[1]], [{}], ["banana"], [-1], [0.0], [True], [None], [torch.ones(1)], {"a": 1}, 5, None)]
    + [[number] for number in (float("inf"), float("nan"), 10**400, 10**12 + 1)]
    + [["tags", "raw"]],
    ids=repr,
)
def test_scale_of_metadata_that_is_none_is_damage(scale: Any) -> None:
    start = InitialCheckpoint("a.pth", {"metadata": {"scale": scale}}, is_resumed=False)
    with pytest.raises(CheckpointError, match=r"^a\.pth: damaged: metadata\.scale = .*accepted: a list of auto"):
        resolve_scales(experiment(), start)


@pytest.mark.parametrize("scale", ["auto", "raw", "tags", 255, 0.5, 10**12])
def test_scale_of_metadata_is_taken_where_the_experiment_gives_none(scale: Any) -> None:
    config = dataclasses.replace(experiment(), channels=(ChannelConfig(bands=(1, 2)),))
    start = InitialCheckpoint("a.pth", {"metadata": {"scale": [scale]}}, is_resumed=False)
    assert [each.scale for each in resolve_scales(config, start).channels] == [scale]


def test_tags_of_the_weights_beside_another_scale_of_the_experiment_are_an_error() -> None:
    channels = (ChannelConfig(bands=(1,), scale="raw"), ChannelConfig(bands=(2,)))
    start = InitialCheckpoint("a.pth", {"metadata": {"scale": ["tags", "tags"]}}, is_resumed=False)
    with pytest.raises(ConfigError, match=r"would be raw, tags, .*; give each channel the same scale"):
        resolve_scales(dataclasses.replace(experiment(), channels=channels), start)


@pytest.mark.parametrize(
    ("before", "agrees"),
    [
        *(("***", True), ("ab***", True), ("***cab", True), ("a***c***b", True), ("***a***a***", True)),
        *(
            ("abc***cab", True),
            ("abca***cab", False),
            ("***a***a***a***", False),
            ("a***x***b", False),
            ("b***", False),
        ),
        ("***" * 30_000 + "x", False),
    ],
    ids=range(11),
)
def test_redacted_value_agrees_part_by_part(before: str, agrees: bool) -> None:
    assert experiment_diff.agrees(before, "abccab") == agrees
    assert experiment_diff.agrees(before, 5) == (before == "***")


@pytest.mark.parametrize("value", ["banana", "auto", [1], {"a": 1}, None, torch.zeros(3), -5, 0, True, 0.5], ids=repr)
def test_form_of_upsampling_that_is_none_is_damage(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"^a\.pth: damaged: upsampling = .*: accepted: plain, transposed or"):
        initial_checkpoint.saved_upsampling(InitialCheckpoint("a.pth", {"upsampling": value}, True), "plain")


def test_form_of_upsampling_is_the_resume_point_s_where_it_has_one() -> None:
    noted = [
        initial_checkpoint.saved_upsampling(InitialCheckpoint("a.pth", {"upsampling": each}, True), 9)
        for each in ("plain", 1024)
    ]
    assert noted == ["plain", 1024]
    assert initial_checkpoint.saved_upsampling(InitialCheckpoint("a.pth", {}, True), 9) == 9


@pytest.mark.parametrize("text", [b"\n" * 10**7, b"x" * (tile_ids.MOST_ID_BYTES + 1)], ids=["lines", "bytes"])
def test_ids_that_unpack_to_more_than_are_accepted_are_refused(text: bytes) -> None:
    packed = torch.frombuffer(bytearray(zlib.compress(text, 1)), dtype=torch.uint8)
    with pytest.raises(ValueError, match="more than 10,000,000 or 256,000,000 bytes"):
        tile_ids.decompress({"train": packed})
    with pytest.raises(BufferError, match="contiguous"):
        tile_ids.decompress({"train": torch.zeros(1, dtype=torch.uint8).expand(10**12)})


def test_learning_rate_is_the_resume_point_s_and_other_settings_are_the_optimizer_s_own() -> None:
    start = point_of(experiment())
    start.content["optimizer"]["param_groups"][0].update(lr=0.25, amsgrad=True, betas=(5, "x"), eps="x", fused=None)
    state = made(Network())
    resume.restore(state, start, experiment(), Tiles(), SPLIT)  # type: ignore[arg-type]
    (group,) = state.optimizer.param_groups
    assert (group["lr"], group["amsgrad"], group["betas"], group["eps"]) == (0.25, False, (0.9, 0.999), 1e-8)
    learn(state, 1)
