"""What only a GPU can show. `tests/benchmarks/gpu.sh` begins with these tests."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.amp.grad_scaler import GradScaler

from conftest import SMALL_DATASET, SMALL_MODEL, write_job
from fingerprint import Fingerprint, relative
from robosat_pink.config import ChannelConfig, ClassConfig, Config, DatasetConfig, ModelConfig, RuntimeConfig
from robosat_pink.container import device
from robosat_pink.container.stop_request import StopRequest
from robosat_pink.datasets import TilePairs
from robosat_pink.datasets.transforms import TrainingTransform
from robosat_pink.distributed.launcher import SINGLE_PROCESS
from robosat_pink.distributed.process_group import World
from robosat_pink.errors import ContractError
from robosat_pink.losses import build_loss
from robosat_pink.models import build_model
from robosat_pink.models.blocks import Execution, choose_execution
from robosat_pink.sample import write_tiles
from robosat_pink.training import out_of_memory, progress
from robosat_pink.training.background_writer import BackgroundWriter
from robosat_pink.training.setup import make_loader
from robosat_pink.training.state import State
from robosat_pink.training.step import training_step
from robosat_pink.training.stopping import LoopControl
from robosat_pink.training.task import Compute, Data, Objective, Task

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

SIZE = 256


@pytest.fixture
def exact() -> Iterator[None]:
    """float32 as it is, without TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-2)])
@pytest.mark.parametrize(
    "execution", [Execution("plain", "none"), Execution("transposed"), Execution("auto", "blocks")]
)
@pytest.mark.parametrize(
    ("network", "fingerprint", "num_channels", "unused", "factor"),
    [
        ("albunet", "albunet_resnet50_4ch", 4, ("resnet.fc.",), 1),
        ("ternausnetv2", "ternausnetv2_11ch", 11, (), 20),
    ],
)
def test_networks_compute_the_reference_function(
    network: str,
    fingerprint: str,
    num_channels: int,
    unused: tuple[str, ...],
    factor: float,
    execution: Execution,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    model = build_model(network, num_classes=1, num_channels=num_channels)
    choose_execution(model, execution)
    Fingerprint(fingerprint).check(model, dtype, tolerance, factor * tolerance, unused, device="cuda")


@pytest.mark.parametrize("share", [0.5, 0.01, 0.0])
def test_lovasz_loss_and_its_gradient_are_those_of_float64(share: float) -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 128, 128, generator=random)
    mask = (torch.rand(3, 128, 128, generator=random) < share).to(torch.uint8)
    mask[0, :9] = 255
    found = []
    for given in (logits.double().requires_grad_(), logits.cuda().requires_grad_()):
        loss = build_loss("lovasz", num_classes=1)(given, mask.to(given.device))
        loss.backward()
        assert given.grad is not None
        found.append((loss.detach(), given.grad))
    (expected_loss, expected_gradient), (loss, gradient) = found
    assert relative(loss, expected_loss) < 1e-5
    assert relative(gradient, expected_gradient) < 1e-5


# The step


class Job:
    """A small experiment on written tiles in pinned memory, as `train` would set it up."""

    def __init__(self, folder: Path, precision: torch.dtype | None, batch_size: int = 4, workers: int = 1) -> None:
        write_tiles(folder, tiles=4, size=SIZE)
        config = Config(
            dataset=DatasetConfig(image_bucket=str(folder / "imagery"), mask_bucket=str(folder / "mask")),
            classes=(ClassConfig(name="snow"),),
            channels=(ChannelConfig(bands=(1, 2, 3, 4), scale=10000),),
            model=ModelConfig(name="albunet", encoder="resnet18", batch_size=batch_size, tile_size=SIZE),
            runtime=RuntimeConfig(workers=workers),
        )
        where = torch.device("cuda")
        self.tiles = TilePairs(config.dataset, config.channels, config.classes, tile_size=SIZE, augmentation=0.75)
        self.loader = make_loader(self.tiles, config, where, lambda: None, SINGLE_PROCESS)
        torch.manual_seed(0)
        model = build_model("albunet", num_classes=1, num_channels=4, encoder="resnet18")
        layout = device.choose_layout(where, precision)
        model.to(where).to(memory_format=layout).train()  # type: ignore[call-overload]
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
        self.state = State(model, optimizer, GradScaler("cuda", enabled=precision == torch.float16))
        transform = TrainingTransform((0.3,) * 4, (0.2,) * 4).to(where)
        self.task = Task(
            config,
            Objective(model, build_loss("lovasz", num_classes=1).to(where)),
            Data(self.tiles.split(), self.loader, training_transform=transform, evaluation_transform=transform),
            Compute(where, precision, layout),
            LoopControl(World(), StopRequest(), BackgroundWriter()),
            progress.lines,
        )

    def steps(self, epochs: int) -> list[torch.Tensor]:
        rows = self.tiles.split().train
        batches = (batch for epoch in range(1, epochs + 1) for batch in self.loader.training(rows, epoch))
        return [training_step(self.state, self.task, batch, len(batch))[0] for batch in batches]


