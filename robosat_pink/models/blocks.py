"""Blocks that several networks share, and `Execution`: how a network computes them. Called by the networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from robosat_pink.models import recomputation
from robosat_pink.models.recomputation import Recompute, Upsampling

# The number of input pixels from which the transposed form of an upsampled convolution is faster, by device type. The
# time of that form, forward and backward, relative to the plain form (tests/benchmarks/upsampling.py):
# two cores with AVX-512 BF16, float32: 16 x 16: 1.0 to 1.5; 32 x 32: 0.8; larger: 0.4 to 0.5
# two cores with AVX-512 BF16, bfloat16: 32 x 32: 0.9; larger: 0.2 to 0.6
# H200, batch 16, both dtypes: 8 x 8: 1.3 to 2; 16 x 16: 0.9; larger: 0.3 to 0.6
MIN_TRANSPOSED_PIXELS: dict[str, int] = {"cpu": 32 * 32, "cuda": 16 * 16}


@dataclass(frozen=True)
class Execution:
    """How a network computes its blocks. The choices change results only by rounding.

    `upsampling`: the form of convolutions after upsampling. `auto` depends only on device and size, so that runs are
    reproducible. A number is the smallest number of input pixels for the transposed form.
    `recompute`: what backward recomputes instead of keeping it. "norms": norms, activations, concatenations and
    pooling, which are cheap. "blocks": whole blocks, which takes about as long as one more forward pass. Ignored under
    torch.compile.
    """

    upsampling: Literal["auto", "plain", "transposed"] | int = "auto"
    recompute: Recompute = "norms"

    @property
    def _recompute(self) -> Recompute:
        return "none" if torch.compiler.is_compiling() else self.recompute

    def conv(self, conv: Any, *parts: Tensor) -> Tensor:
        """conv(parts), with parts (N, C, H, W) concatenated along C."""
        return self._conv(conv, parts, "none")

    def upsampled_conv(self, conv: Any, *parts: Tensor) -> Tensor:
        """Padded 3 x 3 conv of parts (N, C, H, W), concatenated and upsampled by 2 (nearest), to (N, O, 2H, 2W)."""
        return self._conv(conv, parts, self.form(parts[0]))

    def norm_act_conv(self, features: Tensor, norm: Any, slope: float, conv: Any) -> Tensor:
        """conv(leaky_relu(norm(features))). A slope of 0 is ReLU; `norm` is a batch norm without activation."""
        if self._recompute != "none":
            return recomputation.norm_act_conv(features, norm, slope, conv)
        activated = functional.leaky_relu(recomputation.batch_norm(features, norm), slope, inplace=True)
        result: Tensor = conv(activated)
        return result

    def cheap(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """function(*inputs), for a function that is cheap to recompute."""
        is_recomputed = self._recompute != "none"
        return recomputation.recomputed_in_backward(function, *inputs) if is_recomputed else function(*inputs)

    def block(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """function(*inputs), for a block of a network."""
        is_recomputed = self._recompute == "blocks"
        return recomputation.recomputed_in_backward(function, *inputs) if is_recomputed else function(*inputs)

    def form(self, features: Tensor) -> Upsampling:
        """The form of an upsampled convolution of features (N, C, H, W)."""
        chosen = settled_upsampling(self.upsampling, features.device.type)
        if chosen == "plain" or chosen == "transposed":
            return chosen
        height, width = features.shape[-2:]
        return "transposed" if height * width >= chosen else "plain"

    def _conv(self, conv: Any, parts: tuple[Tensor, ...], upsampling: Upsampling) -> Tensor:
        if self._recompute != "none":
            return recomputation.cat_conv(parts, conv, upsampling)
        features = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return recomputation.conv_of(features, conv.weight, conv.bias, upsampling, conv.stride, conv.padding)


def settled_upsampling(
    setting: Literal["auto", "plain", "transposed"] | int, device_type: str
) -> Literal["plain", "transposed"] | int:
    """The setting, with `auto` replaced by its value for a device.

    Resume points keep this value, because a run may be resumed on another device.
    """
    return MIN_TRANSPOSED_PIXELS.get(device_type, "plain") if setting == "auto" else setting


class Block(nn.Module):
    """A module that computes as its `execution` specifies."""

    execution = Execution()


def choose_execution(model: nn.Module, execution: Execution) -> None:
    """Set the execution of every block of a network."""
    for module in model.modules():
        if isinstance(module, Block):
            module.execution = execution


class ConvRelu(Block):
    """3 x 3 convolution without bias, then ReLU: parts (N, C, H, W), concatenated, to (N, num_out, H, W)."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.block = nn.Conv2d(num_in, num_out, kernel_size=3, padding=1, bias=False)
        # Without batch norm, torch's default weights scale the signal by 0.4 per block (He et al., arXiv 1502.01852).
        nn.init.kaiming_normal_(self.block.weight, nonlinearity="relu")

    def forward(self, *parts: Tensor) -> Tensor:
        return functional.relu(self.execution.conv(self.block, *parts), inplace=True)


class DecoderBlock(Block):
    """Nearest upsampling by 2, then ConvRelu: parts (N, C, H, W), concatenated, to (N, num_out, 2H, 2W)."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.block = ConvRelu(num_in, num_out)

    def forward(self, *parts: Tensor) -> Tensor:
        return self.execution.block(self._forward, *parts)

    def _forward(self, *parts: Tensor) -> Tensor:
        return functional.relu(self.execution.upsampled_conv(self.block.block, *parts), inplace=True)


def check_size(image: Tensor, multiple: int, network: str) -> None:
    """Raises ValueError, with the size to pad to, if height or width of an image (N, C, H, W) is not a multiple."""
    height, width = image.shape[-2:]
    if height % multiple or width % multiple:
        fitting_height, fitting_width = (math.ceil(size / multiple) * multiple for size in (height, width))
        raise ValueError(
            f"{network} needs height and width in multiples of {multiple}, got {height} x {width}; "
            f"pad to {fitting_height} x {fitting_width}"
        )
