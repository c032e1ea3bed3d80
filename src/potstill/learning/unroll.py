"""Training steps that are differentiated through: plain gradient steps on given samples, each at a rate of its own.

On the way back the graph of one step stands at a time. What is kept of the others is their weights, and where even
these would be too many, those of every n-th step, from which the ones between are computed again: memory grows with
neither the number of steps nor the maps of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..machine.runtime import Runtime
from ..networks import Backbone
from ..spec import DatasetSpec
from .augment import PLAIN
from .gradients import Weights
from .inner import Batch, Learner
from .optim import Rule

#: Numbers of weights that are kept for the way back: 200 steps of ConvNet-3 at fp32 take a quarter of a gigabyte.
KEEP_NUMBERS = 64_000_000


class Labelled(NamedTuple):
    """Samples `(B, C, H, W)` of one step, and labels `(B,)`."""

    samples: Tensor
    labels: Tensor


class Trail(NamedTuple):
    """Where unrolled steps have led: the last weights and loss, and the weights before every `stride`-th step."""

    weights: Weights
    loss: Tensor
    kept: tuple[Weights, ...]
    stride: int


class Unrolled:
    """T steps of w <- w - r_t dL(w; batch_t)/dw, through the batches in turn as often as there are rates for.

    Args:
        network: the architecture; its own weights are never read or written.
        keep: numbers of weights that may be kept for the way back.
    """

    def __init__(self, network: Backbone, spec: DatasetSpec, runtime: Runtime, *, keep: int = KEEP_NUMBERS):
        self.learner, self.keep = Learner(network, spec, runtime, rule=Rule("sgd")), keep

    def forward(self, weights: Weights, batches: Sequence[Labelled], rates: Tensor) -> Trail:
        """All steps, at `rates` `(T,)`; batch t is `batches[t % len(batches)]`."""
        size = sum(weights[name].numel() for name in self.learner.parameters)
        stride = max(1, -(-len(rates) * size // self.keep))
        kept, loss = [], torch.zeros(())
        for step, rate in enumerate(rates.tolist()):
            if step % stride == 0:
                kept.append(weights)
            weights, loss = self._stepped(weights, batches[step % len(batches)], rate)
        return Trail(weights, loss, tuple(kept), stride)

    def backward(
        self, trail: Trail, batches: Sequence[Labelled], rates: Tensor, slope: Weights
    ) -> tuple[list[Tensor], Tensor]:
        """Gradients to the samples of each batch and to the rates, from `slope`, the gradient to the last weights.

        With lambda the gradient to the weights after a step and g its gradient dL/dw, that to its rate is -<g, lambda>,
        and those to its samples and to the weights before it are -r d<g, lambda>/dx and lambda - r d<g, lambda>/dw.
        """
        to_batches = [torch.zeros_like(batch.samples) for batch in batches]
        to_rates, listed = torch.zeros_like(rates), rates.tolist()
        for start in reversed(range(0, len(listed), trail.stride)):
            before = self._segment(trail.kept[start // trail.stride], batches, listed, start, trail.stride)
            for step in reversed(range(start, start + len(before))):
                at, rate = step % len(batches), listed[step]
                found = self.learner.gradients.second_order(before.pop(), *batches[at], PLAIN, slope)
                to_rates[step] = -found.along
                to_batches[at] -= rate * found.to_samples
                slope = {name: slope[name] - rate * found.to_weights[name] for name in self.learner.parameters}
        return to_batches, to_rates

    def _segment(
        self, weights: Weights, batches: Sequence[Labelled], rates: list[float], start: int, count: int
    ) -> list[Weights]:
        """Weights before each of up to `count` steps from `start` on."""
        found = [weights]
        for step in range(start, min(start + count, len(rates)) - 1):
            found.append(self._stepped(found[-1], batches[step % len(batches)], rates[step])[0])
        return found

    def _stepped(self, weights: Weights, batch: Labelled, rate: float) -> tuple[Weights, Tensor]:
        samples, labels = batch
        given = Batch(samples.detach(), labels, rate, torch.Generator())  # which nothing draws from
        trained = self.learner.step(weights, self.learner.init(weights), given, 0)
        return trained.weights, trained.loss


def one_pass(samples: Tensor, classes: Sequence[int], steps: int) -> list[Labelled]:
    """Samples `(K, M, C, H, W)` in at most `steps` batches, of all classes each and as equal in size as can be."""
    parts = samples.tensor_split(min(steps, samples.shape[1]), dim=1)
    labels = torch.tensor(classes, device=samples.device)
    return [Labelled(part.flatten(0, 1), labels.repeat_interleave(part.shape[1])) for part in parts]
