"""TGDD: trajectory-guided dataset distillation (AAAI 2026).

Prototypes are matched in a network at any moment of its training, from the first on, and the same run a little later
calibrates the set: what is matched and what is asked of the labels follow the stage of learning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..checks import at_least, share
from ..learning.augment import Strategy, strategy_for
from ..learning.pool import Pool
from ..matching.features import match_prototypes
from ..seeding import generator
from .base import METHODS, Method
from .experts import calibration, require_initial
from .problem import Problem
from .real_features import real_batch
from .state import Metrics, State


@dataclass(frozen=True)
class TGDDConfig:
    """Keys of TGDD; defaults as in the published code, its step for each class in turn made one joint step.

    Attributes:
        steps: iterations.
        learning_rate: at IPC 1; it grows with IPC. The code's .01 with momentum .5, stepped class by class, is twice
            that in one joint step (fidelity.md, "The joint form").
        calibration_weight: of the later network's cross-entropy: 1 in the code; the paper has 2.5 at IPC 1 and 10, .5
            at IPC 50.
        reach: how much later that network is at most, as a share of the training: the code's 6 of 60 epochs.
        real_batch: real images per class and step.
        synthetic_batch: at most so many decoded samples per class and step.
        augment: DSA string, one draw for real and synthetic alike.
    """

    steps: int = 10_000
    learning_rate: float = 0.02
    calibration_weight: float = 1.0
    reach: float = 0.1
    real_batch: int = 128
    synthetic_batch: int = 200
    augment: str = "color_crop_cutout"

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "real_batch", "synthetic_batch")
        at_least(self, 0, "learning_rate", "calibration_weight")
        share(self, "reach")
        Strategy.parse(self.augment)


@METHODS.register("tgdd")
class TGDD(Method[State]):
    """Match prototypes in networks at any moment of their training, calibrated by the same run a little later."""

    Config = TGDDConfig
    needs_pool = True
    quick: ClassVar[Mapping[str, Any]] = {"learning_rate": 0.1}

    def init(self, problem: Problem) -> State:
        require_initial(problem.require_pool(self.name), self.name)
        problem.require_logits(self.config.calibration_weight)
        return State(0, problem.initial_images())

    def step(self, problem: Problem, state: State) -> tuple[State, Metrics]:
        c, pool, strategy = (
            self.config,
            problem.require_pool(self.name),
            strategy_for(problem.spec, self.config.augment),
        )
        matching, later = self.draw(pool, problem.seed, state.step)
        stored = state.images.detach().requires_grad_()
        samples = problem.chosen_samples(problem.decode(stored), c.synthetic_batch, state.step)
        real = real_batch(problem, pool.members[matching], strategy, c.real_batch, state.step)
        given = samples.detach().requires_grad_()
        features = problem.extractor.embed(pool.members[matching], given, real.draw)
        terms = {"prototype": match_prototypes(real.features, features)}
        # Each gradient before the next network is loaded.
        (gradient,) = torch.autograd.grad(terms["prototype"], given)
        if c.calibration_weight:
            terms["calibration"] = c.calibration_weight * calibration(problem, pool.members[later], given, real.draw)
            gradient = gradient + torch.autograd.grad(terms["calibration"], given)[0]
        (gradient,) = torch.autograd.grad(samples, stored, gradient)
        images = problem.clamp(stored.detach() - c.learning_rate * problem.ipc * gradient)
        notes = {"network": matching, "later": later}
        return state.advanced(images=images), Metrics.of(torch.stack(list(terms.values())).sum(), terms, notes)

    def passes(self, problem: Problem) -> int:
        c = self.config
        synthetic = min(problem.samples, c.synthetic_batch) * (4 if c.calibration_weight else 2)
        return c.steps * len(problem.classes) * (synthetic + problem.batch_size(c.real_batch))

    def draw(self, pool: Pool, seed: int, step: int) -> tuple[int, int]:
        """Members a step matches in and calibrates by: a run at any of its moments, and within reach after it."""
        run, moments = pool.draw_run(seed, step), pool.moments or (0,)
        stream = generator(seed, "moments", step)
        first = int(torch.randint(len(run), (), generator=stream))
        limit = moments[first] + self.config.reach * moments[-1] + 1e-9
        within = sum(moment <= limit for moment in moments[first:])
        return run[first], run[first + int(torch.randint(within, (), generator=stream))]
