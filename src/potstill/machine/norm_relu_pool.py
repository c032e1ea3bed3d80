"""Instance norm, ReLU and 2x2 average pool by the hand-written kernel: no compiler fuses them well on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from .native import channels_last, group, library, pointers, sizes, usable

PRECISIONS = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def serves(x: Tensor) -> bool:
    """Whether the kernel takes a map `(B, C, H, W)`: in a compiled CPU graph, even sides, channels in whole groups."""
    _, channels, height, width = x.shape
    return usable(x) and x.dtype in PRECISIONS and channels % group() == 0 and height % 2 == 0 and width % 2 == 0


def norm_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The kernel's `(B, C, H // 2, W // 2)` of a map that it `serves`; differentiable once."""
    return _forward(x, weight, bias, eps)[0]


@torch.library.custom_op("potstill::norm_relu_pool", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    (x,), weight, bias = channels_last(x), weight.contiguous(), bias.contiguous()
    results = _empty_results(x)
    kernel = getattr(library(), f"norm_relu_pool_{PRECISIONS[x.dtype]}")
    kernel(*pointers(x, weight, bias, *results), *sizes(x), eps)
    return results


@torch.library.custom_op("potstill::norm_relu_pool_backward", mutates_args=())
def _backward(
    x: Tensor, gradient: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    (x, gradient), weight, bias = channels_last(x, gradient), weight.contiguous(), bias.contiguous()
    results = torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean)
    kernel = getattr(library(), f"norm_relu_pool_backward_{PRECISIONS[x.dtype]}")
    kernel(*pointers(x, gradient, weight, bias, mean, scale, *results), *sizes(x))
    return results


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_results(x)


@_backward.register_fake
def _(
    x: Tensor, gradient: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    to_map = torch.empty_like(x, memory_format=torch.channels_last)
    return to_map, torch.empty_like(mean), torch.empty_like(mean)


def _keep(ctx, inputs, output) -> None:
    x, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight, bias, output[1], output[2])


def _differentiate(ctx, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    x, *rest = ctx.saved_tensors
    to_map, to_weight, to_bias = _backward(x, gradient, *rest)
    return to_map, to_weight.sum(0), to_bias.sum(0), None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _empty_results(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = x.shape
    pooled = torch.empty(
        batch, channels, height // 2, width // 2, dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    mean = torch.empty(batch, channels, device=x.device)
    return pooled, mean, torch.empty_like(mean)
