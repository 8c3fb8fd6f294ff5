"""Pieces that several decoders share."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConvRelu(nn.Module):
    """3 x 3 convolution without bias, then ReLU: (N, C, H, W) to (N, num_out, H, W)."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.block = nn.Conv2d(num_in, num_out, kernel_size=3, padding=1, bias=False)
        # Without batch norm torch's default would shrink the signal to 0.4 of itself in every block (He et al. 2015).
        nn.init.kaiming_normal_(self.block.weight, nonlinearity="relu")

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(self.block(features), inplace=True)


Form = Literal["auto", "plain", "transposed"]


class UpsamplingBlock(nn.Module):
    """A block that begins with nearest upsampling by 2 and a 3 x 3 convolution, in either form of `upsampled_conv`."""

    form: Form = "auto"


def choose_form(model: nn.Module, form: Form) -> None:
    """The form of every upsampling block of a network."""
    for module in model.modules():
        if isinstance(module, UpsamplingBlock):
            module.form = form


class DecoderBlock(UpsamplingBlock):
    """Nearest upsampling by 2, then ConvRelu: (N, C, H, W) to (N, num_out, 2H, 2W)."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.block = ConvRelu(num_in, num_out)

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(upsampled_conv(features, self.block.block.weight, None, self.form), inplace=True)


# Input pixels of a tile from which on the transposed form is the faster one, by device: on two cores with AVX-512 BF16,
# forward and backward, it took 0.8 of the time at 32 x 32 and 0.4 to 0.5 above in float32, 0.9 and 0.2 to 0.6 in
# bfloat16, and at 16 x 16 1.4 to 1.5 times (tests/benchmarks/step.py --blocks). Not measured on a GPU, nor used there.
TRANSPOSED_FROM = {"cpu": 32 * 32}


def upsampled_conv(features: Tensor, weight: Tensor, bias: Tensor | None, form: Form = "auto") -> Tensor:
    """3 x 3 convolution, padded, of features (N, C, H, W) upsampled by 2 to the nearest: (N, num_out, 2H, 2W).

    Each output pixel sees 2 x 2 input pixels, some of them more than once. The transposed form adds up the weights of
    those beforehand: 4 products instead of 9, and no upsampled tensor, in memory or kept for backward. The forms
    differ in the last bits; `auto` takes one by device and size alone, so that runs repeat.
    """
    if form == "auto":
        least = TRANSPOSED_FROM.get(features.device.type)
        height, width = features.shape[-2:]
        form = "plain" if least is None or height * width < least else "transposed"
    if form == "plain":
        upsampled = functional.interpolate(features, scale_factor=2, mode="nearest")
        return functional.conv2d(upsampled, weight, bias, padding=1)
    kernel = _boxed(_boxed(weight, 2), 3).transpose(0, 1)
    return functional.conv_transpose2d(features, kernel, bias, stride=2, padding=1)


def _boxed(weight: Tensor, axis: int) -> Tensor:
    """A kernel of 3 along an axis, turned round and convolved with a box of 2: a kernel of 4."""
    first, middle, last = weight.unbind(axis)
    return torch.stack([last, middle + last, first + middle, first], axis)


def check_size(image: Tensor, multiple: int, network: str) -> None:
    """ValueError with the size to pad to, where height or width is not a multiple."""
    height, width = image.shape[-2:]
    if height % multiple or width % multiple:
        raise ValueError(
            f"{network} needs height and width in multiples of {multiple}, got {height} x {width}; "
            f"pad to {-(-height // multiple) * multiple} x {-(-width // multiple) * multiple}"
        )
