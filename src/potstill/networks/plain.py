"""Convolutions, ReLU and pools in a row, then linear layers: the frame of LeNet, AlexNet and VGG."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .base import Backbone, Maps


class Plain(Backbone):
    """Blocks of layers with a max pool 2x2 after each, linear layers with ReLU, and the classifier.

    Args:
        name: for the message.
        blocks: without their pools.
        hidden: widths of the linear layers before the classifier; the embedding is the last, or the map.
    Raises:
        UsageError: images so small that a pool or a convolution has nothing left.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, int, int],
        num_classes: int,
        blocks: list[nn.Sequential],
        hidden: tuple[int, ...] = (),
    ):
        super().__init__()
        self.blocks, self.pool = nn.ModuleList(blocks), nn.MaxPool2d(2)
        width = self._map_width(name, shape)
        layers: list[nn.Module] = []
        for wide in hidden:
            layers += [nn.Linear(width, wide), nn.ReLU()]
            width = wide
        self.hidden = nn.Sequential(*layers)
        self.feature_width = width
        self.classifier = nn.Linear(width, num_classes)

    def maps(self, x: Tensor) -> list[Maps]:
        found = []
        for block in self.blocks:
            before = block(x)
            x = self.pool(before)
            found.append(Maps(before, x))
        return found

    def embed_map(self, last: Tensor) -> Tensor:
        return self.hidden(last.flatten(1))

    def _map_width(self, name: str, shape: tuple[int, int, int]) -> int:
        try:
            with torch.no_grad():
                return self.maps(torch.zeros(1, *shape))[-1].after.numel()
        except (RuntimeError, ValueError):
            size = f"{shape[1]}x{shape[2]}"
            raise UsageError(
                f"network {name} at {size}: images are too small for its pools; use convnet or mlp"
            ) from None
