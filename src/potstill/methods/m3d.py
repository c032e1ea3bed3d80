"""M3D: dataset condensation by minimising maximum mean discrepancy (Zhang et al., AAAI 2024).

All moments of the features at once, through a kernel, in networks that were never trained: a new one every few steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import at_least
from ..learning.augment import Strategy, strategy_for
from ..matching.kernels import match_kernel_means
from ..networks import build_network
from ..seeding import derive
from .base import METHODS, Method
from .problem import Problem
from .real_features import real_batch
from .state import Metrics, State


@dataclass(frozen=True)
class M3DConfig:
    """Keys of M3D; defaults as in the published code, its step for each class in turn made one joint step.

    Attributes:
        steps: iterations.
        steps_per_network: iterations on one freshly initialised network.
        learning_rate: per image of the budget: the rate is this times IPC. The code's 1 with momentum .5, stepped class
            by class, is 2 in one joint step (fidelity.md, "The joint form").
        real_batch: real images per class and step.
        augment: DSA string, one draw for real and synthetic alike.
    """

    steps: int = 10_000
    steps_per_network: int = 5
    learning_rate: float = 2.0
    real_batch: int = 128
    augment: str = "color_crop_cutout"

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "steps_per_network", "real_batch")
        at_least(self, 0, "learning_rate")
        Strategy.parse(self.augment)


@METHODS.register("m3d")
class M3D(Method[State]):
    """Match whole distributions through a Gaussian kernel, in random networks."""

    Config = M3DConfig

    def init(self, problem: Problem) -> State:
        return State(0, problem.initial_images())

    def step(self, problem: Problem, state: State) -> tuple[State, Metrics]:
        c = self.config
        seed = derive(problem.seed, "random network", state.step // c.steps_per_network)
        weights = build_network(problem.network, problem.spec, seed).state_dict()
        strategy = strategy_for(problem.spec, c.augment)
        real = real_batch(problem, weights, strategy, c.real_batch, state.step)
        stored = state.images.detach().requires_grad_()
        synthetic = problem.extractor.embed(weights, problem.decode(stored), real.draw)
        loss = match_kernel_means(real.features, synthetic)
        (gradient,) = torch.autograd.grad(loss, stored)
        return state.advanced(images=self._moved(problem, stored.detach(), gradient)), Metrics.of(loss)

    def passes(self, problem: Problem) -> int:
        each = 2 * problem.samples + problem.batch_size(self.config.real_batch)
        return self.config.steps * len(problem.classes) * each

    def _moved(self, problem: Problem, stored: Tensor, gradient: Tensor) -> Tensor:
        return problem.clamp(stored - self.config.learning_rate * problem.ipc * gradient)
