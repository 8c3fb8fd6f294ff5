"""What loggers are told of a run, how TensorBoard keeps it, and that one that fails or is missing does no harm."""

import importlib.util
import logging
import math
import resource
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resumable import Network, made
from robosat_pink.config import sections
from robosat_pink.container.contract import Container
from robosat_pink.errors import ContractError
from robosat_pink.training import loggers
from robosat_pink.training.loggers import LOGGERS, Loggers, TensorBoard, check_installed, scalars_of
from robosat_pink.training.outputs import NoOutputs
from robosat_pink.training.state import State

EXPERIMENT = "model:\n  name: unet\n"


def phase(iou: float) -> dict[str, Any]:
    return {"loss": 1 - iou, "iou": iou, "tiles": 3, "waited_s": 0.1, "per_class": {"snow": {"iou": iou}}}


def row(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "lr": 0.5, "train": phase(epoch / 10), "val": phase(epoch / 20)}


def state_after(epochs: int) -> State:
    state = made(Network())
    state.epoch, state.history, state.is_resumed = epochs, [row(epoch) for epoch in range(1, epochs + 1)], epochs > 0
    return state


class Recorder:
    """Keeps its calls in words, and fails at the call that `fails_at` names."""

    package: ClassVar[str] = "numpy"
    calls: ClassVar[list[str]] = []
    fails_at: ClassVar[str] = ""

    def __init__(self, container: Container, is_resumed: bool) -> None:
        self._record("open resumed" if is_resumed else "open")

    def experiment(self, text: str) -> None:
        self._record(f"experiment {text!r}")

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        self._record(f"epoch {epoch}: {', '.join(f'{name} {value:g}' for name, value in values.items())}")

    def picture(self, name: str, pixels: np.ndarray, epoch: int) -> None:
        self._record(f"{name} {pixels.shape} {pixels.dtype} {epoch}")

    def close(self) -> None:
        self._record("close")

    def _record(self, call: str) -> None:
        self.calls.append(call)
        if self.fails_at and call.startswith(self.fails_at):
            raise OSError(28, "No space left on device")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setattr(Recorder, "calls", [])
    monkeypatch.setattr(loggers, "LOGGERS", {"recorder": Recorder})
    return Recorder


def run_of_two_epochs(names: list[str], state: State, folder: Path) -> None:
    """As a run calls its loggers."""
    run_loggers = Loggers(names)
    run_loggers.begin(Container.here(), state, EXPERIMENT)
    for epoch in (state.epoch + 1, state.epoch + 2):
        run_loggers.epoch(row(epoch))
    run_loggers.phase("holdout", phase(0.25), 1)
    run_loggers.worst_tiles(folder, 1)
    run_loggers.close()


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """What the report leaves: pictures, of which only the worst are logged."""
    for name in ("worst-1-a.png", "worst-2-b.png", "best-1-c.png"):
        Image.new("RGB", (8, 4), "red").save(tmp_path / name)
    return tmp_path


def test_logger_is_told_experiment_epochs_held_out_tiles_and_pictures(
    opt_ml: Path, recorder: type[Recorder], tiles: Path
) -> None:
    run_of_two_epochs(["recorder"], state_after(0), tiles)
    assert recorder.calls == [
        "open",
        "experiment 'model:\\n  name: unet\\n'",
        "epoch 1: train/lr 0.5, train/loss 0.9, train/iou 0.1, train/tiles 3, val/loss 0.95, val/iou 0.05, val/tiles 3",
        "epoch 2: train/lr 0.5, train/loss 0.8, train/iou 0.2, train/tiles 3, val/loss 0.9, val/iou 0.1, val/tiles 3",
        "epoch 1: holdout/loss 0.75, holdout/iou 0.25, holdout/tiles 3",
        "tiles/worst-1-a (4, 8, 3) uint8 1",
        "tiles/worst-2-b (4, 8, 3) uint8 1",
        "close",
    ]


