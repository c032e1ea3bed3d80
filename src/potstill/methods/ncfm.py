"""NCFM: dataset distillation with neural characteristic function matching (Wang et al., CVPR 2025).

Features of real and synthetic samples are compared through their characteristic functions, in networks between initial
and trained weights, as in DANCE, whose calibration follows. Frequencies are normal draws; or a small network proposes
them, which learns to find those at which the two differ most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import at_least, share
from ..learning.augment import Strategy, strategy_for
from ..learning.gradients import Weights
from ..learning.optim import Rule
from ..matching.frequencies import match_characteristic_functions
from ..seeding import generator
from .base import METHODS, Method
from .experts import calibration, mixed, require_initial
from .problem import Problem
from .real_features import real_batch
from .state import Metrics, State

#: Of the matching loss, in the published code.
SCALE = 300.0
IMAGES = Rule("adamw", weight_decay=5e-4)
#: How the proposing network climbs, and layers it has.
CLIMB, CLIMB_RATE, LAYERS = Rule("sgd", momentum=0.5), 1e-3, 3
#: The code repeats each proposed frequency so often, which changes no mean: here fewer are proposed.
REPEATED = 16
#: What counts as a smaller loss, relatively.
THRESHOLD = 1e-4


@dataclass(frozen=True)
class NCFMConfig:
    """Keys of NCFM; defaults as in the published code, its steps for each class in turn made one joint step.

    Attributes:
        steps: iterations, two image steps each.
        learning_rate: of AdamW stepped class by class, as published; a joint step takes it times the root of the number
            of classes, which goes as far.
        patience: steps without a smaller loss before the rate is halved; 0 for never.
        frequencies: normal draws at each step.
        sampler: propose frequencies by a network that is trained against the set, as in the paper; the code's recipes
            have it off.
        phase: share of the phase in the loss; the rest is the amplitude's.
        calibration_weight: of the expert's cross-entropy; 0 leaves the second image step out.
        real_batch: real images per class and step.
        augment: DSA string, one draw for real and synthetic alike, and another one for the calibration.
    """

    steps: int = 20_000
    learning_rate: float = 0.001
    patience: int = 500
    frequencies: int = 4096
    sampler: bool = False
    phase: float = 0.5
    calibration_weight: float = 1.0
    real_batch: int = 1024
    augment: str = "color_crop_cutout"

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "real_batch")
        at_least(self, 2 * REPEATED if self.sampler else 1, "frequencies")
        at_least(self, 0, "learning_rate", "patience", "calibration_weight")
        share(self, "phase")
        Strategy.parse(self.augment)


@dataclass(frozen=True)
class NCFMState(State):
    """Images, the optimiser's memory, what decides on the rate, and the network that proposes frequencies.

    Attributes:
        memory: `(2, K, ...)` of AdamW.
        halvings: of the rate so far; waited: steps since the smallest loss, which is `best`.
        sampler, velocity: weights and memory of the proposing network; empty without one.
    """

    memory: Tensor
    halvings: Tensor
    waited: Tensor
    best: Tensor
    sampler: Weights
    velocity: Weights


@METHODS.register("ncfm")
class NCFM(Method[NCFMState]):
    """Match characteristic functions in networks between initial and trained weights, then calibrate by the latter."""

    Config = NCFMConfig
    State = NCFMState
    needs_pool = True
    independent_classes = False  # one rate and one proposing network for all
    quick: ClassVar[Mapping[str, Any]] = {"learning_rate": 0.05, "frequencies": 64}

    def init(self, problem: Problem) -> NCFMState:
        require_initial(problem.require_pool(self.name), self.name)
        problem.require_logits(self.config.calibration_weight)
        images = problem.initial_images()
        sampler = first_sampler(problem) if self.config.sampler else {}
        halvings, waited, best = images.new_tensor(0).long(), images.new_tensor(0).long(), images.new_tensor(math.inf)
        return NCFMState(0, images, IMAGES.init(images), halvings, waited, best, sampler, CLIMB.init(sampler))

    def step(self, problem: Problem, state: NCFMState) -> tuple[NCFMState, Metrics]:
        c, pool, number = self.config, problem.require_pool(self.name), state.step
        run, strategy = pool.draw_run(problem.seed, number), strategy_for(problem.spec, c.augment)
        initial, expert = pool.members[run[0]], pool.members[run[-1]]
        share = torch.rand((), generator=generator(problem.seed, "mix", number)).item()
        between = mixed(initial, expert, share)
        rate = c.learning_rate * math.sqrt(problem.spec.num_classes) * 0.5 ** int(state.halvings)

        real = real_batch(problem, between, strategy, c.real_batch, number)
        stored = state.images.detach().requires_grad_()
        synthetic = problem.extractor.embed(between, problem.decode(stored), real.draw)
        proposer = {name: value.detach().requires_grad_() for name, value in state.sampler.items()}
        frequencies = self._frequencies(problem, proposer, number, synthetic.shape[2])
        matching = SCALE * match_characteristic_functions(real.features, synthetic, frequencies, c.phase)
        gradient, *climb = torch.autograd.grad(matching, [stored, *proposer.values()])
        images, memory = _moved(problem, stored, gradient, state.memory, rate, 2 * number)
        sampler, velocity = CLIMB.updated(
            state.sampler,
            {name: -value for name, value in zip(proposer, climb, strict=True)},
            state.velocity,
            rate=CLIMB_RATE,
            step=number,
        )
        terms = {"characteristic": matching}

        if c.calibration_weight:
            draw = problem.class_draw(strategy, -1 - number)  # no real batch has a negative number
            stored = images.requires_grad_()
            terms["calibration"] = c.calibration_weight * calibration(problem, expert, problem.decode(stored), draw)
            (gradient,) = torch.autograd.grad(terms["calibration"], stored)
            images, memory = _moved(problem, stored, gradient, memory, rate, 2 * number + 1)

        loss = torch.stack(list(terms.values())).sum().detach()
        halvings, waited, best = self._patience(state, loss)
        after = state.advanced(
            images=images,
            memory=memory,
            halvings=halvings,
            waited=waited,
            best=best,
            sampler=sampler,
            velocity=velocity,
        )
        return after, Metrics.of(loss, terms, {"network": run[-1], "initial": share, "rate": rate})

    def passes(self, problem: Problem) -> int:
        c = self.config
        synthetic = problem.samples * (4 if c.calibration_weight else 2)
        return c.steps * len(problem.classes) * (synthetic + problem.batch_size(c.real_batch))

    def _frequencies(self, problem: Problem, proposer: Weights, step: int, width: int) -> Tensor:
        """`(T, D)`: normal draws, or what the proposing network makes of fewer."""
        count = self.config.frequencies // (REPEATED if proposer else 1)
        drawn = torch.randn(count, width, generator=generator(problem.seed, "frequencies", step))
        drawn = drawn.to(problem.runtime.device)
        return proposed(proposer, drawn) if proposer else drawn

    def _patience(self, state: NCFMState, loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Halvings, steps waited and the smallest loss after one more: the rate falls where the loss no longer does."""
        smaller = loss < state.best * (1 - THRESHOLD)
        waited = torch.where(smaller, 0, state.waited + 1)
        over = (waited > self.config.patience) & (self.config.patience > 0)
        best = torch.where(smaller, loss, state.best)
        return state.halvings + over.long(), torch.where(over, 0, waited), best


