"""Writes a network as a torch.export program, which needs torch but not robosat_pink. Called by `trained`."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as fx_config

from robosat_pink.config import Config
from robosat_pink.container.atomic_write import check_writable, write_atomically
from robosat_pink.datasets.normalisation import AUTO_SCALE, normalisation, scales_of
from robosat_pink.datasets.probabilities import Probabilities
from robosat_pink.errors import ConfigError
from robosat_pink.models import MODELS
from robosat_pink.models.blocks import Execution, choose_execution

METADATA = "metadata.json"  # the extra file that says what goes in and what comes out


class DigitalNumbers(nn.Module):
    """`Probabilities` of images of one dtype, whose scale is known."""

    scale: Tensor

    def __init__(self, probabilities: Probabilities, scale: Tensor) -> None:
        super().__init__()
        self.probabilities = probabilities
        self.register_buffer("scale", scale)

    def forward(self, image: Tensor) -> Tensor:
        probs: Tensor = self.probabilities(image, self.scale)
        return probs


def export(path: Path, config: Config, network: nn.Module, threshold: float | None, dtype: str | None) -> None:
    """Write what `Probabilities` computes from float32 (N, C, H, W) as a .pt2 file, with METADATA as an extra file.

    `dtype` is that of the image files, which `scale: auto` depends on. Raises ConfigError if it is missing, unknown or
    without effect, ContractError if the file cannot be written.
    """
    scale = _scale(config, dtype)
    check_writable(path.parent)
    program = _program(config, network, scale)
    extra_files = {METADATA: json.dumps(_metadata(config, threshold, dtype, scale), indent=2)}
    write_atomically(path, lambda file: torch.export.save(program, file, extra_files=extra_files))


def _scale(config: Config, dtype: str | None) -> Tensor:
    """The divisor (1, C) of each band."""
    if not any(channel.scale in ("auto", None) for channel in config.channels):
        if dtype is not None:
            raise ConfigError(f"--dtype = {dtype}: acts with channels[].scale: auto only; leave it out")
    elif dtype not in AUTO_SCALE:
        given = f"--dtype = {dtype}" if dtype else "--dtype is missing"
        reason = "channels[].scale: auto depends on the data type of the image files"
        raise ConfigError(f"{given}: {reason}; accepted: {', '.join(AUTO_SCALE)}")
    return torch.from_numpy(scales_of(config.channels, str(dtype), "--dtype")[None])


def _program(config: Config, network: nn.Module, scale: Tensor) -> ExportedProgram:
    """The program of batches of any number of images, whose sides are multiples of the network's `size_multiple`."""
    network = copy.deepcopy(network).cpu().requires_grad_(False)
    choose_execution(network, Execution(upsampling="transposed", recompute="none"))
    module = DigitalNumbers(Probabilities(config, network), scale).eval()
    multiple = MODELS[config.model.name].size_multiple
    example = torch.zeros(2, config.num_channels, 2 * multiple, 3 * multiple)
    rows, columns = (Dim(name, min=2 if multiple == 1 else 1) for name in ("rows", "columns"))  # torch: not 1 px
    shape = {0: Dim("images"), 2: multiple * rows, 3: multiple * columns}
    # Without `backed_size_oblivious`, torch writes into the program that features have more than one pixel a side.
    with torch.no_grad(), fx_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = torch.export.export(module, (example,), dynamic_shapes=(shape,))
    for node in program.graph.nodes:  # these would refuse the program on another device than this one
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
    return program


def _metadata(config: Config, threshold: float | None, dtype: str | None, scale: Tensor) -> dict[str, Any]:
    mean, std = normalisation(config.channels)
    multiple = MODELS[config.model.name].size_multiple
    applied = "with their scale and offset applied" if config.channels[0].scale == "tags" else "as they are"
    return {
        "input": f"float32 (N, {config.num_channels}, H, W): the numbers of the image files, {applied}; H and W are "
        f"multiples of {multiple}, if need be padded with 0 on the right and below; NaN and inf count as 0",
        "output": f"float32 (N, {config.num_classes}, H, W): probabilities of `classes`",
        "bands": [band for channel in config.channels for band in channel.bands],
        "classes": [class_.name for class_ in config.classes],
        "threshold": threshold,
        "size_multiple": multiple,
        "symmetries": config.model.symmetries,
        "network": config.model.name,
        "dtype": dtype,
        "scale": scale[0].tolist(),
        "mean": list(mean),
        "std": list(std),
    }