@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16], ids=str)
def test_step_learns_in_every_precision_and_never_waits_for_the_gpu(
    tmp_path: Path, precision: torch.dtype | None
) -> None:
    job = Job(tmp_path, precision)
    job.steps(1)  # allocates, and makes the optimizer's state
    # float16's scaler alone asks whether to take the step
    torch.cuda.set_sync_debug_mode("default" if precision == torch.float16 else "error")
    try:
        losses = job.steps(6)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = torch.stack(losses).tolist()
    assert found[-1] < 0.8 * found[0], found
    job.loader.close()


def test_pinned_batches_are_those_of_this_process(tmp_path: Path) -> None:
    """Even while the GPU is far behind, so that memory would be used again before it was read."""
    pinned, plain = (Job(tmp_path / str(workers), None, batch_size=2, workers=workers) for workers in (2, 0))
    rows = pinned.tiles.split().train
    busy = torch.randn(4096, 4096, device="cuda")
    expected, found = [], []
    for epoch in (1, 2, 3):
        expected += [(batch.image.clone(), batch.mask.clone()) for batch in plain.loader.training(rows, epoch)]
        for batch in pinned.loader.training(rows, epoch):
            assert batch.image.is_pinned()
            for _ in range(20):  # takes longer than reading a batch
                busy = busy @ busy
            found.append([each.to("cuda", non_blocking=True) for each in (batch.image, batch.mask)])
            del batch
    assert not torch.cuda.current_stream().query(), "the GPU has kept up, and so nothing was shown"
    assert len(found) == len(expected)
    for got, wanted in zip(found, expected, strict=True):
        assert all(torch.equal(one.cpu(), other) for one, other in zip(got, wanted, strict=True))
    pinned.loader.close()


def test_memory_that_does_not_suffice_is_an_error_that_names_what_fits(tmp_path: Path) -> None:
    job = Job(tmp_path, None, batch_size=8)
    torch.cuda.reset_peak_memory_stats()
    job.steps(1)
    peak, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    assert out_of_memory.is_out_of_memory(torch.OutOfMemoryError())
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.7 * peak / total)
    try:
        with pytest.raises(
            ContractError, match=r"does not suffice for \d tile\(s\) of 256 x 256 at a time; \d fit: set"
        ):
            job.steps(1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        job.loader.close()


# Whole runs


@pytest.mark.parametrize("runtime", [{"precision": "bf16"}, {"precision": "fp16", "compile": True}], ids=str)
def test_a_run_goes_on_where_it_stopped(
    opt_ml: Path,
    run_train: Callable[..., subprocess.CompletedProcess[str]],
    runtime: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    experiment = {
        "dataset": SMALL_DATASET,
        "classes": [{"name": "snow", "color": "white"}],
        "channels": [{"bands": [4, 3, 1], "scale": 10000}],
        "model": SMALL_MODEL | {"batch_size": 3, "epochs": 2},
        "runtime": runtime,
    }
    write_job(opt_ml, experiment, tiles=4)
    first = run_train()
    assert first.returncode == 0, first.stdout + first.stderr
    assert "GPU 0: " in first.stdout
    second = run_train("model.epochs=4", "runtime.compile=false")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "continuing from" in second.stdout
    assert "phase=val epoch=4 " in second.stdout
    assert "phase=val epoch=2 " not in second.stdout
    content = torch.load(opt_ml / "model/checkpoint-00004-of-00004.pth", weights_only=True)
    assert content["epoch"] == 4
    assert {each.device.type for each in content["state_dict"].values()} == {"cpu"}
    assert any(tmp_path.glob("compiled/*")) == ("compile" in runtime)