def first_sampler(problem: Problem) -> dict[str, Tensor]:
    """The proposing network as initialised: linear layers as wide as the features, each followed by batch norm."""
    width, stream = problem.extractor.network.feature_width, generator(problem.seed, "frequency sampler")
    reach, weights = 1 / math.sqrt(width), {}
    for i in range(LAYERS):
        weights[f"layer{i}.weight"] = (2 * torch.rand(width, width, generator=stream) - 1) * reach
        weights[f"layer{i}.bias"] = (2 * torch.rand(width, generator=stream) - 1) * reach
        weights[f"layer{i}.scale"], weights[f"layer{i}.shift"] = torch.ones(width), torch.zeros(width)
    return {name: value.to(problem.runtime.device) for name, value in weights.items()}


def proposed(weights: Weights, noise: Tensor) -> Tensor:
    """Frequencies in -1..1 from normal draws, `(T, D)` each: batch norm, leaky ReLU, at the end tanh."""
    x = noise
    for i in range(LAYERS):
        x = F.linear(x, weights[f"layer{i}.weight"], weights[f"layer{i}.bias"])
        x = F.batch_norm(x, None, None, weights[f"layer{i}.scale"], weights[f"layer{i}.shift"], training=True)
        x = F.leaky_relu(x, 0.2) if i < LAYERS - 1 else x.tanh()
    return x


def _moved(
    problem: Problem, stored: Tensor, gradient: Tensor, memory: Tensor, rate: float, step: int
) -> tuple[Tensor, Tensor]:
    values = stored.detach()
    direction, memory = IMAGES.direction(values, gradient, memory, step)
    return problem.clamp(values - rate * direction), memory
