"""ResNet-10 for small images, as the condensation codes use it across architectures: four stages of one basic block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import NETWORKS, Backbone


class BasicBlock(nn.Module):
    """conv 3x3, BN, ReLU, conv 3x3, BN, plus the input (through a strided 1x1 conv where the shape changes), ReLU."""

    def __init__(self, channels_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        changes = stride != 1 or channels_in != width
        self.shortcut = (
            nn.Sequential(nn.Conv2d(channels_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            if changes
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(Backbone):
    """A residual network with a 3x3 stem (He et al., 2016; the CIFAR stem), one block per stage, strides 1, 2, 2, 2.

    The embedding is the global average of the last map, `widths[-1]` wide. Batch norm couples the samples of a batch.
    Convolutions start He-normal (fan out).
    """

    couples_batch = True

    def __init__(self, shape: tuple[int, int, int], num_classes: int, *, widths: tuple[int, ...] = (32, 64, 128, 256)):
        super().__init__()
        self.stem = nn.Conv2d(shape[0], widths[0], 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        inputs = (widths[0], *widths[:-1])
        self.blocks = nn.ModuleList(
            BasicBlock(c_in, width, stride=1 if i == 0 else 2)
            for i, (c_in, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.feature_width = widths[-1]
        self.classifier = nn.Linear(self.feature_width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self, x: Tensor) -> list[Tensor]:
        x, maps = torch.relu(self.stem_norm(self.stem(x))), []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps

    def embed(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.stages(x)[-1], 1).flatten(1)


@NETWORKS.register("resnet10")
def resnet10(shape: tuple[int, int, int], num_classes: int) -> Backbone:
    """ResNet-10: widths 32-64-128-256, batch norm (the paper's second architecture, from the authors' code)."""
    return ResNet(shape, num_classes)
