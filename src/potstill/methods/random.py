"""The two Random rows: real images as they are, and the undistilled mosaic at the same factor and storage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import METHODS, Method
from .problem import Problem
from .state import State


@dataclass(frozen=True)
class RandomConfig:
    """Random has nothing to set: draws follow the run's seed."""


@METHODS.register("random")
class Random(Method[State]):
    """IPC whole real samples per class, factor 1 whatever the problem says."""

    Config = RandomConfig
    uses_factor: ClassVar[bool] = False

    def init(self, problem: Problem) -> State:
        return State(0, problem.initial_images(kind="real", whole=True))


@METHODS.register("random_mix")
class RandomMix(Method[State]):
    """The undistilled initialisation: down-sized real samples in a mosaic, at the problem's factor."""

    Config = RandomConfig

    def init(self, problem: Problem) -> State:
        return State(0, problem.initial_images(kind="mix"))
