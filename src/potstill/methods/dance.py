"""DANCE: dual-view distribution alignment (Zhang et al., IJCAI 2024).

Prototypes are matched in a network between its initialisation and the end of its training, as if it had been trained
for a while (pseudo long-term distribution alignment); then the trained network itself, the expert, calibrates the set:
its cross-entropy holds samples on their class's side (distribution calibration).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import at_least
from ..learning.augment import Strategy, strategy_for
from ..matching.features import match_prototypes
from ..seeding import generator
from .base import METHODS, Method
from .experts import calibration, mixed, require_initial
from .problem import Problem
from .real_features import real_batch
from .state import Metrics, State


@dataclass(frozen=True)
class DANCEConfig:
    """Keys of DANCE; defaults as in the published code, its steps for each class in turn made one joint step.

    Attributes:
        steps: iterations, two image steps each.
        learning_rate: at IPC 1; it grows with IPC. The code's .01 with momentum .5, stepped class by class, is twice
            that in one joint step (fidelity.md, "The joint form").
        calibration_weight: of the expert's cross-entropy; 0 leaves the second image step out.
        real_batch: real images per class and step.
        synthetic_batch: at most so many decoded samples per class and step.
        augment: DSA string, one draw for real and synthetic alike, and another one for the calibration.
    """

    steps: int = 10_000
    learning_rate: float = 0.02
    calibration_weight: float = 1.0
    real_batch: int = 128
    synthetic_batch: int = 200
    augment: str = "color_crop_cutout"

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "real_batch", "synthetic_batch")
        at_least(self, 0, "learning_rate", "calibration_weight")
        Strategy.parse(self.augment)


@METHODS.register("dance")
class DANCE(Method[State]):
    """Match prototypes in networks between initial and trained weights, then calibrate by the trained ones."""

    Config = DANCEConfig
    needs_pool = True
    quick: ClassVar[Mapping[str, Any]] = {"learning_rate": 0.1}

    def init(self, problem: Problem) -> State:
        require_initial(problem.require_pool(self.name), self.name)
        problem.require_logits(self.config.calibration_weight)
        return State(0, problem.initial_images())

    def step(self, problem: Problem, state: State) -> tuple[State, Metrics]:
        c, pool, number = self.config, problem.require_pool(self.name), state.step
        run, strategy = pool.draw_run(problem.seed, number), strategy_for(problem.spec, c.augment)
        initial, expert = pool.members[run[0]], pool.members[run[-1]]
        share = torch.rand((), generator=generator(problem.seed, "mix", number)).item()
        between = mixed(initial, expert, share)

        real = real_batch(problem, between, strategy, c.real_batch, number)
        stored = state.images.detach().requires_grad_()
        samples = problem.chosen_samples(problem.decode(stored), c.synthetic_batch, number)
        matching = match_prototypes(real.features, problem.extractor.embed(between, samples, real.draw))
        images = self._moved(problem, stored, matching)
        terms = {"prototype": matching}

        if c.calibration_weight:
            again = -1 - number  # no real batch has a negative number
            stored = images.requires_grad_()
            samples = problem.chosen_samples(problem.decode(stored), c.synthetic_batch, again)
            draw = problem.class_draw(strategy, again)
            terms["calibration"] = c.calibration_weight * calibration(problem, expert, samples, draw)
            images = self._moved(problem, stored, terms["calibration"])
        metrics = Metrics.of(torch.stack(list(terms.values())).sum(), terms, {"network": run[-1], "initial": share})
        return state.advanced(images=images), metrics

    def passes(self, problem: Problem) -> int:
        c = self.config
        synthetic = min(problem.samples, c.synthetic_batch) * (4 if c.calibration_weight else 2)
        return c.steps * len(problem.classes) * (synthetic + problem.batch_size(c.real_batch))

    def _moved(self, problem: Problem, stored: Tensor, loss: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(loss, stored)
        return problem.clamp(stored.detach() - self.config.learning_rate * problem.ipc * gradient)
