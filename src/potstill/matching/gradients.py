"""Gradients as what is matched: distances of DC, DSA and IDC, and their way back to the samples.

Gradient matching wants the derivative of D(g_real, g_synthetic) to the synthetic samples, where g = dL/dw is itself a
derivative. Double backward does that, but cannot be compiled. So D is a plain function of the two gradients, and with
v = dD/dg_synthetic the rest is a mixed derivative of the training loss L, the gradient to x of <dL/dw, v>: the
directional derivative, along v in the weights, of dL/dx. Forward over reverse computes it in one pass, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jvp

Gradient = Mapping[str, Tensor]  #: to the weights of a network, by name
Distance = Callable[[Gradient, Gradient], Tensor]  #: (real, synthetic) -> scalar, differentiable in the second

#: Ranks of weights that are compared: matrices and kernels, not biases and norms (DC, DSA).
MATRICES = (2, 3, 4)
#: Kernels of convolutions alone (IDC leaves the linear layer out too).
KERNELS = (4,)


def cosine_distance(real: Gradient, synthetic: Gradient, ranks: tuple[int, ...] = MATRICES) -> Tensor:
    """Sum over layers and their output rows of 1 - cosine: DC (Zhao et al., ICLR 2021), Eq. 10, and DSA.

    A row is all that leads to one output channel: `(out, in * h * w)`; 1e-6 is added to the product of lengths, as in
    the authors' code.
    """
    total = _zero(synthetic)
    for name in _compared(synthetic, ranks):
        a, b = real[name].flatten(1), synthetic[name].flatten(1)
        cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)
        total = total + (1 - cosine).sum()
    return total


def squared_distance(real: Gradient, synthetic: Gradient, ranks: tuple[int, ...] = KERNELS) -> Tensor:
    """Sum of squared differences: IDC (Kim et al., ICML 2022) on colour images."""
    return _summed(torch.square, real, synthetic, ranks)


def absolute_distance(real: Gradient, synthetic: Gradient, ranks: tuple[int, ...] = KERNELS) -> Tensor:
    """Sum of absolute differences: IDC on gray images and on speech."""
    return _summed(torch.abs, real, synthetic, ranks)


def direction_of(distance: Distance, real: Gradient, synthetic: Gradient) -> tuple[Tensor, dict[str, Tensor]]:
    """D and v = dD/dg_synthetic."""
    leaves = {name: value.detach().requires_grad_() for name, value in synthetic.items()}
    with torch.enable_grad():
        value = distance(real, leaves)
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return value.detach(), dict(zip(leaves, found, strict=True))


def to_samples(loss: Callable[..., Tensor], weights: Gradient, x: Tensor, direction: Gradient, *given: Any) -> Tensor:
    """Gradient to `x` of <d loss(weights, x, *given) / d weights, direction>, shaped like `x`.

    Args:
        loss: scalar, twice differentiable; it must write into nothing it is given.
    """
    slope = grad(lambda w, x: loss(w, x, *given), argnums=1)
    return jvp(lambda w: slope(w, x), (dict(weights),), (dict(direction),))[1]


class SecondOrder(NamedTuple):
    """Of the product <dL/dw, direction>: its value, and its gradients to the weights and to the samples."""

    along: Tensor
    to_weights: dict[str, Tensor]
    to_samples: Tensor


def to_weights_and_samples(
    loss: Callable[..., Tensor], weights: Gradient, x: Tensor, direction: Gradient, *given: Any
) -> SecondOrder:
    """Also the gradient to the weights, the Hessian times `direction`: the way back through steps of SGD asks all."""
    slopes = grad(lambda w, x: loss(w, x, *given), argnums=(0, 1))
    forward: tuple[Any, ...] = jvp(lambda w: slopes(w, x), (dict(weights),), (dict(direction),))
    (slope, _), (to_weights, to_x) = forward
    along = torch.stack([(value * direction[name]).sum() for name, value in slope.items()]).sum()
    return SecondOrder(along, to_weights, to_x)


class Slope(torch.autograd.Function):
    """`Slope.apply(x, value, gradient)` is `value`, of which `gradient` is known to be the gradient to `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        return outer[0] * ctx.saved_tensors[0], None, None


def _summed(size: Callable[[Tensor], Tensor], real: Gradient, synthetic: Gradient, ranks: tuple[int, ...]) -> Tensor:
    total = _zero(synthetic)
    for name in _compared(synthetic, ranks):
        total = total + size(real[name] - synthetic[name]).sum()
    return total


def _compared(gradient: Gradient, ranks: tuple[int, ...]) -> list[str]:
    return [name for name, value in gradient.items() if value.dim() in ranks]


def _zero(gradient: Gradient) -> Tensor:
    return next(iter(gradient.values())).new_zeros(())
