"""IDM: improved distribution matching (Zhao et al., CVPR 2023).

Stored images hold several small ones each; prototypes are matched in networks of a queue that learn from real data on
the way, old ones leaving as new ones come; and the more a network knows, the more its cross-entropy counts, which holds
samples on their class's side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import at_least
from ..learning.augment import PLAIN, Strategy, strategy_for
from ..learning.gradients import Weights
from ..learning.inner import Batch, Learner
from ..learning.optim import Rule
from ..matching.features import match_prototypes
from ..networks import build_network
from ..seeding import generator
from .base import METHODS, Method
from .problem import Problem
from .real_features import real_batch
from .state import Metrics, State

NETWORK_RATE = 0.01
NETWORK_RULE = Rule("sgd", momentum=0.9, weight_decay=5e-4)
#: Networks in the queue before the first step.
FIRST_NETWORKS = 3


@dataclass(frozen=True)
class IDMConfig:
    """Keys of IDM; defaults as published for CIFAR-10 at IPC 10, its step for each class in turn made one joint step.

    Attributes:
        steps: iterations.
        learning_rate: of the image step, on NORMALISED pixels. The code's .2 with momentum .5, stepped class by class,
            is twice that in one joint step (fidelity.md, "The joint form").
        regularisation_weight: of a network's cross-entropy, times its accuracy in PERCENT: .5 at IPC 1 and 10, .1 at
            IPC 50 and for CIFAR-100 at IPC 10.
        real_batch: real images per class and step (5000 in the code at IPC 1).
        augment: DSA string; one of its operations is drawn per step, for real and synthetic alike.
        networks: of the queue at most; the oldest leaves.
        new_every: steps between two new networks (5 in the code at IPC 1).
        trained: networks that learn after each step.
        training_steps: of each of them (50 in the code for CIFAR-100 at IPC 10).
        training_batch: real images of all classes in each of these, not augmented.
    """

    steps: int = 20_000
    learning_rate: float = 0.4
    regularisation_weight: float = 0.5
    real_batch: int = 256
    augment: str = "color_crop_cutout_flip_scale_rotate"
    networks: int = 100
    new_every: int = 30
    trained: int = 2
    training_steps: int = 10
    training_batch: int = 256

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "real_batch", "networks", "new_every", "training_steps", "training_batch")
        at_least(self, 0, "learning_rate", "regularisation_weight", "trained")
        Strategy.parse(self.augment)


@dataclass(frozen=True)
class IDMState(State):
    """Images and the queue, oldest first.

    Attributes:
        queue, velocities: weights of each network and the memory of its optimiser.
        accuracies: `(Q,)` in 0..1, of each network on the last real batch it was given, before it learned from it.
    """

    queue: tuple[Weights, ...]
    velocities: tuple[Weights, ...]
    accuracies: Tensor


@METHODS.register("idm")
class IDM(Method[IDMState]):
    """Match prototypes in a queue of networks that learn from real data; values are not clamped, as published."""

    Config = IDMConfig
    State = IDMState
    clamps = False
    quick: ClassVar[Mapping[str, Any]] = {"networks": 4, "new_every": 2, "training_steps": 1, "training_batch": 16}

    def init(self, problem: Problem) -> IDMState:
        images = problem.initial_images()
        state = IDMState(0, images, (), (), images.new_zeros(0))
        for number in range(FIRST_NETWORKS):
            state = self._queued(problem, state, number)
        return state

    def step(self, problem: Problem, state: IDMState) -> tuple[IDMState, Metrics]:
        c, number = self.config, state.step
        turn, rest = divmod(number, c.new_every)
        if rest == 0:
            state = self._queued(problem, state, FIRST_NETWORKS + turn)
        member = int(torch.randint(len(state.queue), (), generator=generator(problem.seed, "network", number)))
        strategy = strategy_for(problem.spec, c.augment, single=True)
        real = real_batch(problem, state.queue[member], strategy, c.real_batch, number)
        stored = state.images.detach().requires_grad_()
        synthetic = problem.extractor.embed(state.queue[member], problem.decode(stored), real.draw)
        logits = problem.extractor.classify(state.queue[member], synthetic)
        weight = c.regularisation_weight * 100 * float(state.accuracies[member])
        terms = {
            "prototype": match_prototypes(real.features, synthetic),
            "regularisation": weight * regularisation(logits, torch.tensor(problem.classes, device=logits.device)),
        }
        loss = terms["prototype"] + terms["regularisation"]
        (gradient,) = torch.autograd.grad(loss, stored)
        images = stored.detach() - c.learning_rate * problem.units.square() * gradient
        metrics = Metrics.of(loss, terms, {"network": member, "accuracy": state.accuracies[member]})
        return self._trained(problem, state, number).advanced(images=images), metrics

    def passes(self, problem: Problem) -> int:
        c = self.config
        matching = len(problem.classes) * (2 * problem.samples + problem.batch_size(c.real_batch))
        batch = min(c.training_batch, len(problem.train))
        return c.steps * (matching + c.trained * (3 * c.training_steps + 1) * batch)

    def _queued(self, problem: Problem, state: IDMState, number: int) -> IDMState:
        """With the `number`-th network at the end of the queue."""
        network, kept = problem.fresh_network(number), self.config.networks
        accuracies = torch.cat([state.accuracies, state.accuracies.new_zeros(1)])[-kept:]
        velocity = self._learner(problem).init(network)
        queue, velocities = (*state.queue, network)[-kept:], (*state.velocities, velocity)[-kept:]
        return IDMState(state.step, state.images, queue, velocities, accuracies)

    def _trained(self, problem: Problem, state: IDMState, step: int) -> IDMState:
        """After some networks of the queue have learned from real images of all classes, whatever the shard."""
        queue, velocities, accuracies = list(state.queue), list(state.velocities), state.accuracies.clone()
        order = torch.randperm(len(queue), generator=generator(problem.seed, "trained networks", step))
        for member in order[: self.config.trained].tolist():
            *batches, last = self._batches(problem, step, member)
            learner = self._learner(problem)
            network, velocity, _ = learner.train(queue[member], velocities[member], batches)
            accuracies[member] = _accuracy(problem, network, last)
            queue[member], velocities[member], _ = learner.step(network, velocity, last, 0)
        return IDMState(state.step, state.images, tuple(queue), tuple(velocities), accuracies)

    def _batches(self, problem: Problem, step: int, member: int) -> Iterator[Batch]:
        images, labels = problem.resident_images, problem.train.labels.to(problem.runtime.device)
        for turn in range(self.config.training_steps):
            stream = generator(problem.seed, "queue", step, member, turn)
            index = torch.randperm(len(labels), generator=stream)[: self.config.training_batch].to(labels.device)
            yield Batch(images[index], labels[index], NETWORK_RATE, stream)

    def _learner(self, problem: Problem) -> Learner:
        return problem.kept(
            ("learner", self.name),
            lambda: Learner(
                build_network(problem.network, problem.spec, 0), problem.spec, problem.runtime, rule=NETWORK_RULE
            ),
        )


def regularisation(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits `(K, M, num_classes)`: class means, summed. A class's only sample counts while wrong."""
    samples = logits.shape[1]
    each = F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(samples), reduction="none")
    if samples == 1:
        each = each * (logits[:, 0].argmax(dim=1) != labels)
    return each.sum() / samples


@torch.no_grad()
def _accuracy(problem: Problem, network: Weights, batch: Batch) -> Tensor:
    """Share of a real batch that the network classifies rightly."""
    features = problem.extractor.embed(network, batch.images[None], PLAIN)
    return (problem.extractor.classify(network, features)[0].argmax(dim=1) == batch.labels).float().mean()
