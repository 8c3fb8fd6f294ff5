"""AlbuNet: a U-Net whose encoder is a ResNet.

Shvets, Iglovikov, Rakhlin, Kalinin, "Angiodysplasia Detection and Localization Using Deep Convolutional Neural
Networks", arXiv 1804.08024. Parameter names are those of robosat.pink's implementation, so that its checkpoints load.
"""

from typing import Any

import torchvision
from torch import Tensor, nn
from torch.nn import functional

from robosat_pink.models.blocks import Block, ConvRelu, DecoderBlock, check_size
from robosat_pink.models.recomputation import batch_norm


class AlbuNet(Block):
    """Maps images (N, num_channels, H, W) float, H and W multiples of 64, to logits (N, num_classes, H, W).

    The finest skip connection is at 1/4 of the resolution.
    """

    size_multiple = 64

    def __init__(self, num_classes: int, num_channels: int, encoder: str = "resnet50", num_filters: int = 32) -> None:
        super().__init__()
        self.resnet = torchvision.models.get_model(encoder, weights=None)
        del self.resnet.fc  # unused, and DistributedDataParallel fails on parameters without a gradient
        self.resnet.conv1 = nn.Conv2d(num_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.resnet.conv1.weight, mode="fan_out", nonlinearity="relu")

        expansion = self.resnet.layer1[0].expansion  # 1 for basic blocks, 4 for bottlenecks
        enc1, enc2, enc3, enc4 = (width * expansion for width in (64, 128, 256, 512))
        self.center = DecoderBlock(enc4, num_filters * 8)
        self.dec0 = DecoderBlock(enc4 + num_filters * 8, num_filters * 8)
        self.dec1 = DecoderBlock(enc3 + num_filters * 8, num_filters * 8)
        self.dec2 = DecoderBlock(enc2 + num_filters * 8, num_filters * 2)
        self.dec3 = DecoderBlock(enc1 + num_filters * 2, num_filters * 4)
        self.dec4 = DecoderBlock(num_filters * 4, num_filters)
        self.dec5 = ConvRelu(num_filters, num_filters)
        self.final = nn.Conv2d(num_filters, num_classes, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        check_size(image, self.size_multiple, "AlbuNet")
        execution, resnet = self.execution, self.resnet
        stem = execution.cheap(self._stem_end, execution.conv(resnet.conv1, image))  # 1/4
        enc1 = self._layer(resnet.layer1, stem)  # 1/4
        enc2 = self._layer(resnet.layer2, enc1)  # 1/8
        enc3 = self._layer(resnet.layer3, enc2)  # 1/16
        enc4 = self._layer(resnet.layer4, enc3)  # 1/32
        center = self.center(functional.max_pool2d(enc4, kernel_size=2))  # 1/32
        dec0 = self.dec0(enc4, center)  # 1/16
        dec1 = self.dec1(enc3, dec0)  # 1/8
        dec2 = self.dec2(enc2, dec1)  # 1/4
        dec3 = self.dec3(enc1, dec2)  # 1/2
        return execution.conv(self.final, self.dec5(self.dec4(dec3)))

    def _stem_end(self, features: Tensor) -> Tensor:
        pooled: Tensor = self.resnet.maxpool(functional.relu(batch_norm(features, self.resnet.bn1), inplace=True))
        return pooled

    def _layer(self, layer: Any, features: Tensor) -> Tensor:
        for block in layer:
            features = self.execution.block(self._residual, block, features)
        return features

    def _residual(self, block: Any, features: Tensor) -> Tensor:
        """The forward pass of torchvision's bottleneck (three convolutions) or basic block (two)."""
        execution = self.execution
        residual = execution.conv(block.conv1, features)
        residual = execution.norm_act_conv(residual, block.bn1, 0.0, block.conv2)
        last = block.bn2
        if hasattr(block, "conv3"):
            residual, last = execution.norm_act_conv(residual, block.bn2, 0.0, block.conv3), block.bn3
        shortcut = features
        if block.downsample is not None:
            conv, norm = block.downsample
            shortcut = batch_norm(execution.conv(conv, features), norm)
        return functional.relu(batch_norm(residual, last).add_(shortcut), inplace=True)
