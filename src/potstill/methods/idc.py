"""IDC: dataset condensation via efficient synthetic-data parameterisation (Kim et al., ICML 2022).

Stored images hold several small ones each (the origin of the factor), and the gradients that these give a network are
matched with those of real images, while the network learns from REAL data: trained on a small synthetic set, as in DC,
its gradients soon vanish and leave nothing to match.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import at_least, one_of, share
from ..learning.augment import Draw, Strategy, strategy_for
from ..learning.gradients import Weights
from ..learning.inner import Batch, Learner, epoch_of
from ..learning.optim import Rule
from ..matching.gradients import absolute_distance, squared_distance
from ..networks import build_network
from ..seeding import derive
from .base import METHODS, Method
from .problem import Problem
from .state import Metrics, State

DISTANCES = {"squared": squared_distance, "absolute": absolute_distance}
NETWORK_RATE, NETWORK_BATCH = 0.01, 64


@dataclass(frozen=True)
class IDCConfig:
    """Keys of IDC; defaults as published for CIFAR-10, its step for each class in turn made one joint step.

    Attributes:
        steps: image steps in all; the published 2000 networks take 100 each.
        steps_per_network: image steps on one network, which learns between them.
        distance: of the gradients to the kernels of convolutions: "squared" (colour) or "absolute" (gray, sound).
        learning_rate: at IPC 10, on the pixel scale; it grows with IPC. The code's 5e-3 with momentum .5, stepped class
            by class, is twice that in one joint step (fidelity.md, "The joint form").
        real_batch: real images per class and step.
        synthetic_batch: at most so many decoded samples per class and step.
        augment: DSA string, one draw for real and synthetic alike; the network's own batches go without its cutout
            where they are mixed.
        network_images: real images of all classes that the network learns from between two image steps.
        cutmix: probability that one of its batches is mixed.
    """

    steps: int = 200_000
    steps_per_network: int = 100
    distance: str = "squared"
    learning_rate: float = 0.01
    real_batch: int = 64
    synthetic_batch: int = 128
    augment: str = "color_crop_cutout"
    network_images: int = 2000
    cutmix: float = 0.5

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "steps_per_network", "real_batch", "synthetic_batch")
        at_least(self, 0, "learning_rate", "network_images")
        one_of(self, DISTANCES, "distance")
        share(self, "cutmix")
        Strategy.parse(self.augment)


@dataclass(frozen=True)
class IDCState(State):
    """Images, the network in training and the memory of its optimiser."""

    network: Weights
    velocity: Weights


@METHODS.register("idc")
class IDC(Method[IDCState]):
    """Match gradients of networks that learn from real data, for several small samples in each stored one."""

    Config = IDCConfig
    State = IDCState
    quick: ClassVar[Mapping[str, Any]] = {"steps_per_network": 2, "network_images": 16, "learning_rate": 0.1}

    def init(self, problem: Problem) -> IDCState:
        network = problem.fresh_network(0)
        return IDCState(0, problem.initial_images(), network, self._learner(problem).init(network))

    def step(self, problem: Problem, state: IDCState) -> tuple[IDCState, Metrics]:
        number, turn = divmod(state.step, self.config.steps_per_network)
        network, velocity = state.network, state.velocity
        if turn == 0:
            network = problem.fresh_network(number)
            velocity = self._learner(problem).init(network)
        stored = state.images.detach().requires_grad_()
        loss = self._distance(problem, network, problem.decode(stored), state.step)
        (gradient,) = torch.autograd.grad(loss, stored)
        rate = self.config.learning_rate * problem.ipc / 10
        images = problem.clamp(stored.detach() - rate * gradient)
        if turn < self.config.steps_per_network - 1:
            batches = self._real_batches(problem, state.step)
            network, velocity, _ = self._learner(problem).train(network, velocity, batches)
        return state.advanced(images=images, network=network, velocity=velocity), Metrics.of(loss)

    def passes(self, problem: Problem) -> int:
        c = self.config
        # The mixed derivative costs about two gradients to the weights more.
        each = 9 * min(problem.samples, c.synthetic_batch) + 3 * problem.batch_size(c.real_batch)
        trainings = c.steps - c.steps // c.steps_per_network  # none after a network's last step
        return c.steps * len(problem.classes) * each + trainings * 3 * min(c.network_images, len(problem.train))

    def _distance(self, problem: Problem, network: Weights, samples: Tensor, step: int) -> Tensor:
        """Between the gradients of real and synthetic samples of each class, summed over classes."""
        c, gradients = self.config, problem.gradients
        operations, rows = problem.class_draw(strategy_for(problem.spec, c.augment), step)
        batches = problem.class_batches(c.real_batch, step)
        samples = problem.chosen_samples(samples, c.synthetic_batch, step)
        total = samples.new_zeros(())
        for cls, row, images, given in zip(problem.classes, rows, batches, samples, strict=True):
            draw = Draw(operations, row[None])
            real = gradients(network, images, _labels(cls, images), draw)
            matched = gradients.match(network, given, _labels(cls, given), draw, real, DISTANCES[c.distance])
            total = total + matched
        return total

    def _real_batches(self, problem: Problem, step: int) -> Iterator[Batch]:
        """What the network learns from after image step `step`: real images of all classes, whatever the shard."""
        images, labels = problem.resident_images, problem.train.labels.to(problem.runtime.device)
        epoch = epoch_of(images, labels, NETWORK_BATCH, derive(problem.seed, "inner", step), 0)
        for x, y, stream in islice(epoch, -(-self.config.network_images // NETWORK_BATCH)):
            yield Batch(x, y, NETWORK_RATE, stream)

    def _learner(self, problem: Problem) -> Learner:
        c = self.config
        cutmix = c.cutmix if problem.spec.modality == "image" else 0.0
        strategy = strategy_for(problem.spec, c.augment)
        return problem.kept(
            ("learner", self.name, c.augment, cutmix),
            lambda: Learner(
                build_network(problem.network, problem.spec, 0),
                problem.spec,
                problem.runtime,
                rule=Rule("sgd", momentum=0.9, weight_decay=5e-4),
                strategy=strategy.without("cutout") if cutmix else strategy,
                cutmix=cutmix,
            ),
        )


def _labels(cls: int, samples: Tensor) -> Tensor:
    return torch.full((len(samples),), cls, device=samples.device)
