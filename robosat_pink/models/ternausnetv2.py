"""TernausNetV2: a U-Net whose encoder is a WideResNet-38, with skip connections from the full resolution down.

Iglovikov, Seferbekov, Buslaev, Shvets, "TernausNetV2: Fully Convolutional Network for Instance Segmentation", arXiv
1806.00844. Parameter names are those of the reference implementation, so that published weights load.
"""

from collections import OrderedDict
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from robosat_pink.models.blocks import Block, check_size
from robosat_pink.models.wider_resnet import residual_module


class TernausNetV2(Block):
    """Maps images (N, num_channels, H, W) float, H and W multiples of 32, to logits (N, num_classes, H, W).

    With `is_deconv` the decoder upsamples by transposed convolutions, otherwise by repeating pixels.
    """

    size_multiple = 32

    def __init__(
        self,
        num_classes: int,
        num_channels: int,
        encoder: str = "wideresnet38",
        num_filters: int = 32,
        is_deconv: bool = False,
    ) -> None:
        super().__init__()
        assert encoder == "wideresnet38"
        self.conv1 = nn.Sequential(OrderedDict(conv1=nn.Conv2d(num_channels, 64, kernel_size=3, padding=1, bias=False)))
        self.conv2 = residual_module(3, 64, 128, 128)
        self.conv3 = residual_module(3, 128, 256, 256)
        self.conv4 = residual_module(6, 256, 512, 512)
        self.conv5 = residual_module(3, 512, 512, 1024)
        block = DeconvDecoderBlock if is_deconv else UpsampleDecoderBlock
        self.center = block(1024, num_filters * 8, num_filters * 8)
        self.dec5 = block(1024 + num_filters * 8, num_filters * 8, num_filters * 8)
        self.dec4 = block(512 + num_filters * 8, num_filters * 8, num_filters * 8)
        self.dec3 = block(256 + num_filters * 8, num_filters * 2, num_filters * 2)
        self.dec2 = block(128 + num_filters * 2, num_filters * 2, num_filters)
        self.dec1 = ConvRelu(64 + num_filters, num_filters)
        self.final = nn.Conv2d(num_filters, num_classes, kernel_size=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module is not self.final:
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        check_size(image, self.size_multiple, "TernausNetV2")
        execution = self.execution
        conv1 = execution.conv(self.conv1.conv1, image)  # 1/1
        conv2 = self.conv2(self._halve(conv1))  # 1/2
        conv3 = self.conv3(self._halve(conv2))  # 1/4
        conv4 = self.conv4(self._halve(conv3))  # 1/8
        conv5 = self.conv5(self._halve(conv4))  # 1/16
        center = self.center(self._halve(conv5))  # 1/16
        dec5 = self.dec5(center, conv5)  # 1/8
        dec4 = self.dec4(dec5, conv4)  # 1/4
        dec3 = self.dec3(dec4, conv3)  # 1/2
        dec2 = self.dec2(dec3, conv2)  # 1/1
        return execution.conv(self.final, self.dec1(dec2, conv1))

    def _halve(self, features: Tensor) -> Tensor:
        return self.execution.cheap(partial(functional.max_pool2d, kernel_size=2), features)


class ConvRelu(Block):
    """3 x 3 convolution with bias, then ReLU: parts (N, C, H, W), concatenated, to (N, num_out, H, W)."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_in, num_out, kernel_size=3, padding=1)

    def forward(self, *parts: Tensor) -> Tensor:
        return functional.relu(self.execution.conv(self.conv, *parts), inplace=True)


class UpsampleDecoderBlock(Block):
    """Nearest upsampling by 2, then two ConvRelu: parts (N, C, H, W), concatenated, to (N, num_out, 2H, 2W)."""

    def __init__(self, num_in: int, num_middle: int, num_out: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"),
            ConvRelu(num_in, num_middle),
            ConvRelu(num_middle, num_out),
        )

    def forward(self, *parts: Tensor) -> Tensor:
        return self.execution.block(self._forward, *parts)

    def _forward(self, *parts: Tensor) -> Tensor:
        _, first, second = self.block
        refined: Tensor = second(functional.relu(self.execution.upsampled_conv(first.conv, *parts), inplace=True))
        return refined


class DeconvDecoderBlock(Block):
    """ConvRelu, then a transposed convolution of stride 2 with ReLU.

    Maps parts (N, C, H, W), concatenated, to (N, num_out, 2H, 2W).
    """

    def __init__(self, num_in: int, num_middle: int, num_out: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            ConvRelu(num_in, num_middle),
            nn.ConvTranspose2d(num_middle, num_out, kernel_size=4, stride=2, padding=1),
            nn.ReLU(inplace=True),
        )

    def forward(self, *parts: Tensor) -> Tensor:
        return self.execution.block(self._forward, *parts)

    def _forward(self, *parts: Tensor) -> Tensor:
        first, deconv, relu = self.block
        upsampled: Tensor = relu(deconv(first(*parts)))
        return upsampled
