"""AlexNet for small images, as the condensation codes have it across architectures."""

from __future__ import annotations

from torch import nn

from .base import NETWORKS, Backbone
from .plain import Plain


@NETWORKS.register("alexnet")
def alexnet(shape: tuple[int, int, int], num_classes: int) -> Backbone:
    """AlexNet for small images: five convolutions of 128 to 256 channels, no norm, one linear layer."""
    first = nn.Conv2d(shape[0], 128, 5, padding=4 if shape[0] == 1 else 2)  # 28x28 grays as 32x32
    blocks = [
        nn.Sequential(first, nn.ReLU()),
        nn.Sequential(nn.Conv2d(128, 192, 5, padding=2), nn.ReLU()),
        nn.Sequential(
            nn.Conv2d(192, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 192, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(192, 192, 3, padding=1),
            nn.ReLU(),
        ),
    ]
    return Plain("alexnet", shape, num_classes, blocks)