def test_other_ranks_log_nothing(opt_ml: Path) -> None:
    outputs = NoOutputs()
    outputs.begin(state_after(0))
    outputs.loggers.epoch(row(1))
    outputs.loggers.close()
    assert not (opt_ml / "output/tensorboard").exists()


def test_resumed_run_logs_the_epochs_of_its_history_again(
    opt_ml: Path, recorder: type[Recorder], tmp_path: Path
) -> None:
    run_of_two_epochs(["recorder"], state_after(2), tmp_path)
    assert recorder.calls[0] == "open resumed"
    assert [call.partition(":")[0] for call in recorder.calls if call.startswith("epoch")] == [
        *("epoch 1", "epoch 2", "epoch 3", "epoch 4"),
        "epoch 1",  # held-out tiles, by the best weights
    ]


@pytest.mark.parametrize(
    ("fails_at", "calls"), [("open", 1), ("experiment", 3), ("epoch 2", 5), ("tiles", 7), ("close", 8)]
)
def test_logger_that_fails_is_left_out_with_one_warning_and_the_others_go_on(
    opt_ml: Path,
    tiles: Path,
    recorder: type[Recorder],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fails_at: str,
    calls: int,
) -> None:
    other = type("Other", (Recorder,), {"calls": []})
    monkeypatch.setattr(loggers, "LOGGERS", {"recorder": Recorder, "other": other})
    monkeypatch.setattr(Recorder, "fails_at", fails_at)
    monkeypatch.setattr(other, "fails_at", "")
    run_of_two_epochs(["recorder", "other"], state_after(0), tiles)
    assert (len(recorder.calls), len(other.calls)) == (calls, 8)  # type: ignore[attr-defined]
    [warning] = caplog.messages
    assert warning == (
        "warning: runtime.loggers: recorder failed, and logs no more of this run: "
        "OSError: [Errno 28] No space left on device"
    )


