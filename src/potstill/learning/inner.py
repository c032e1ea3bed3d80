"""Training steps from given weights: weights and the optimiser's memory in, weights and memory out.

Both are mappings of tensors that a method's state can hold, and neither is rewritten. `fit` trains pool members and
evaluation networks by epochs of these steps; gradient matching and queues of networks take a few at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..machine.runtime import Runtime
from ..networks import Backbone
from ..seeding import generator
from ..spec import DatasetSpec
from . import augment
from .augment import Strategy
from .gradients import Gradients, Weights
from .optim import Rule
from .view import View, draw_mix

NO_AUGMENTATION = Strategy()


class Batch(NamedTuple):
    """What one training step is given: images `(B, C, H, W)` uint8 or pixels, labels `(B,)`, rate, its own draws."""

    images: Tensor
    labels: Tensor
    rate: float
    stream: torch.Generator


class Trained(NamedTuple):
    """Where training steps have led; `loss` is that of the last step, before it."""

    weights: Weights
    memory: Weights
    loss: Tensor


class Learner:
    """Trains networks of one architecture on one data set; it holds graphs, which are compiled once, and no weights.

    Args:
        network: the architecture; its own weights are never read or written.
        rule: the optimiser.
        strategy: augmentation of each batch, one draw per image.
        cutmix: probability that a batch is mixed.
    """

    def __init__(
        self,
        network: Backbone,
        spec: DatasetSpec,
        runtime: Runtime,
        *,
        rule: Rule,
        strategy: Strategy = NO_AUGMENTATION,
        cutmix: float = 0.0,
    ):
        self.rule, self.strategy, self.cutmix = rule, strategy, cutmix
        self.gradients = Gradients(network.train(), spec, runtime)
        self.parameters = self.gradients.parameters
        self.buffers = [name for name, _ in network.named_buffers()]
        self._prepare = runtime.compiled(View(spec, runtime.device).mixed)

    def init(self, weights: Weights) -> dict[str, Tensor]:
        """The optimiser's memory before the first step."""
        return self.rule.init({name: weights[name] for name in self.parameters})

    def train(self, weights: Weights, memory: Weights, batches: Iterable[Batch], *, done: int = 0) -> Trained:
        """One step for each batch; `done` counts the steps that `memory` has seen before."""
        trained = Trained(weights, memory, torch.zeros(()))
        for step, batch in enumerate(batches, done):
            trained = self.step(trained.weights, trained.memory, batch, step)
        return trained

    def step(self, weights: Weights, memory: Weights, batch: Batch, number: int) -> Trained:
        """One step of the rule, the `number`-th (from 0) of its memory."""
        operations, *drawn = self._drawn(batch)
        return self._step(
            weights, memory, batch.images, batch.labels, *drawn, operations=operations, rate=batch.rate, number=number
        )

    def replayed(self, weights: Weights, memory: Weights, batch: Batch, number: int) -> Trained:
        """`step`, as one graph of a GPU where rates are few: what it returns holds until the next such step."""
        operations, *drawn = self._drawn(batch)
        number = 0 if self.rule.name == "sgd" else number  # which SGD does not look at: one graph for all steps
        return self._captured(
            weights, memory, batch.images, batch.labels, *drawn, operations=operations, rate=batch.rate, number=number
        )

    def seen(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Augmented, mixed images, both label columns `(B, 2)` and their shares `(B, 2)`, which sum to 1."""
        operations, *drawn = self._drawn(batch)
        return self._seen(batch.images, batch.labels, *drawn, operations=operations)

    @cached_property
    def _captured(self) -> Callable[..., Trained]:
        return self.gradients.runtime.captured(self._step)

    def _step(
        self,
        weights: Weights,
        memory: Weights,
        *batch: Tensor,
        operations: tuple[str, ...],
        rate: float,
        number: int,
    ) -> Trained:
        x, targets, shares = self._seen(*batch, operations=operations)
        # Batch norm writes its running statistics into what it is given.
        buffers = {name: weights[name].clone() for name in self.buffers}
        loss, gradient = self.gradients.first_order({**weights, **buffers}, x, targets, shares)
        parameters = {name: weights[name] for name in self.parameters}
        moved, memory = self.rule.updated(parameters, gradient, memory, rate=rate, step=number)
        return Trained({**moved, **buffers}, memory, loss)

    def _seen(
        self,
        images: Tensor,
        labels: Tensor,
        uniform: Tensor,
        partner: Tensor,
        box: Tensor,
        kept: Tensor,
        *,
        operations: tuple[str, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = self._prepare(images, operations, uniform, partner, box)
        targets = torch.stack([labels, labels[partner]], dim=1)
        return x, targets, (kept / len(images)).expand(len(images), 2)

    def _drawn(self, batch: Batch) -> tuple[tuple[str, ...], Tensor, Tensor, Tensor, Tensor]:
        """Operations and uniform numbers `(B, 11)` of the augmentation; partner, box and shares of the mix."""
        (size, _, height, width), device = batch.images.shape, batch.images.device
        drawn = augment.draw(self.strategy, size, batch.stream)
        mix = draw_mix(self.cutmix, height, width, size, batch.stream)
        kept = torch.tensor([mix.kept, 1 - mix.kept], device=device)
        return drawn.operations, drawn.uniform.to(device), mix.partner.to(device), mix.box.to(device), kept


def epoch_of(
    images: Tensor, labels: Tensor, size: int, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor, torch.Generator]]:
    """All images once, in batches of at most `size` in an order of the epoch's own, each with its stream of draws."""
    order = torch.randperm(len(labels), generator=generator(seed, "order", epoch)).to(images.device)
    for i, index in enumerate(order.split(size)):
        yield images[index], labels[index], generator(seed, "batch", epoch, i)
