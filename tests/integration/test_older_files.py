"""What version 0.1.0 has written loads: weights, resume points, experiments. tests/data/README.md says what it is."""

import contextlib
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import DATA, S3Server
from robosat_pink import checkpoint
from robosat_pink.config import ChannelConfig, DatasetConfig, load_config
from robosat_pink.container.quantities import count
from robosat_pink.datasets import TilePairs
from robosat_pink.models import build_model
from robosat_pink.sample import write_tiles
from robosat_pink.train import main
from robosat_pink.trained import load_model
from robosat_pink.training import loop
from robosat_pink.training.state import State

RUN = DATA / "run_of_0.1.0"
WEIGHTS, MOMENTS, BEST_WEIGHTS = 1, 10_001, 20_001  # the first of the numbers that tensors are filled with


def unpack(name: str, folder: Path) -> Path:
    (folder / name).write_bytes(lzma.decompress((RUN / f"{name}.xz").read_bytes()))
    return folder / name


def assert_each_has_its_own(state_dict: dict[str, torch.Tensor], first: int) -> None:
    """Every floating-point tensor holds the number of its position, and so each name got what stood under it."""
    tensors = [each for each in state_dict.values() if each.is_floating_point()]
    assert len(tensors) == 109
    for number, tensor in enumerate(tensors, first):
        assert torch.all(tensor == number / 2**20)


@pytest.mark.parametrize(("name", "epoch"), [("best.pth", 1), ("checkpoint-00002-of-00002.pth", 2)])
def test_weights_load_into_a_network_and_as_a_trained_one(tmp_path: Path, name: str, epoch: int) -> None:
    path = unpack(name, tmp_path)
    network = build_model("albunet", num_classes=1, num_channels=4, encoder="resnet18", num_filters=4)
    loaded = checkpoint.load_weights(network, path)
    assert (loaded.epoch, loaded.ignored) == (epoch, ())
    assert_each_has_its_own(network.state_dict(), WEIGHTS)
    trained = load_model(path)
    assert (trained.bands, trained.config.model.lr, trained.config.classes[0].name) == ([1, 2, 3, 4], 0.001, "snow")
    assert_each_has_its_own(trained.network.state_dict(), WEIGHTS)


def test_checkpoint_is_resumed_with_its_optimizer(opt_ml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = unpack("checkpoint-00002-of-00002.pth", opt_ml)
    state = started(opt_ml, monkeypatch, "model.epochs=3", f"checkpoint.resume={path}")
    assert (state.epoch, state.step) == (2, 0)


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 2])
def test_run_goes_on_from_the_resume_point_at_its_epoch_and_step(
    opt_ml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: int
) -> None:
    (opt_ml / "checkpoints").mkdir()
    unpack(f"resume-00001-{step:06d}.pth", opt_ml / "checkpoints")
    state = started(opt_ml, monkeypatch)
    assert (state.epoch, state.step, state.best_epoch, state.skipped) == (1, step, 1, 0)
    assert (state.partial_metrics is not None) == (step > 0)
    assert [row["epoch"] for row in state.history] == [1]
    assert_each_has_its_own(state.best_weights, BEST_WEIGHTS)
    log = capsys.readouterr().out
    assert f"resume-00001-{step:06d}.pth: 1 epoch and {count(step, 'step')} are done" in log
    assert "warning" not in log


def started(opt_ml: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> State:
    """The state that the experiment, run again, trains from, once its weights and moments are compared.

    From within an epoch the run goes on to its end; the others end there.
    """
    write_tiles(opt_ml / "input/data", tiles=4, size=64)
    (opt_ml / "input/data/config/experiment.yml").write_bytes((RUN / "experiment.yml").read_bytes())
    begun: list[State] = []
    real: Callable[..., None] = loop.fit

    def fit(state: State, *arguments: Any) -> None:
        assert_each_has_its_own(state.model.state_dict(), WEIGHTS)
        for number, parameter in enumerate(state.model.parameters()):
            moments = state.optimizer.state[parameter]
            assert torch.all(moments["exp_avg"] == (MOMENTS + 2 * number) / 2**20)
            assert torch.all(moments["exp_avg_sq"] == (MOMENTS + 2 * number + 1) / 2**20)
        begun.append(State(**{**vars(state), "history": list(state.history)}))
        if not state.step:
            raise SystemExit(0)
        real(state, *arguments)
        assert state.epoch == state.history[-1]["epoch"] == begun[0].epoch + 1

    monkeypatch.setattr(loop, "fit", fit)
    with contextlib.suppress(SystemExit):
        assert main(["runtime.workers=0", *overrides]) == 0
    return begun[0]


def test_written_config_is_an_experiment(tmp_path: Path) -> None:
    written, given = load_config(RUN / "config.yml"), load_config(RUN / "experiment.yml", {"runtime.workers": "0"})
    assert written.model == given.model
    assert written.dataset == given.dataset


def test_tiles_of_a_bucket_are_known_to_be_those_a_run_was_begun_with(s3: S3Server) -> None:
    """By the digest of names, sizes and ETags that version 0.1.0 wrote for these objects."""
    for kind in ("imagery", "mask"):
        s3.make_bucket(kind)
        for x in range(3):
            s3.client.put_object(Bucket=kind, Key=f"20180528_tiled/5/{x}/2.tif", Body=f"{kind} {x}".encode())
    dataset = DatasetConfig(image_bucket="imagery", mask_bucket="mask", endpoint_url=s3.endpoint_url)
    digest = TilePairs(dataset, (ChannelConfig(bands=(1,)),)).digest()
    assert digest == "55c4e3a18992479d8dfb018e42a1305697d58d3d8ea00349a6d3736ae3e2052d"
