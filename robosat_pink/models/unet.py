"""A plain U-Net: small, with skip connections from the full resolution down, and batch norm after each convolution.

Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", arXiv 1505.04597, with
padded convolutions, and with batch norm (Ioffe, Szegedy, arXiv 1502.03167).
"""

from __future__ import annotations

import itertools
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from robosat_pink.models.blocks import Block, check_size
from robosat_pink.models.recomputation import batch_norm

LEVELS = 5
MAX_FILTERS = 512
PIXEL_FILTERS = 32


class UNet(Block):
    """Maps images (N, num_channels, H, W) float, H and W multiples of 16, to logits (N, num_classes, H, W).

    There are `num_filters` filters at full resolution, twice as many at each lower one, up to MAX_FILTERS. The logits
    are the sum of the U-Net's and of those that each pixel gets from its own bands alone.
    """

    size_multiple = 2 ** (LEVELS - 1)

    def __init__(self, num_classes: int, num_channels: int, encoder: str = "none", num_filters: int = 16) -> None:
        super().__init__()
        assert encoder == "none"
        widths = [min(num_filters * 2**level, max(num_filters, MAX_FILTERS)) for level in range(LEVELS)]
        inputs = [num_channels, *widths[:-1]]
        self.down = nn.ModuleList(DoubleConv(num_in, width) for num_in, width in zip(inputs, widths, strict=True))
        self.up = nn.ModuleList(UpBlock(below, width) for width, below in itertools.pairwise(widths))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        self.final = nn.Conv2d(widths[0], num_classes, kernel_size=1)
        self.pixel = PixelPath(num_channels, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        check_size(image, self.size_multiple, "U-Net")
        skips = [self.down[0](image)]  # 1/1, then 1/2 to 1/16
        for block in self.down[1:]:
            skips.append(block(self.execution.cheap(partial(functional.max_pool2d, kernel_size=2), skips[-1])))
        features = skips.pop()
        for block in reversed(self.up):
            features = block(features, skips.pop())
        return self.execution.conv(self.final, features) + self.pixel(image)


class DoubleConv(Block):
    """Twice 3 x 3 convolution, batch norm and ReLU: parts (N, C, H, W), concatenated, to (N, num_out, H, W)."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, kernel_size=3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(num_out)

    def forward(self, *parts: Tensor) -> Tensor:
        return self.execution.block(self._forward, *parts)

    def _forward(self, *parts: Tensor) -> Tensor:
        features = self.execution.conv(self.conv1, *parts)
        features = self.execution.norm_act_conv(features, self.norm1, 0.0, self.conv2)
        return functional.relu(batch_norm(features, self.norm2), inplace=True)


class PixelPath(Block):
    """Three 1 x 1 convolutions: pixels (N, num_in, H, W) to logits (N, num_out, H, W), whatever lies around them.

    The absolute reflectance of a pixel tells much, and batch norm hides it. `training/pixel_start.py` fits these
    weights before training; docs/accuracy.md has what this is worth.
    """

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(num_in, PIXEL_FILTERS, kernel_size=1)
        self.conv_hidden = nn.Conv2d(PIXEL_FILTERS, PIXEL_FILTERS, kernel_size=1)
        self.conv_out = nn.Conv2d(PIXEL_FILTERS, num_out, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.execution.cheap(self._forward, image)

    def _forward(self, image: Tensor) -> Tensor:
        features = functional.relu(self.conv_in(image), inplace=True)
        features = functional.relu(self.conv_hidden(features), inplace=True)
        logits: Tensor = self.conv_out(features)
        return logits


class UpBlock(Block):
    """Upsamples features (N, num_below, H, W), and joins them to a skip connection (N, num_out, 2H, 2W)."""

    def __init__(self, num_below: int, num_out: int) -> None:
        super().__init__()
        self.upsampled_conv = nn.Conv2d(num_below, num_out, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(num_out)
        self.double_conv = DoubleConv(2 * num_out, num_out)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        upsampled = self.execution.block(self._upsample, features)
        joined: Tensor = self.double_conv(skip, upsampled)
        return joined

    def _upsample(self, features: Tensor) -> Tensor:
        upsampled = self.execution.upsampled_conv(self.upsampled_conv, features)
        return functional.relu(batch_norm(upsampled, self.norm), inplace=True)
