"""A 3x3 convolution by Winograd's minimal filtering F(4x4, 3x3): a quarter of the products, for fp32 maps on a CPU.

Lavin & Gray, "Fast algorithms for convolutional neural networks" (CVPR 2016). A tile of 6 x 6 pixels and a filter are
taken by fixed small matrices B and G to 36 numbers each, multiplied number by number and summed over channels, which is
36 matrix products, and taken by A to the 4 x 4 pixels that the convolution has there:

    Y = A^T [ sum_c (G g G^T) * (B^T d B) ] A

The same three matrices, transposed, give the gradients. bf16 is too coarse for it, and has units of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .native import channels_last, library, pointers, sizes, usable

TILE, PLANES = 4, 36  #: Pixels of a tile's side that one product gives, and numbers that stand for it on the way.
LANES = 16  #: Channels come in whole vectors of the kernel, of 8 or 16.
#: Limits by reckoning, not measured: thinner products, and tiles that hang further over the map's edge, gain less.
FEWEST_CHANNELS, MOST_OVERHANG = 64, 1.5
#: Tiles that are worked on at a time: what stands for them stays in the caches (1.2 MB twice at 128 channels).
BLOCK = 64

_G = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_FILTERS = torch.kron(_G, _G)  # (36, 9): what both sides of G g G^T make of the nine numbers of g


def serves(x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...] | str) -> bool:
    """Whether this convolution of `x` `(B, C, H, W)` is faster so: 3x3, fp32 in a compiled CPU graph, many channels."""
    if not usable(x) or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    if tuple(weight.shape[2:]) != (3, 3) or tuple(stride) != (1, 1) or padding not in ((1, 1), "same"):
        return False
    thin = any(channels < FEWEST_CHANNELS or channels % LANES for channels in weight.shape[:2])
    height, width = x.shape[2:]
    return not thin and _tiles(height) * _tiles(width) * TILE**2 <= MOST_OVERHANG * height * width


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`conv2d(x, weight, bias, padding=1)` of a map that is `served`; differentiable once."""
    return _forward(x, weight, bias)


@torch.library.custom_op("potstill::winograd", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    (x,), bias = channels_last(x), bias.contiguous()
    out = _empty(x, weight)
    filters = (_FILTERS @ weight.flatten(2).flatten(0, 1).T).view(PLANES, *weight.shape[:2]).transpose(1, 2)
    for (images, results), (taken, given) in _blocks(x, out):
        library().winograd_from_map(*pointers(images, taken), *sizes(images))
        torch.bmm(taken, filters, out=given)
        library().winograd_to_map(*pointers(given, results, bias), *sizes(results))
    return out


@torch.library.custom_op("potstill::winograd_to_weight", mutates_args=())
def _to_weight(x: Tensor, gradient: Tensor) -> Tensor:
    x, gradient = channels_last(x, gradient)
    filters = x.new_zeros(PLANES, gradient.shape[1], x.shape[1])
    for (images, slopes), (taken, given) in _blocks(x, gradient):
        library().winograd_from_map(*pointers(images, taken), *sizes(images))
        library().winograd_from_gradient(*pointers(slopes, given), *sizes(slopes))
        torch.baddbmm(filters, given.transpose(1, 2), taken, out=filters)
    return (_FILTERS.T @ filters.flatten(1)).T.contiguous().view(*filters.shape[1:], 3, 3)


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _empty(x, weight)


@_to_weight.register_fake
def _(x: Tensor, gradient: Tensor) -> Tensor:
    return x.new_empty(gradient.shape[1], x.shape[1], 3, 3)


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:2])


def _differentiate(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    turned = weight.flip(2, 3).transpose(0, 1)
    return (
        _forward(gradient, turned, weight.new_zeros(len(turned))) if wanted[0] else None,
        _to_weight(x, gradient) if wanted[1] else None,
        gradient.sum((0, 2, 3)) if wanted[2] else None,
    )


_forward.register_autograd(_differentiate, setup_context=_keep)


def _blocks(*maps: Tensor) -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Some images of each map at a time, with room for what stands for their tiles: `(36, tiles, channels)` each."""
    height, width = maps[0].shape[2:]
    per_image = _tiles(height) * _tiles(width)
    images = max(1, BLOCK // per_image)
    room = [x.new_empty(PLANES * images * per_image * x.shape[1]) for x in maps]
    for pieces in zip(*(x.split(images) for x in maps), strict=True):
        shapes = [(PLANES, len(pieces[0]) * per_image, x.shape[1]) for x in maps]
        yield pieces, tuple(given[: math.prod(shape)].view(shape) for given, shape in zip(room, shapes, strict=True))


def _tiles(side: int) -> int:
    return -(-side // TILE)


def _empty(x: Tensor, weight: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    return torch.empty(
        batch, len(weight), height, width, dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
