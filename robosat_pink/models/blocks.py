"""Pieces that several networks share, and how they compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from robosat_pink.models import recomputation
from robosat_pink.models.recomputation import Recompute, Upsampling

# Input pixels of a tile from which on the transposed form is the faster one, by device: on two cores with AVX-512 BF16,
# forward and backward, it took 0.8 of the time at 32 x 32 and 0.4 to 0.5 above in float32, 0.9 and 0.2 to 0.6 in
# bfloat16, and at 16 x 16 1.0 to 1.5 times. On an H200, batch 16: 0.9 at 16 x 16 and 0.3 to 0.6 above in both types,
# but 1.3 to 2 times at 8 x 8 (tests/benchmarks/upsampling.py).
TRANSPOSED_FROM: dict[str, int] = {"cpu": 32 * 32, "cuda": 16 * 16}


@dataclass(frozen=True)
class Execution:
    """How a network computes its function, which stays the same up to the last bits.

    `upsampling` is the form of convolutions after upsampling; `auto` takes one by device and size alone, so that runs
    repeat, and a number is that of input pixels from which on it is the transposed one. `recompute` is what is computed
    again in backward instead of kept: nothing; norms, activations, concatenations and pooling, which are cheap; or
    whole blocks, which costs about a forward pass more. A compiler chooses that by itself.
    """

    upsampling: Literal["auto", "plain", "transposed"] | int = "auto"
    recompute: Recompute = "norms"

    @property
    def again(self) -> Recompute:
        return "none" if torch.compiler.is_compiling() else self.recompute

    def conv(self, conv: Any, *parts: Tensor) -> Tensor:
        """conv of parts (N, C, H, W) laid side by side along C."""
        return self._conv(conv, parts, "none")

    def upsampled_conv(self, conv: Any, *parts: Tensor) -> Tensor:
        """3 x 3 conv, padded, of parts (N, C, H, W) side by side, upsampled by 2 to the nearest: (N, O, 2H, 2W)."""
        return self._conv(conv, parts, self.form(parts[0]))

    def norm_act_conv(self, features: Tensor, norm: Any, slope: float, conv: Any) -> Tensor:
        """conv(leaky_relu(norm(features))), with a slope of 0 for ReLU; `norm` is a batch norm without activation."""
        if self.again != "none":
            return recomputation.norm_act_conv(features, norm, slope, conv)
        found: Tensor = conv(functional.leaky_relu(recomputation.batch_norm(features, norm), slope, inplace=True))
        return found

    def cheap(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """function(*inputs), for what is sooner computed than read."""
        again = self.again != "none"
        return recomputation.once_more_in_backward(function, *inputs) if again else function(*inputs)

    def block(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """function(*inputs), for a block of a network."""
        again = self.again == "blocks"
        return recomputation.once_more_in_backward(function, *inputs) if again else function(*inputs)

    def form(self, features: Tensor) -> Upsampling:
        least = settled_upsampling(self.upsampling, features.device.type)
        if least == "plain" or least == "transposed":
            return least
        height, width = features.shape[-2:]
        return "transposed" if height * width >= least else "plain"

    def _conv(self, conv: Any, parts: tuple[Tensor, ...], upsampling: Upsampling) -> Tensor:
        if self.again != "none":
            return recomputation.cat_conv(parts, conv, upsampling)
        features = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return recomputation.conv_of(features, conv.weight, conv.bias, upsampling, conv.stride, conv.padding)


def settled_upsampling(
    setting: Literal["auto", "plain", "transposed"] | int, device_type: str
) -> Literal["plain", "transposed"] | int:
    """What `auto` is on a device: for a run to go on with elsewhere."""
    return TRANSPOSED_FROM.get(device_type, "plain") if setting == "auto" else setting


class Block(nn.Module):
    """A module that computes as its `execution` says."""

    execution = Execution()


def choose_execution(model: nn.Module, execution: Execution) -> None:
    """How every block of a network computes."""
    for module in model.modules():
        if isinstance(module, Block):
            module.execution = execution


class ConvRelu(Block):
    """3 x 3 convolution without bias, then ReLU: parts (N, C, H, W), side by side, to (N, num_out, H, W)."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.block = nn.Conv2d(num_in, num_out, kernel_size=3, padding=1, bias=False)
        # Without batch norm torch's default would shrink the signal to 0.4 of itself in every block (He et al. 2015).
        nn.init.kaiming_normal_(self.block.weight, nonlinearity="relu")

    def forward(self, *parts: Tensor) -> Tensor:
        return functional.relu(self.execution.conv(self.block, *parts), inplace=True)


class DecoderBlock(Block):
    """Nearest upsampling by 2, then ConvRelu: parts (N, C, H, W), side by side, to (N, num_out, 2H, 2W)."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.block = ConvRelu(num_in, num_out)

    def forward(self, *parts: Tensor) -> Tensor:
        return self.execution.block(self._forward, *parts)

    def _forward(self, *parts: Tensor) -> Tensor:
        return functional.relu(self.execution.upsampled_conv(self.block.block, *parts), inplace=True)


def check_size(image: Tensor, multiple: int, network: str) -> None:
    """ValueError with the size to pad to, where height or width is not a multiple."""
    height, width = image.shape[-2:]
    if height % multiple or width % multiple:
        raise ValueError(
            f"{network} needs height and width in multiples of {multiple}, got {height} x {width}; "
            f"pad to {-(-height // multiple) * multiple} x {-(-width // multiple) * multiple}"
        )
