"""DD: dataset distillation (Wang et al., 2018), the first of the field.

A network takes a few plain gradient steps on the synthetic set, at rates that are learned with it; samples and rates
follow the gradient of the loss that the trained network has on real data, back through all of these steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import at_least, one_of
from ..errors import UsageError
from ..learning.augment import PLAIN
from ..learning.optim import Rule
from ..learning.unroll import Labelled, Unrolled, one_pass
from ..networks import build_network
from ..seeding import derive
from ..sets.synthetic import SyntheticSet
from .base import METHODS, Method
from .problem import Problem
from .state import Metrics, State

#: The outer rate is halved so often, after equal shares of the steps (published: every 40 of 400 epochs).
HALVINGS = 10
ADAM = Rule("adam", betas=(0.5, 0.999))


@dataclass(frozen=True)
class DDConfig:
    """Keys of DD; defaults as published for MNIST.

    Attributes:
        steps: outer steps; the published 400 epochs in batches of 1024 are some 20,000.
        inner: gradient steps of one pass over the synthetic set, each on as many samples of every class; fewer where a
            class has fewer samples.
        epochs: passes over the set; every step of every pass has a rate of its own.
        inner_rate: what these rates are before the first step.
        learning_rate: of Adam, on NORMALISED pixels and on the rates before their softplus; halved ten times.
        real_batch: real images of a step, of all classes together, as many of each.
        initialisation: "random": a new network at every step, so that the set serves any; "fixed": the same one always,
            which the set names and serves alone.
    """

    steps: int = 20_000
    inner: int = 10
    epochs: int = 3
    inner_rate: float = 0.02
    learning_rate: float = 0.01
    real_batch: int = 1024
    initialisation: str = "random"

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "inner", "epochs", "real_batch")
        at_least(self, 0, "learning_rate")
        one_of(self, ("random", "fixed"), "initialisation")
        if not 0 < self.inner_rate <= 100:
            raise UsageError(f"inner_rate={self.inner_rate:g}: need a number above 0 and at most 100")


@dataclass(frozen=True)
class DDState(State):
    """Images and rates, each with Adam's memory.

    Attributes:
        memory: `(2, K, ...)`, on the normalised scale.
        rates: `(epochs, inner)`, before their softplus.
        rate_memory: `(2, epochs, inner)`.
    """

    memory: Tensor
    rates: Tensor
    rate_memory: Tensor


@METHODS.register("dd")
class DD(Method[DDState]):
    """Learn samples, and rates to step on them at, by the loss of networks that took these steps."""

    Config = DDConfig
    State = DDState
    clamps = False
    independent_classes = False
    quick: ClassVar[Mapping[str, Any]] = {"inner": 2, "epochs": 1, "learning_rate": 0.1, "inner_rate": 0.1}

    def init(self, problem: Problem) -> DDState:
        images, inner = problem.initial_images(), min(self.config.inner, problem.samples)
        rates = images.new_full((self.config.epochs, inner), math.log(math.expm1(self.config.inner_rate)))
        return DDState(0, images, ADAM.init(images), rates, ADAM.init(rates))

    def step(self, problem: Problem, state: DDState) -> tuple[DDState, Metrics]:
        unrolled = problem.kept("unrolled", lambda: _unrolled(problem))
        stored, raw = state.images.detach().requires_grad_(), state.rates.detach().requires_grad_()
        samples, rates = problem.decode(stored), F.softplus(raw)
        batches = one_pass(samples, problem.classes, rates.shape[1])
        trail = unrolled.forward(self._start(problem, state.step), batches, rates.flatten())
        loss, slope = problem.gradients.loss(trail.weights, *self._real(problem, state.step), PLAIN)
        to_batches, to_rates = unrolled.backward(trail, batches, rates.detach().flatten(), slope)
        ends, slopes = [*(batch.samples for batch in batches), rates], [*to_batches, to_rates.view_as(rates)]
        to_stored, to_raw = torch.autograd.grad(ends, [stored, raw], slopes)
        units, rate = problem.units, self._rate_at(state.step)
        direction, memory = ADAM.direction(state.images, units * to_stored, state.memory, state.step)
        turn, rate_memory = ADAM.direction(state.rates, to_raw, state.rate_memory, state.step)
        after = state.advanced(
            images=state.images - rate * units * direction,
            memory=memory,
            rates=state.rates - rate * turn,
            rate_memory=rate_memory,
        )
        return after, Metrics.of(loss, notes={"inner_rate": rates.detach().mean()})

    def result(self, problem: Problem, state: DDState) -> SyntheticSet:
        """The images with `rates` (epochs, inner), and `network_seed` where they serve one network alone."""
        extras = {"rates": F.softplus(state.rates)}
        if self.config.initialisation == "fixed":
            extras["network_seed"] = torch.tensor(derive(problem.seed, "random network", 0))
        return problem.synthetic_set(state.images, extras=extras, method=self.name, steps=state.step)

    def passes(self, problem: Problem) -> int:
        # A step is a gradient forth, and back the mixed derivative to samples and weights.
        each = 12 * self.config.epochs * problem.samples + 3 * self._real_of_a_class(problem)
        return self.config.steps * len(problem.classes) * each

    def _start(self, problem: Problem, step: int) -> Mapping[str, Tensor]:
        if self.config.initialisation == "random":
            return problem.fresh_network(step)
        return problem.kept("fixed network", lambda: problem.fresh_network(0))

    def _real(self, problem: Problem, step: int) -> Labelled:
        images = problem.class_batches(self._real_of_a_class(problem), step)
        labels = torch.tensor(problem.classes, device=images.device).repeat_interleave(images.shape[1])
        return Labelled(images.flatten(0, 1), labels)

    def _real_of_a_class(self, problem: Problem) -> int:
        return problem.batch_size(-(-self.config.real_batch // problem.spec.num_classes))

    def _rate_at(self, step: int) -> float:
        return self.config.learning_rate * 0.5 ** (step * HALVINGS // self.config.steps)


def _unrolled(problem: Problem) -> Unrolled:
    return Unrolled(build_network(problem.network, problem.spec, 0), problem.spec, problem.runtime)
