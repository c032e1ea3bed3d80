"""DM: dataset condensation with distribution matching (Zhao and Bilen, WACV 2023).

Match the class prototypes in the feature space of a freshly initialised network, another one at every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import at_least
from ..learning.augment import Strategy, strategy_for
from ..learning.optim import Descent
from ..matching.features import match_prototypes
from .base import METHODS, Method
from .problem import Problem
from .real_features import real_batch
from .state import Metrics, State


@dataclass(frozen=True)
class DMConfig:
    """Keys of DM; defaults as published, for factor 1 and any other.

    Attributes:
        steps: iterations, a new random network each.
        descent: the one joint step, on NORMALISED pixels (a rate of 10 in the paper's CIFAR-10 runs from IPC 100 on).
        real_batch: real images per class and step.
        augment: DSA string; one of its operations is drawn per step, for real and synthetic alike.
    """

    steps: int = 20000
    descent: Descent = Descent(1.0, momentum=0.5)
    real_batch: int = 256
    augment: str = "color_crop_cutout_flip_scale_rotate"

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "real_batch")
        Strategy.parse(self.augment)


@dataclass(frozen=True)
class DMState(State):
    """Images and the optimiser's memory `(0..2, K, IPC, C, H, W)`."""

    memory: Tensor


@METHODS.register("dm")
class DM(Method[DMState]):
    """Match prototypes in random networks; values are not clamped, as published."""

    Config = DMConfig
    State = DMState
    clamps = False

    def init(self, problem: Problem) -> DMState:
        images = problem.initial_images()
        return DMState(0, images, self.config.descent.init(images))

    def step(self, problem: Problem, state: DMState) -> tuple[DMState, Metrics]:
        weights = problem.fresh_network(state.step)
        strategy = strategy_for(problem.spec, self.config.augment, single=True)
        real = real_batch(problem, weights, strategy, self.config.real_batch, state.step)
        pixels = state.images.detach().requires_grad_()
        synthetic = problem.extractor.embed(weights, problem.decode(pixels), real.draw)
        loss = match_prototypes(real.features, synthetic)
        (gradient,) = torch.autograd.grad(loss, pixels)
        scaled = gradient * problem.units.square()
        descent, steps = self.config.descent, self.config.steps
        images, memory = descent(pixels.detach(), scaled, state.memory, step=state.step, steps=steps)
        return state.advanced(images=images, memory=memory), Metrics.of(loss)

    def passes(self, problem: Problem) -> int:
        each = 2 * problem.samples + problem.batch_size(self.config.real_batch)
        return self.config.steps * len(problem.classes) * each
