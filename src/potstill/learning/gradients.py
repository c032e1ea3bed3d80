"""Gradients of a network's training loss: to its weights, and from a distance of two of them back to the samples.

First order runs through the compiled training step, chunk by chunk. Second order is the mixed derivative of
`matching.gradients`, compiled too and always in fp32: it goes around the hand-written kernels, which can be
differentiated once only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from ..machine import native
from ..machine.chunks import Chunk, chunks
from ..machine.runtime import Runtime
from ..matching.gradients import Distance, SecondOrder, Slope, direction_of, to_samples, to_weights_and_samples
from ..networks import Backbone
from ..spec import DatasetSpec
from .augment import Draw
from .view import View

Weights = Mapping[str, Tensor]  #: parameters and buffers by name, as `state_dict` has them


class Gradients:
    """Of the mean cross-entropy of samples `(N, C, H, W)` with labels `(N,)` under a draw of N rows, or one for all.

    Every call is given the weights; buffers among them are read and never written. Batch norm takes the statistics of
    the batch or those in the buffers, as `network` is in training or evaluation mode.

    Args:
        network: the architecture; its own weights are never read or written.
    Raises:
        UsageError: a frozen network.
    """

    def __init__(self, network: Backbone, spec: DatasetSpec, runtime: Runtime):
        network.require_trainable()
        self.network, self.runtime = network.to(runtime.device), runtime
        self.parameters = [name for name, _ in network.named_parameters()]
        self._see = runtime.compiled(View(spec, runtime.device).__call__)
        self._loss = runtime.compiled(partial(weighted_loss, network, runtime))
        loss = partial(_fp32_loss, network, replace(runtime, precision="fp32"))
        self._to_samples = native.bypassed()(runtime.compiled(partial(to_samples, loss)))
        self._to_both = native.bypassed()(runtime.compiled(partial(to_weights_and_samples, loss)))

    def __call__(self, weights: Weights, samples: Tensor, labels: Tensor, draw: Draw) -> dict[str, Tensor]:
        """The gradient to the parameters: what DC matches of a real batch."""
        return self.loss(weights, samples, labels, draw)[1]

    def loss(self, weights: Weights, samples: Tensor, labels: Tensor, draw: Draw) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its gradient to the parameters."""
        with torch.no_grad():
            x = self._seen(samples, draw)
        return self.first_order(self._copied(weights), x, *_columns(labels))

    def match(
        self, weights: Weights, samples: Tensor, labels: Tensor, draw: Draw, real: Weights, distance: Distance
    ) -> Tensor:
        """D(real, gradient of the samples), differentiable (once) in `samples` and in what they are decoded from."""
        x = self._seen(samples, draw)
        targets, shares = _columns(labels)
        _, synthetic = self.first_order(self._copied(weights), x.detach(), targets, shares)
        value, direction = direction_of(distance, real, synthetic)
        pieces = [
            self._to_samples(*self._split(weights, piece, direction))[: piece.filled]
            for piece in self._weighted(x.detach(), targets, shares)
        ]
        return Slope.apply(x, value, torch.cat(pieces))  # type: ignore[no-any-return]

    def second_order(
        self, weights: Weights, samples: Tensor, labels: Tensor, draw: Draw, direction: Weights
    ) -> SecondOrder:
        """Of <gradient to the parameters, direction>, whose way back is to `samples`: a step of DD's way back."""
        leaf = samples.detach().requires_grad_()
        x = self._seen(leaf, draw)
        along, to_weights = x.new_zeros(()), dict[str, Tensor]()
        pieces = []
        for piece in self._weighted(x.detach(), *_columns(labels)):
            found = self._to_both(*self._split(weights, piece, direction))
            added = found.to_weights.items()
            to_weights = {name: value + to_weights[name] if to_weights else value for name, value in added}
            along = along + found.along
            pieces.append(found.to_samples[: piece.filled])
        return SecondOrder(along, to_weights, torch.autograd.grad(x, leaf, torch.cat(pieces))[0])

    def first_order(
        self, weights: Weights, x: Tensor, targets: Tensor, shares: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of standardised images and its gradient to the parameters, summed over chunks.

        Args:
            weights: of these, batch norm in training mode writes its running statistics into the buffers.
            targets, shares: two labels for each image and what they weigh, see `weighted_loss`.
        """
        leaves = {name: weights[name].detach().requires_grad_() for name in self.parameters}
        total, gradients = x.new_zeros(()), []
        for (images, labels, weight), _ in self._weighted(x, targets, shares):
            loss = self._loss({**weights, **leaves}, images, labels, weight)
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
            gradients = [a.add_(b) for a, b in zip(gradients, found, strict=True)] if gradients else list(found)
            total += loss.detach()
        return total, dict(zip(leaves, gradients, strict=True))

    def _seen(self, samples: Tensor, draw: Draw) -> Tensor:
        samples = samples.to(self.runtime.device)
        uniform = draw.uniform.to(samples.device)
        return self._see(samples, draw.operations, uniform.expand(len(samples), -1).contiguous())

    def _weighted(self, x: Tensor, targets: Tensor, shares: Tensor) -> Iterator[Chunk]:
        """Chunks in which what fills the last one up weighs nothing."""
        size = len(x) if self.network.couples_batch else self.runtime.chunk_of(len(x))
        for (images, labels, weight), filled in chunks(size, x, targets, shares):
            yield Chunk((images, labels, F.pad(weight[:filled], (0, 0, 0, size - filled))), filled)

    def _split(self, weights: Weights, piece: Chunk, direction: Weights) -> tuple[Any, ...]:
        """Arguments of the mixed derivative: parameters, images, direction, then what is constant."""
        images, targets, shares = piece.tensors
        parameters = {name: weights[name].detach() for name in self.parameters}
        buffers = {name: value for name, value in weights.items() if name not in parameters}
        return parameters, images, direction, buffers, targets, shares

    def _copied(self, weights: Weights) -> Weights:
        return {name: value if name in self.parameters else value.clone() for name, value in weights.items()}


def weighted_loss(
    network: Backbone, runtime: Runtime, weights: Weights, x: Tensor, targets: Tensor, shares: Tensor
) -> Tensor:
    """Cross-entropy to both label columns `(B, 2)`, weighted by `shares` `(B, 2)`; those of a whole batch sum to 1."""
    with runtime.autocast():
        logits = functional_call(network, dict(weights), (x,))
    return -(F.log_softmax(logits.float(), dim=1).gather(1, targets) * shares).sum()


def _fp32_loss(
    network: Backbone,
    runtime: Runtime,
    parameters: Weights,
    x: Tensor,
    buffers: Weights,
    targets: Tensor,
    shares: Tensor,
) -> Tensor:
    own = {name: value.clone() for name, value in buffers.items()}  # batch norm writes into them
    return weighted_loss(network, runtime, {**own, **parameters}, x, targets, shares)


def _columns(labels: Tensor) -> tuple[Tensor, Tensor]:
    """One label for each sample as two columns of which the second weighs nothing."""
    shares = torch.tensor([1.0, 0.0], device=labels.device) / len(labels)
    return torch.stack([labels, labels], dim=1), shares.expand(len(labels), 2)