def test_history_of_another_version_costs_a_logger_and_never_a_run(
    opt_ml: Path, recorder: type[Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    of_another_version = {"epoch": 1, "train": {}, "val": {}}
    Loggers().epoch(of_another_version)
    assert not caplog.messages
    run_loggers = Loggers(["recorder"])
    run_loggers.begin(Container.here(), state_after(0), EXPERIMENT)
    run_loggers.epoch(of_another_version)
    assert recorder.calls[-1] == "close"
    assert len(caplog.messages) == 1


def test_undefined_numbers_are_left_out_and_classes_are_told_apart() -> None:
    values = {"iou": 0.5, "mcc": math.nan, "waited_s": 1.0}
    of_classes = {"rock": {"iou": 0.25, "f1": math.nan}, "snow": {"iou": 0.75, "f1": 1.0}}
    assert scalars_of("val", values | {"per_class": of_classes}) == {
        "val/iou": 0.5,
        "val/iou/rock": 0.25,
        "val/iou/snow": 0.75,
        "val/f1/snow": 1.0,
    }


def test_registry_names_what_the_key_accepts_and_each_package_is_an_extra() -> None:
    assert tuple(LOGGERS) == sections.LOGGERS
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    for logger in LOGGERS.values():
        assert [extra.partition(">")[0] for extra in project["optional-dependencies"][logger.package]] == [
            logger.package
        ]


def test_missing_package_is_told_with_the_ways_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed(["tensorboard"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_installed([])
    with pytest.raises(ContractError) as refused:
        check_installed(["tensorboard"])
    assert str(refused.value) == (
        'runtime.loggers = ["tensorboard"]: the package tensorboard is missing; leave it out, install it (in a clone: '
        ".venv/bin/pip install tensorboard), or build the image with --build-arg EXTRAS=tensorboard"
    )


# TensorBoard, read back by its own reader.


def events(folder: Path) -> EventAccumulator:
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return reader.Reload()


def points(reader: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, round(event.value, 6)) for event in reader.Scalars(tag)]


def test_events_hold_scalars_by_epoch_the_experiment_and_pictures(opt_ml: Path, tiles: Path) -> None:
    run_of_two_epochs(["tensorboard"], state_after(0), tiles)
    reader = events(opt_ml / "output/tensorboard")
    assert points(reader, "train/iou") == [(1, 0.1), (2, 0.2)]
    assert points(reader, "val/loss") == [(1, 0.95), (2, 0.9)]
    assert points(reader, "train/lr") == [(1, 0.5), (2, 0.5)]
    assert points(reader, "holdout/iou") == [(1, 0.25)]
    [text] = reader.Tensors("experiment/text_summary")
    assert text.tensor_proto.string_val == [b"    model:\n      name: unet\n"]
    assert sorted(reader.Tags()["images"]) == ["tiles/worst-1-a", "tiles/worst-2-b"]
    [picture] = reader.Images("tiles/worst-1-a")
    assert (picture.step, picture.width, picture.height) == (1, 8, 4)


@pytest.mark.parametrize("has_earlier_events", [True, False])
def test_events_of_a_resumed_run_have_every_epoch_once(opt_ml: Path, tmp_path: Path, has_earlier_events: bool) -> None:
    """Whether the folder outlived the interruption, or not, as on SageMaker's spot instances."""
    if has_earlier_events:
        interrupted = TensorBoard(Container.here(), is_resumed=False)
        for epoch in (1, 2, 3):  # the resume point of epoch 3 was never written
            interrupted.scalars({"val/iou": 0.9}, epoch)
        interrupted.close()
    run_of_two_epochs(["tensorboard"], state_after(2), tmp_path)
    assert len(list((opt_ml / "output/tensorboard").iterdir())) == 1  # TensorBoard's slow loader does not purge
    reader = events(opt_ml / "output/tensorboard")
    assert points(reader, "val/iou") == [(1, 0.05), (2, 0.1), (3, 0.15), (4, 0.2)]
    assert len(reader.Tensors("experiment/text_summary")) == 1


def test_copies_of_an_interrupted_run_s_events_do_not_count_beside_those_of_the_resumed_one(
    opt_ml: Path, tmp_path: Path
) -> None:
    """On S3, what SageMaker has copied stays."""
    folder = opt_ml / "output/tensorboard"
    interrupted = TensorBoard(Container.here(), is_resumed=False)
    interrupted.scalars({"val/iou": 0.9}, 3)
    interrupted.close()
    [copied] = folder.iterdir()
    copied = shutil.move(copied, tmp_path / "events.out.tfevents.1.host.1.0")
    run_of_two_epochs(["tensorboard"], state_after(2), tmp_path)
    shutil.copy(copied, folder)
    assert points(events(folder), "val/iou") == [(1, 0.05), (2, 0.1), (3, 0.15), (4, 0.2)]


@pytest.fixture
def small_files() -> Iterator[None]:
    """A disk that takes no file of more than 2,000 bytes from this process."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_full_disk_costs_the_events_and_one_warning(
    opt_ml: Path, small_files: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run_loggers = Loggers(["tensorboard"])
    run_loggers.begin(Container.here(), state_after(0), EXPERIMENT)
    for epoch in range(1, 20):
        run_loggers.epoch(row(epoch))
    run_loggers.close()
    [warning] = caplog.messages
    assert warning.startswith("warning: runtime.loggers: tensorboard failed, and logs no more of this run: ")
    assert "File too large" in warning


def test_folder_that_cannot_be_written_costs_the_events_and_one_warning(
    opt_ml: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (opt_ml / "output/tensorboard").write_text("a file")
    run_of_two_epochs(["tensorboard"], state_after(0), tmp_path)
    [warning] = caplog.messages
    assert f"{opt_ml}/output/tensorboard: cannot be written: File exists; check the folder" in warning
