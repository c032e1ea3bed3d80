"""CAFE: learning to condense dataset by aligning features (Wang et al., CVPR 2022).

Class means of the maps of every block are matched, and synthetic centres are asked to tell real features apart. The
network trains on the synthetic set between image steps; how long, and how many image steps it serves, is settled by how
much its accuracy on real images still changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import at_least, share
from ..learning.augment import PLAIN, Strategy, strategy_for
from ..learning.gradients import Weights
from ..learning.inner import Batch, Learner, epoch_of
from ..learning.optim import Descent, Rule
from ..matching.alignment import align_levels, discriminate
from ..networks import build_network
from ..seeding import derive
from .base import METHODS, Method
from .problem import Problem
from .state import Metrics, State

NETWORK_RATE, NETWORK_BATCH = 0.01, 256
#: Shares of the steps after which the image rate is halved (published: after 1200, 1600 and 1800 of 2000 networks).
HALVED_AT = (0.6, 0.8, 0.9)


@dataclass(frozen=True)
class CAFEConfig:
    """Keys of CAFE; defaults as published.

    Attributes:
        steps: image steps in all; each of the published 2000 networks takes `window` of them at least.
        descent: the image step, on NORMALISED pixels, the rate halved after .6, .8 and .9 of the steps.
        real_batch: real images per class and step.
        lower_weight: of the maps before pooling of all blocks but the last.
        upper_weight: of the last block's map before pooling, the same after it, and the features.
        discrimination_weight: of the cross-entropy of real features against synthetic centres, summed over them.
        window: accuracies in a row that are compared.
        check_batch: real images per class that an accuracy is measured on.
        outer_spread: a network has served when its last accuracies, after one image step each, lie within this.
        inner_spread: between two image steps it trains until its last accuracies, after one epoch each, differ by more.
        most_outer: image steps that a network serves at most.
        most_inner: epochs that it trains at most between two of them.
        augment: DSA string; one of its operations is drawn for each step, for real and synthetic alike, and for each
            batch that the network trains on.
    """

    steps: int = 20_000
    descent: Descent = Descent(0.1, momentum=0.5)
    real_batch: int = 256
    lower_weight: float = 0.1
    upper_weight: float = 1.0
    discrimination_weight: float = 0.01
    window: int = 10
    check_batch: int = 128
    outer_spread: float = 0.04
    inner_spread: float = 0.03
    most_outer: int = 100
    most_inner: int = 100
    augment: str = "none"

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "real_batch", "window", "check_batch", "most_outer", "most_inner")
        at_least(self, 0, "lower_weight", "upper_weight", "discrimination_weight")
        share(self, "outer_spread", "inner_spread")
        Strategy.parse(self.augment)


@dataclass(frozen=True)
class CAFEDSAConfig(CAFEConfig):
    """Keys as in `CAFEConfig`; all six operations are in use."""

    augment: str = "color_crop_cutout_flip_scale_rotate"


@dataclass(frozen=True)
class CAFEState(State):
    """Images, the optimiser's memory `(0..2, K, ...)`, and the network in training.

    Attributes:
        accuracies: `(n,)` on real images, after each of the image steps that the network has served.
    """

    memory: Tensor
    network: Weights
    accuracies: Tensor


@METHODS.register("cafe")
class CAFE(Method[CAFEState]):
    """Align class means of maps at every depth, in networks that train on the synthetic set as long as it teaches."""

    Config = CAFEConfig
    State = CAFEState
    clamps = False
    independent_classes = False
    quick: ClassVar[Mapping[str, Any]] = {"window": 2, "check_batch": 8, "most_inner": 2}

    def check(self, problem: Problem) -> None:
        super().check(problem)
        with torch.no_grad():  # a network of one's own may have no maps
            problem.extractor.network.maps(torch.zeros(1, *problem.spec.shape, device=problem.runtime.device))

    def init(self, problem: Problem) -> CAFEState:
        images = problem.initial_images()
        memory = self.config.descent.init(images)
        return CAFEState(0, images, memory, problem.fresh_network(0), images.new_zeros(0))

    def step(self, problem: Problem, state: CAFEState) -> tuple[CAFEState, Metrics]:
        stored = state.images.detach().requires_grad_()
        terms = self._terms(problem, state.network, problem.decode(stored), state.step)
        loss = torch.stack(list(terms.values())).sum()
        (gradient,) = torch.autograd.grad(loss, stored)
        scaled = gradient * problem.units.square()
        descent, steps = self._descent_at(state.step), self.config.steps
        images, memory = descent(state.images, scaled, state.memory, step=state.step, steps=steps)
        accuracies = torch.cat([state.accuracies, self._accuracy(problem, state.network, state.step, 0)])
        notes = {"accuracy": accuracies[-1], "epochs": 0.0}
        if self._has_served(accuracies):
            network, accuracies = problem.fresh_network(state.step + 1), accuracies[:0]
        else:
            network, notes["epochs"] = self._trained(problem, state.network, images, state.step)
        after = state.advanced(images=images, memory=memory, network=network, accuracies=accuracies)
        return after, Metrics.of(loss, terms, notes)

    def passes(self, problem: Problem) -> int:
        """With as many epochs between image steps as the window has at least."""
        c = self.config
        checks = (1 + c.window) * problem.batch_size(c.check_batch)
        each = (2 + 3 * c.window) * problem.samples + problem.batch_size(c.real_batch) + checks
        return c.steps * len(problem.classes) * each

    def _terms(self, problem: Problem, network: Weights, samples: Tensor, step: int) -> dict[str, Tensor]:
        c = self.config
        draw = problem.class_draw(self._strategy(problem), step)
        real = problem.extractor.levels(network, problem.class_batches(c.real_batch, step), draw)
        synthetic = problem.extractor.levels(network, samples, draw)
        centres = synthetic.features.mean(dim=1)
        weights = [c.lower_weight] * (len(real.means) - 2) + [c.upper_weight] * 3
        alignment = align_levels([*real.means, real.features.mean(dim=1)], [*synthetic.means, centres], weights)
        return {
            "alignment": alignment,
            "discrimination": c.discrimination_weight * discriminate(real.features, centres),
        }

    def _accuracy(self, problem: Problem, network: Weights, step: int, epoch: int) -> Tensor:
        """The share `(1,)` of some real images that the network gets right, others for each epoch after each step."""
        number = step * (self.config.most_inner + 1) + epoch
        images = problem.class_batches(self.config.check_batch, number)
        features = problem.extractor.embed(network, images, PLAIN.repeat(len(images)))
        labels = torch.tensor(problem.classes, device=features.device)[:, None]
        return (problem.extractor.classify(network, features).argmax(dim=2) == labels).float().mean()[None]

    def _has_served(self, accuracies: Tensor) -> bool:
        c = self.config
        settled = len(accuracies) >= c.window and _spread(accuracies[-c.window :]) < c.outer_spread
        return settled or len(accuracies) >= c.most_outer

    def _trained(self, problem: Problem, network: Weights, images: Tensor, step: int) -> tuple[Weights, Tensor]:
        """The network after epochs on the synthetic set, and their number: until its accuracy has moved."""
        c, learner = self.config, self._learner(problem)
        accuracies = images.new_zeros(0)
        while len(accuracies) < c.most_inner:
            batches = self._epoch(problem, images, step, len(accuracies))
            network = learner.train(network, learner.init(network), batches).weights
            accuracies = torch.cat([accuracies, self._accuracy(problem, network, step, len(accuracies) + 1)])
            if len(accuracies) >= c.window and _spread(accuracies[-c.window :]) > c.inner_spread:
                break
        return network, torch.tensor(float(len(accuracies)))

    def _epoch(self, problem: Problem, images: Tensor, step: int, epoch: int) -> Iterator[Batch]:
        samples = problem.decode(images)
        labels = torch.tensor(problem.classes, device=images.device).repeat_interleave(samples.shape[1])
        seed = derive(problem.seed, "inner", step)
        for x, y, stream in epoch_of(samples.flatten(0, 1), labels, NETWORK_BATCH, seed, epoch):
            yield Batch(x, y, NETWORK_RATE, stream)

    def _learner(self, problem: Problem) -> Learner:
        def make() -> Learner:
            network = build_network(problem.network, problem.spec, 0)
            strategy = self._strategy(problem)
            return Learner(network, problem.spec, problem.runtime, rule=Rule("sgd"), strategy=strategy)

        return problem.kept(("learner", self.config.augment), make)

    def _strategy(self, problem: Problem) -> Strategy:
        return strategy_for(problem.spec, self.config.augment, single=True)

    def _descent_at(self, step: int) -> Descent:
        passed = sum(step >= share * self.config.steps for share in HALVED_AT)
        return replace(self.config.descent, learning_rate=self.config.descent.learning_rate * 0.5**passed)


@METHODS.register("cafe_dsa")
class CAFEDSA(CAFE):
    """CAFE with Siamese augmentation: real and synthetic batches of a class are augmented alike."""

    Config = CAFEDSAConfig


def _spread(accuracies: Tensor) -> float:
    return float(accuracies.max() - accuracies.min())
