"""WideResNet-38's residual modules with activated batch norm (norm, leaky ReLU), the encoder of TernausNetV2.

Wu, Shen, van den Hengel, "Wider or Deeper", arXiv 1611.10080; activated batch norm as in Rota Bulò, Porzi,
Kontschieder, "In-Place Activated BatchNorm", arXiv 1712.02616. Parameter names are the reference implementation's.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from robosat_pink.models.blocks import Block
from robosat_pink.models.recomputation import batch_norm

SLOPE = 0.01  # the slope of leaky ReLU below 0


class BatchNorm(nn.Module):
    """Batch norm over (N, C, H, W). Like the reference, without num_batches_tracked."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, features: Tensor) -> Tensor:
        return batch_norm(features, self)


class IdentityResidualBlock(Block):
    """Activation first, then two 3 x 3 convolutions, then the sum: (N, num_in, H, W) to (N, num_out, H, W).

    If the widths differ, the shortcut is a 1 x 1 convolution of the activated input.
    """

    def __init__(self, num_in: int, num_middle: int, num_out: int) -> None:
        super().__init__()
        self.bn1 = BatchNorm(num_in)
        self.convs = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(num_in, num_middle, kernel_size=3, padding=1, bias=False),
                bn2=BatchNorm(num_middle),
                conv2=nn.Conv2d(num_middle, num_out, kernel_size=3, padding=1, bias=False),
            )
        )
        self.proj_conv = nn.Conv2d(num_in, num_out, kernel_size=1, bias=False) if num_in != num_out else None

    def forward(self, features: Tensor) -> Tensor:
        return self.execution.block(self._forward, features)

    def _forward(self, features: Tensor) -> Tensor:
        execution, convs = self.execution, self.convs
        if self.proj_conv is None:
            shortcut = features
            residual = execution.norm_act_conv(features, self.bn1, SLOPE, convs.conv1)
        else:
            activated = functional.leaky_relu(self.bn1(features), SLOPE, inplace=True)
            shortcut = execution.conv(self.proj_conv, activated)
            residual = execution.conv(convs.conv1, activated)
        return execution.norm_act_conv(residual, convs.bn2, SLOPE, convs.conv2) + shortcut


def residual_module(num_blocks: int, num_in: int, num_middle: int, num_out: int) -> nn.Sequential:
    """Residual blocks, named block1, block2, …; the first changes the width."""
    widths = [num_in] + [num_out] * (num_blocks - 1)
    return nn.Sequential(
        OrderedDict(
            (f"block{number}", IdentityResidualBlock(width, num_middle, num_out))
            for number, width in enumerate(widths, start=1)
        )
    )
