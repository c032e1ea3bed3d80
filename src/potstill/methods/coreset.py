"""Coresets: whole real images, chosen per class by their features in a trained network.

A coreset method is a rule that picks rows of a feature matrix; this file supplies the features and the images. Like
`random`, a coreset is plain images (factor 1) whatever the problem's factor.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import at_least
from ..errors import UsageError
from ..learning.augment import PLAIN
from ..learning.gradients import Weights
from ..spec import to_pixels
from .base import Method
from .problem import Problem
from .state import State


@dataclass(frozen=True)
class CoresetConfig:
    """Keys of a coreset method.

    Attributes:
        member: which network of the pool gives the features, counted from 0.
    """

    member: int = 0

    def __post_init__(self) -> None:
        at_least(self, 0, "member")


class Coreset(Method[State]):
    """A method whose `init` is its result: the images that `select` picks."""

    Config = CoresetConfig
    needs_pool: ClassVar[bool] = True
    uses_seed: ClassVar[bool] = False
    uses_factor: ClassVar[bool] = False

    @abstractmethod
    def select(self, features: Tensor, count: int) -> Tensor:
        """Row numbers `(count,)` of `features` `(N, D)`, one class's real images, in the order of choice."""

    def check(self, problem: Problem) -> None:
        member, networks = self.config.member, len(problem.require_pool(self.name))
        if member >= networks:
            raise UsageError(f"method.member={member}: the pool has networks 0..{networks - 1}; raise pool.members")
        for cls in problem.classes:
            problem.sampler.require(cls, problem.ipc)

    def init(self, problem: Problem) -> State:
        self.check(problem)
        weights = problem.require_pool(self.name).members[self.config.member]
        return State(0, torch.stack([self._images_of(problem, weights, c) for c in problem.classes]))

    def _images_of(self, problem: Problem, weights: Weights, cls: int) -> Tensor:
        images = problem.resident_images[problem.sampler.indices(cls).to(problem.resident_images.device)]
        (features,) = problem.extractor.embed(weights, images[None], PLAIN)
        return to_pixels(images[self.select(features, problem.ipc)])

    def passes(self, problem: Problem) -> int:
        return sum(len(problem.sampler.indices(c)) for c in problem.classes)


def first_smallest(values: Tensor) -> Tensor:
    """Index of the smallest value, the first of equals: `argmin` may name any of them."""
    return (values == values.min()).nonzero()[0, 0]
