"""LeNet-5 (LeCun et al., 1998) with ReLU and max pools, as the condensation codes have it."""

from __future__ import annotations

from torch import nn

from .base import NETWORKS, Backbone
from .plain import Plain


@NETWORKS.register("lenet")
def lenet(shape: tuple[int, int, int], num_classes: int) -> Backbone:
    """LeNet-5: two convolutions 5x5 of 6 and 16 channels, linear layers of 120 and 84."""
    first = nn.Conv2d(shape[0], 6, 5, padding=2 if shape[0] == 1 else 0)  # 28x28 grays as 32x32
    blocks = [nn.Sequential(first, nn.ReLU()), nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU())]
    return Plain("lenet", shape, num_classes, blocks, hidden=(120, 84))
