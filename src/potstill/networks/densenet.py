"""DenseNet-121 for small images (Huang et al., 2017, with a 3x3 stem), and the one the condensation codes call so."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import NETWORKS, Backbone, Maps

#: Layers of the four blocks of DenseNet-121.
LAYERS = (6, 12, 24, 16)


class Layer(nn.Module):
    """BN, ReLU, conv 1x1 to four times the growth, BN, ReLU, conv 3x3; what it makes is put beside its input."""

    def __init__(self, channels: int, growth: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv2(torch.relu(self.norm2(self.conv1(torch.relu(self.norm1(x))))))
        return torch.cat([made, x], dim=1)


class Transition(nn.Module):
    """BN, ReLU, conv 1x1 to half the channels; the average pool after it belongs to the block's map."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(self.norm(x)))


class DenseNet(Backbone):
    """Four dense blocks; between them channels are halved and the map is pooled.

    A block's map before pooling is what its transition makes; the last block has neither. The embedding is the global
    average after a last BN and ReLU.

    Args:
        growth: channels that each layer adds; the stem makes twice as many.
    """

    couples_batch = True

    def __init__(self, shape: tuple[int, int, int], num_classes: int, *, growth: int):
        super().__init__()
        channels = 2 * growth
        self.stem = nn.Conv2d(shape[0], channels, 3, padding=1, bias=False)
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        for i, count in enumerate(LAYERS):
            self.blocks.append(nn.Sequential(*(Layer(channels + j * growth, growth) for j in range(count))))
            channels += count * growth
            if i < len(LAYERS) - 1:
                self.transitions.append(Transition(channels))
                channels //= 2
        self.norm = nn.BatchNorm2d(channels)
        self.feature_width = channels
        self.classifier = nn.Linear(channels, num_classes)

    def maps(self, x: Tensor) -> list[Maps]:
        x, found = self.stem(x), []
        for block, transition in zip(self.blocks, self.transitions, strict=False):
            before = transition(block(x))
            x = F.avg_pool2d(before, 2)
            found.append(Maps(before, x))
        last = torch.relu(self.norm(self.blocks[-1](x)))
        return [*found, Maps(last, last)]

    def embed_map(self, last: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(last, 1).flatten(1)


@NETWORKS.register("densenet121")
def densenet121(shape: tuple[int, int, int], num_classes: int, *, growth: int = 32) -> Backbone:
    """DenseNet-121 with a 3x3 stem: growth 32, seven million parameters."""
    return DenseNet(shape, num_classes, growth=growth)


@NETWORKS.register("densenet121_k12")
def densenet121_k12(shape: tuple[int, int, int], num_classes: int) -> Backbone:
    """DenseNet-121 at growth 12, one million parameters: what the authors' code runs under that name."""
    return DenseNet(shape, num_classes, growth=12)
