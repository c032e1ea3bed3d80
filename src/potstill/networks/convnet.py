"""ConvNet-D, the standard network of the field: D blocks (conv 3x3, norm, ReLU, pool), one linear layer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..machine import native, winograd
from ..machine import norm_relu_pool as kernel
from .base import NETWORKS, Backbone, Maps
from .norms import norm_layer

POOLS = {"average": F.avg_pool2d, "max": F.max_pool2d}


def norm_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Instance norm with an affine, ReLU and 2x2 average pool, `(B, C, H, W)` to `(B, C, H//2, W//2)`.

    Compiled, it is written out as mean, variance and a reshape: the compiler fuses all three into one pass over the
    map, where as separate kernels they cost more than the convolution. Compiled graphs on a CPU call a hand-written
    kernel instead, which computes the same. Statistics are at least fp32 whatever the map's precision.
    """
    if kernel.serves(x):
        return kernel.norm_relu_pool(x, weight, bias, eps)
    out_dtype = x.dtype
    x = torch.relu(instance_norm(x, weight, bias, eps))
    return (halved(x) if torch.compiler.is_compiling() else F.avg_pool2d(x, 2)).to(out_dtype)


def halved(x: Tensor) -> Tensor:
    """`avg_pool2d(x, 2)` as a mean, which the compiler can fuse and which takes three times as long without it."""
    batch, channels, height, width = x.shape
    x = x[:, :, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, channels, height // 2, 2, width // 2, 2).mean(dim=(3, 5))


def instance_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Every channel of every sample standardised over its map, then the affine; at least fp32, whatever the map is."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if not torch.compiler.is_compiling():
        return F.instance_norm(x, weight=weight, bias=bias, eps=eps)
    variance, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
    return (x - mean) * (torch.rsqrt(variance + eps) * weight[:, None, None]) + bias[:, None, None]


def convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """`conv(x)`; empty channels that `x` has beyond the weights' meet weights of zero."""
    empty = x.shape[1] - conv.in_channels
    weight = F.pad(conv.weight, (0, 0, 0, 0, 0, empty)) if empty else conv.weight
    if conv.bias is not None and winograd.serves(x, weight, conv.stride, conv.padding):
        return winograd.convolve(x, weight, conv.bias)
    return F.conv2d(x, weight, conv.bias, padding=conv.padding)  # type: ignore[arg-type]


class Block(nn.Module):
    """conv 3x3, norm, ReLU, pool 2x2."""

    def __init__(self, channels_in: int, width: int, norm: str = "instance", pool: str = "average"):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, width, kernel_size=3, padding=1)
        self.norm = None if norm == "instance" else norm_layer(norm, width)
        if self.norm is None:
            self.norm_weight = nn.Parameter(torch.ones(width))
            self.norm_bias = nn.Parameter(torch.zeros(width))
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is None and self.pool == "average":
            return norm_relu_pool(convolve(x, self.conv), self.norm_weight, self.norm_bias)
        return self.maps(x).after

    def maps(self, x: Tensor) -> Maps:
        """The activations that `forward` does not keep, and what it gives."""
        x = convolve(x, self.conv)
        normed = instance_norm(x, self.norm_weight, self.norm_bias).to(x.dtype) if self.norm is None else self.norm(x)
        before = torch.relu(normed)
        return Maps(before, POOLS[self.pool](before, 2))


class ConvNet(Backbone):
    """ConvNet-D of the condensation literature (DC, DSA, DM, IDC, DSDM).

    One-channel images of 28 pixels and more get padding 3 in the first convolution, as in the published codes: maps of
    28x28 digits are 32x32, and the embedding is 2048 wide at depth 3, as for colour 32x32 images; spectrograms of 64x64
    start at 68 and end at 4. Smaller images keep padding 1: the published codes cannot be built for them. The embedding
    is the last pooled map, flattened.

    Args:
        shape: (C, H, W) of the images.
        num_classes: K.
        width: channels of every block.
        depth: number of blocks; by default 3 at 28 and 32 pixels, 4 at 64, fewer for smaller images.
        norm: "instance", "batch" (couples the samples of a batch), "group" (4 groups) or "none".
        pool: "average" or "max", 2x2.
    Raises:
        UsageError: an unknown norm or pool, or so deep that a map of one pixel would have to be pooled.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        *,
        width: int = 128,
        depth: int | None = None,
        norm: str = "instance",
        pool: str = "average",
    ):
        super().__init__()
        if pool not in POOLS:
            raise UsageError(f"network pool={pool!r}: use one of {', '.join(POOLS)}")
        channels, height, width_px = shape
        # Padding 3 as a frame of 2 before padding 1: the CPU's convolution is nine times slower at padding 3.
        self.frame = 2 if channels == 1 and min(height, width_px) >= 28 else 0
        height, width_px = height + 2 * self.frame, width_px + 2 * self.frame
        depth = default_depth(min(height, width_px)) if depth is None else depth
        _check_depth(depth, min(height, width_px))
        self.blocks = nn.ModuleList(Block(channels if i == 0 else width, width, norm, pool) for i in range(depth))
        self.couples_batch = self.couples_batch or norm == "batch"
        self.feature_width = width * (height >> depth) * (width_px >> depth)
        self.classifier = nn.Linear(self.feature_width, num_classes)

    def maps(self, x: Tensor) -> list[Maps]:
        found, x = [], self._arranged(x)
        for block in self.blocks:
            assert isinstance(block, Block)
            found.append(block.maps(x))
            x = found[-1].after
        return found

    def embed(self, x: Tensor) -> Tensor:
        x = self._arranged(x)
        for block in self.blocks:
            x = block(x)
        return x.flatten(1)

    def _arranged(self, x: Tensor) -> Tensor:
        return native.arranged(F.pad(x, (self.frame,) * 4))


def default_depth(side: int) -> int:
    """Blocks for an image side: pooled down to 2 pixels below side 32, to 4 pixels from there on."""
    return max(1, int(math.log2(side / (4 if side >= 32 else 2))))


def _check_depth(depth: int, side: int) -> None:
    deepest = int(math.log2(side))
    if not 1 <= depth <= deepest:
        raise UsageError(
            f"network depth={depth} at image side {side}: valid are 1..{deepest} "
            f"(a one-pixel map cannot be instance-normalised); use depth {default_depth(side)} or larger images"
        )


@NETWORKS.register("convnet")
def convnet(
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: int = 128,
    depth: int | None = None,
    norm: str = "instance",
    pool: str = "average",
) -> Backbone:
    """ConvNet at the depth that suits the image side, width 128, instance norm, average pool."""
    return ConvNet(shape, num_classes, width=width, depth=depth, norm=norm, pool=pool)


@NETWORKS.register("convnet3")
def convnet3(shape: tuple[int, int, int], num_classes: int) -> Backbone:
    """ConvNet-3: width 128, three blocks (the paper's network for images)."""
    return ConvNet(shape, num_classes, depth=3)


@NETWORKS.register("convnet4")
def convnet4(shape: tuple[int, int, int], num_classes: int) -> Backbone:
    """ConvNet-4: width 128, four blocks (the paper's network for speech spectrograms)."""
    return ConvNet(shape, num_classes, depth=4)
