"""Gradient descent on pixels, as pure functions of tensors so that its memory can live in a State."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UsageError


@dataclass(frozen=True)
class Descent:
    """How stored images follow their gradient.

    Attributes:
        optimizer: "sgd" or "adam" (betas .9 and .999).
        rate: learning rate at the first step.
        momentum: of SGD.
        decay: "none", or "linear" to zero after `steps`.
    Raises:
        UsageError: an unknown choice or a number out of range, by the name of the method's key.
    """

    optimizer: str
    rate: float
    momentum: float
    decay: str
    steps: int

    def __post_init__(self) -> None:
        for name, value, known in (
            ("optimizer", self.optimizer, ("sgd", "adam")),
            ("decay", self.decay, ("none", "linear")),
        ):
            if value not in known:
                raise UsageError(f"method.{name}={value!r}: use one of {', '.join(known)}")
        if not 0 <= self.rate < math.inf:
            raise UsageError(f"method.learning_rate={self.rate:g}: need a finite number of at least 0")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"method.momentum={self.momentum:g}: need a number from 0 to below 1")

    def init(self, images: Tensor) -> Tensor:
        """The optimiser's memory: one buffer shaped like `images` for SGD with momentum, two for Adam, else none."""
        count = 2 if self.optimizer == "adam" else int(self.momentum > 0)
        return images.new_zeros(count, *images.shape)

    def rate_at(self, step: int) -> float:
        """Learning rate of step `step`, counted from 0."""
        return self.rate * (1 - step / self.steps) if self.decay == "linear" else self.rate

    def __call__(self, images: Tensor, gradient: Tensor, memory: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Images and memory after one update."""
        if self.optimizer == "adam":
            return self._adam(images, gradient, memory, step)
        if self.momentum > 0:
            memory = self.momentum * memory + gradient
            gradient = memory[0]
        return images - self.rate_at(step) * gradient, memory

    def _adam(self, images: Tensor, gradient: Tensor, memory: Tensor, step: int) -> tuple[Tensor, Tensor]:
        first = 0.9 * memory[0] + 0.1 * gradient
        second = 0.999 * memory[1] + 0.001 * gradient.square()
        unbiased_first, unbiased_second = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        update = unbiased_first / (unbiased_second.sqrt() + 1e-8)
        return images - self.rate_at(step) * update, torch.stack([first, second])
