"""A perceptron: no convolution at all, the plainest network of the cross-architecture tables."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import NETWORKS, Backbone, Maps


class MLP(Backbone):
    """Two hidden layers with ReLU; their activations are its maps, `(B, width, 1, 1)`, and the second its embedding."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int, *, width: int):
        super().__init__()
        inputs = shape[0] * shape[1] * shape[2]
        self.blocks = nn.ModuleList([nn.Linear(inputs, width), nn.Linear(width, width)])
        self.feature_width = width
        self.classifier = nn.Linear(width, num_classes)

    def maps(self, x: Tensor) -> list[Maps]:
        x, found = x.flatten(1), []
        for block in self.blocks:
            x = torch.relu(block(x))
            found.append(Maps(x[:, :, None, None], x[:, :, None, None]))
        return found


@NETWORKS.register("mlp")
def mlp(shape: tuple[int, int, int], num_classes: int, *, width: int = 128) -> Backbone:
    """A perceptron of two hidden layers, 128 wide each (DC's MLP)."""
    return MLP(shape, num_classes, width=width)
