"""VGG-11 (Simonyan and Zisserman, 2015) for small images, one linear layer, as the condensation codes have it."""

from __future__ import annotations

from torch import nn

from .base import NETWORKS, Backbone
from .norms import norm_layer
from .plain import Plain

#: Channels of each block's convolutions.
BLOCKS = ((64,), (128,), (256, 256), (512, 512), (512, 512))


@NETWORKS.register("vgg11")
def vgg11(shape: tuple[int, int, int], num_classes: int, *, norm: str = "instance") -> Backbone:
    """VGG-11: eight convolutions 3x3 of 64 to 512 channels; norm is instance (as in DC), batch, group or none."""
    channels, blocks = shape[0], []
    for widths in BLOCKS:
        layers: list[nn.Module] = []
        for width in widths:
            # 28x28 grays as 32x32.
            conv = nn.Conv2d(channels, width, 3, padding=3 if shape[0] == 1 and not blocks and not layers else 1)
            layers += [conv, norm_layer(norm, width), nn.ReLU()]
            channels = width
        blocks.append(nn.Sequential(*layers))
    network = Plain("vgg11", shape, num_classes, blocks)
    network.couples_batch = norm == "batch"
    return network
