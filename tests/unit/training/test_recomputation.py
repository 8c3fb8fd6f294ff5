"""What `runtime.recompute: auto` chooses, and the memory that it expects a step to take."""

import dataclasses

import pytest
import torch

from benchmarks.kept_memory import kept_bytes as measured_bytes
from robosat_pink.config import ChannelConfig, ClassConfig, Config, DatasetConfig, ModelConfig, RuntimeConfig
from robosat_pink.models import build_model
from robosat_pink.models.blocks import Execution, choose_execution
from robosat_pink.training.recomputation import choose_recompute, fitting_recompute, kept_bytes
from robosat_pink.training.task import Compute

CUDA = Compute(torch.device("cuda"), torch.bfloat16, torch.channels_last)
CPU = Compute(torch.device("cpu"), None, torch.contiguous_format)
GB = 10**9


def experiment(recompute: str = "auto", **model: object) -> Config:
    return Config(
        dataset=DatasetConfig(image_bucket="imagery", mask_bucket="mask"),
        classes=(ClassConfig(name="snow"),),
        channels=(ChannelConfig(bands=(1, 2, 3, 4)),),
        model=ModelConfig(name="unet", batch_size=16, **model),
        runtime=RuntimeConfig(recompute=recompute),
    )


@pytest.mark.parametrize("name", ["unet", "albunet", "ternausnetv2"])
@pytest.mark.parametrize("form", ["plain", "transposed"])
def test_expected_memory_is_what_a_forward_pass_keeps(name: str, form: str) -> None:
    network = build_model(name, num_classes=1, num_channels=4, num_filters=4)
    execution = Execution(form, "none")
    expected = kept_bytes(network, execution, (2, 4, 64, 64), None)
    choose_execution(network, execution)
    image = torch.randn(2, 4, 64, 64)
    permanent = [image, *network.parameters(), *network.buffers()]
    measured = measured_bytes(lambda: network.train()(image).sum(), permanent)
    assert measured <= expected <= 1.03 * measured + image.nbytes


def test_half_precision_keeps_half() -> None:
    network = build_model("unet", num_classes=1, num_channels=4)
    whole, half = (kept_bytes(network, Execution(), (1, 4, 32, 32), dtype) for dtype in (None, torch.bfloat16))
    assert 2 * half == whole


def test_counting_changes_neither_weights_nor_mode() -> None:
    network = build_model("unet", num_classes=1, num_channels=4)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    kept_bytes(network, Execution(), (1, 4, 32, 32), None)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_nothing_is_recomputed_where_a_step_fits(caplog: pytest.LogCaptureFixture) -> None:
    network = build_model("unet", num_classes=1, num_channels=4)
    caplog.set_level("INFO")
    choices = [fitting_recompute(network, Execution(), experiment(), CUDA, gb * GB) for gb in (80, 4)]
    assert choices == ["none", "norms"]
    assert "runtime.recompute = none: without it, a step needs about 6.7 GB of the GPU's 80.0 GB" in caplog.text


def test_smaller_batches_need_less() -> None:
    network = build_model("unet", num_classes=1, num_channels=4)
    config = experiment()
    halved = dataclasses.replace(config, runtime=RuntimeConfig(recompute="auto", accumulation=2))
    choices = [fitting_recompute(network, Execution(), each, CUDA, 5 * GB) for each in (config, halved)]
    assert choices == ["norms", "none"]


@pytest.mark.parametrize(("setting", "chosen"), [("auto", "norms"), ("none", "none"), ("blocks", "blocks")])
def test_a_cpu_recomputes_norms_unless_told_otherwise(setting: str, chosen: str) -> None:
    network = build_model("unet", num_classes=1, num_channels=4)
    choose_recompute(network, Execution("transposed"), experiment(setting), CPU)
    assert network.execution == Execution("transposed", chosen)
