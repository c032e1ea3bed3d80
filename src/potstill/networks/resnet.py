"""Residual networks for small images, as the condensation codes use them across architectures: four stages."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import NETWORKS, Backbone, Maps, chain


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
    """A residual network with a 3x3 stem (He et al., 2016; the CIFAR stem), four stages, strides 1, 2, 2, 2.

    Its maps are those of the stages; the embedding is the global average of the last, 8 `width` wide. Batch norm
    couples the samples of a batch. Convolutions start He-normal (fan out).

    Args:
        width: channels of the first stage; each further stage has twice as many.
        depth: basic blocks of each stage.
    """

    couples_batch = True

    def __init__(self, shape: tuple[int, int, int], num_classes: int, *, width: int = 32, depth: int = 1):
        super().__init__()
        self.depth = depth
        self.stem = nn.Conv2d(shape[0], width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.blocks, channels = nn.ModuleList(), width
        for stage in range(4):
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                self.blocks.append(BasicBlock(channels, width * 2**stage, stride))
                channels = width * 2**stage
        self.feature_width = channels
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def maps(self, x: Tensor) -> list[Maps]:
        return chain(self.blocks, torch.relu(self.stem_norm(self.stem(x))))[self.depth - 1 :: self.depth]

    def embed_map(self, last: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(last, 1).flatten(1)


@NETWORKS.register("resnet10")
def resnet10(shape: tuple[int, int, int], num_classes: int, *, width: int = 32) -> Backbone:
    """ResNet-10: batch norm, widths 32 to 256 (the paper's, from the authors' code); they use width=64 off CIFAR."""
    return ResNet(shape, num_classes, width=width)


@NETWORKS.register("resnet18")
def resnet18(shape: tuple[int, int, int], num_classes: int, *, width: int = 64) -> Backbone:
    """ResNet-18 with a 3x3 stem: batch norm, two blocks a stage, widths 64 to 512."""
    return ResNet(shape, num_classes, width=width, depth=2)
