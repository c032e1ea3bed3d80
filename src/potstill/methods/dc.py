"""DC and DSA: dataset condensation with gradient matching (Zhao et al., ICLR 2021; Zhao and Bilen, ICML 2021).

A network is trained on the synthetic set from its initialisation on; between its steps the set is moved so that the
gradient it gives the network is the gradient that real images give. DSA augments both alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import at_least
from ..learning.augment import Draw, Strategy, draw_operations, strategy_for
from ..learning.gradients import Weights
from ..learning.inner import Batch, Learner, epoch_of
from ..learning.optim import Descent, Rule
from ..matching.gradients import cosine_distance
from ..networks import build_network
from ..seeding import derive, generator
from .base import METHODS, Method
from .problem import Problem
from .state import Metrics, State

#: IPC -> (image steps per network, epochs on the synthetic set after each but the last), as published.
LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
NETWORK_RATE, NETWORK_BATCH = 0.01, 256


@dataclass(frozen=True)
class DCConfig:
    """Keys of DC; defaults as published.

    Attributes:
        steps: image steps in all; the published 1000 networks take 1000 x `outer` of them.
        outer: image steps per network; 0 for the published number, see `loops`.
        inner: epochs that the network trains on the synthetic set between two image steps; 0 for the published number.
        descent: the image step, on NORMALISED pixels.
        real_batch: real images per class and step.
        augment: DSA string; one of its operations is drawn for each class and step, for real and synthetic alike, and
            for each batch that the network trains on.
    """

    steps: int = 10_000
    outer: int = 0
    inner: int = 0
    descent: Descent = Descent(0.1, momentum=0.5)
    real_batch: int = 256
    augment: str = "none"

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "real_batch")
        at_least(self, 0, "outer", "inner")
        Strategy.parse(self.augment)


@dataclass(frozen=True)
class DSAConfig(DCConfig):
    """Keys as in `DCConfig`; all six operations are in use."""

    augment: str = "color_crop_cutout_flip_scale_rotate"


@dataclass(frozen=True)
class DCState(State):
    """Images, the optimiser's memory `(0..2, K, ...)`, and the network in training."""

    memory: Tensor
    network: Weights


@METHODS.register("dc")
class DC(Method[DCState]):
    """Match gradients of networks that train on the synthetic set; values are not clamped, as published."""

    Config = DCConfig
    State = DCState
    clamps = False
    independent_classes = False
    quick: ClassVar[Mapping[str, Any]] = {"outer": 2, "inner": 2}

    def init(self, problem: Problem) -> DCState:
        images = problem.initial_images()
        return DCState(0, images, self.config.descent.init(images), problem.fresh_network(0))

    def step(self, problem: Problem, state: DCState) -> tuple[DCState, Metrics]:
        outer, inner = self.loops(problem.ipc)
        number, turn = divmod(state.step, outer)
        network = problem.fresh_network(number) if turn == 0 else state.network
        stored = state.images.detach().requires_grad_()
        loss = self._distance(problem, network, problem.decode(stored), state.step)
        (gradient,) = torch.autograd.grad(loss, stored)
        scaled = gradient * problem.units.square()
        descent, steps = self.config.descent, self.config.steps
        images, memory = descent(stored.detach(), scaled, state.memory, step=state.step, steps=steps)
        if turn < outer - 1:
            network = self._trained(problem, network, images, state.step, inner)
        return state.advanced(images=images, memory=memory, network=network), Metrics.of(loss)

    def passes(self, problem: Problem) -> int:
        (outer, inner), steps = self.loops(problem.ipc), self.config.steps
        trainings = steps - steps // outer  # none after a network's last step
        # The mixed derivative costs about two gradients to the weights more.
        each = 9 * problem.samples + 3 * problem.batch_size(self.config.real_batch)
        return len(problem.classes) * (steps * each + trainings * inner * 3 * problem.samples)

    def loops(self, ipc: int) -> tuple[int, int]:
        """(outer, inner) for any IPC: the published pairs, between them on a straight line, beyond 50 as at 50."""
        outer, inner = self.config.outer, self.config.inner
        below = max((known for known in LOOPS if known <= ipc), default=1)
        above = min((known for known in LOOPS if known >= ipc), default=50)
        share = (ipc - below) / (above - below) if above > below else 0.0
        pairs = zip(LOOPS[below], LOOPS[above], strict=True)
        found = [round(low + share * (high - low)) for low, high in pairs]
        return outer or found[0], inner or found[1]

    def _distance(self, problem: Problem, network: Weights, samples: Tensor, step: int) -> Tensor:
        """Between the gradients of real and synthetic samples of each class, summed over classes."""
        batches = problem.class_batches(self.config.real_batch, step)
        total = samples.new_zeros(())
        for row, (cls, images) in enumerate(zip(problem.classes, batches, strict=True)):
            draw = self._draw(problem, cls, step)
            real = problem.gradients(network, images, _labels(cls, images), draw)
            given = samples[row]
            total = total + problem.gradients.match(network, given, _labels(cls, given), draw, real, cosine_distance)
        return total

    def _draw(self, problem: Problem, cls: int, step: int) -> Draw:
        """One row and one operation for a class and step."""
        operations = draw_operations(self._strategy(problem), generator(problem.seed, "operations", cls, step))
        return Draw(operations, Draw.row(generator(problem.seed, "augment", cls, step)))

    def _trained(self, problem: Problem, network: Weights, images: Tensor, step: int, epochs: int) -> Weights:
        """The network after some epochs on the synthetic set, plain SGD."""
        learner = problem.kept(("learner", self.config.augment), lambda: self._learner(problem))
        samples = problem.decode(images)
        labels = torch.tensor(problem.classes, device=images.device).repeat_interleave(samples.shape[1])
        batches = _batches(samples.flatten(0, 1), labels, derive(problem.seed, "inner", step), epochs)
        return learner.train(network, learner.init(network), batches).weights

    def _learner(self, problem: Problem) -> Learner:
        network = build_network(problem.network, problem.spec, 0)
        return Learner(network, problem.spec, problem.runtime, rule=Rule("sgd"), strategy=self._strategy(problem))

    def _strategy(self, problem: Problem) -> Strategy:
        return strategy_for(problem.spec, self.config.augment, single=True)


@METHODS.register("dsa")
class DSA(DC):
    """DC with Siamese augmentation: real and synthetic batches of a class are augmented alike."""

    Config = DSAConfig


def _labels(cls: int, samples: Tensor) -> Tensor:
    return torch.full((len(samples),), cls, device=samples.device)


def _batches(samples: Tensor, labels: Tensor, seed: int, epochs: int) -> Iterator[Batch]:
    for epoch in range(epochs):
        for images, targets, stream in epoch_of(samples, labels, NETWORK_BATCH, seed, epoch):
            yield Batch(images, targets, NETWORK_RATE, stream)
