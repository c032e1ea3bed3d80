"""Gradient descent as pure functions of tensors, for stored samples and for the weights of networks alike.

A `Rule` turns a gradient into a direction and the memory of the next step; a `Descent` walks stored numbers along it at
a rate that may decay. Nothing is rewritten and nothing remembered elsewhere, so memory can live in a method's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from ..checks import at_least, one_of
from ..errors import UsageError

RULES = ("sgd", "adam", "adamw")


@dataclass(frozen=True)
class Rule:
    """An optimiser without its learning rate.

    Attributes:
        name: "sgd", "adam" or "adamw".
        momentum, nesterov: of SGD (dampening 0, as everywhere in the field).
        weight_decay: added to the gradient; by AdamW to the direction (decoupled).
        betas: of Adam and AdamW; epsilon is 1e-8.
    Raises:
        UsageError: an unknown name; the known are listed.
    """

    name: str = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise UsageError(f"optimizer={self.name!r}: use one of {', '.join(RULES)}")

    @property
    def buffers(self) -> int:
        """Numbers remembered for each number that is updated."""
        return int(self.momentum > 0) if self.name == "sgd" else 2

    @overload
    def init(self, values: Tensor) -> Tensor: ...
    @overload
    def init(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def init(self, values: Tensor | Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """The memory before the first step: zeros `(buffers, *shape)`, for each tensor of a mapping by its name."""
        if isinstance(values, Tensor):
            return values.new_zeros(self.buffers, *values.shape)
        return {name: self.init(value) for name, value in values.items()}

    def direction(self, values: Tensor, gradient: Tensor, memory: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """What to subtract, times the rate, from `values` at step `step` (from 0), and the memory after it."""
        if self.weight_decay and self.name != "adamw":
            gradient = gradient.add(values, alpha=self.weight_decay)
        if self.name == "sgd":
            return self._sgd(gradient, memory)
        direction, memory = self._adam(gradient, memory, step)
        if self.name == "adamw":
            direction = direction.add(values, alpha=self.weight_decay)
        return direction, memory

    def updated(
        self,
        values: Mapping[str, Tensor],
        gradient: Mapping[str, Tensor],
        memory: Mapping[str, Tensor],
        *,
        rate: float,
        step: int,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """A mapping of tensors and its memory after one step at `rate`."""
        moved, later = {}, {}
        for name, value in values.items():
            direction, later[name] = self.direction(value, gradient[name], memory[name], step)
            moved[name] = value.add(direction, alpha=-rate)
        return moved, later

    def _sgd(self, gradient: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        if self.momentum == 0:
            return gradient, memory
        memory = self.momentum * memory + gradient
        return gradient.add(memory[0], alpha=self.momentum) if self.nesterov else memory[0], memory

    def _adam(self, gradient: Tensor, memory: Tensor, step: int) -> tuple[Tensor, Tensor]:
        beta1, beta2 = self.betas
        first = beta1 * memory[0] + (1 - beta1) * gradient
        second = beta2 * memory[1] + (1 - beta2) * gradient.square()
        unbiased_first, unbiased_second = first / (1 - beta1 ** (step + 1)), second / (1 - beta2 ** (step + 1))
        return unbiased_first / (unbiased_second.sqrt() + 1e-8), torch.stack([first, second])


@dataclass(frozen=True)
class Descent:
    """How stored numbers follow their gradient: a section of a method's keys.

    Attributes:
        learning_rate: of the first step.
        optimizer: "sgd" or "adam" (betas .9 and .999).
        momentum: of "sgd".
        decay: of the rate: "none", or "linear" to zero after all steps.
    Raises:
        UsageError: an unknown choice or a number out of range, by the name of its key.
    """

    learning_rate: float
    optimizer: str = "sgd"
    momentum: float = 0.0
    decay: str = "none"

    def __post_init__(self) -> None:
        one_of(self, ("sgd", "adam"), "optimizer")
        one_of(self, ("none", "linear"), "decay")
        at_least(self, 0, "learning_rate")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum={self.momentum:g}: need a number from 0 to below 1")

    @property
    def rule(self) -> Rule:
        return Rule(self.optimizer, self.momentum)

    def init(self, images: Tensor) -> Tensor:
        """The optimiser's memory, see `Rule.init`."""
        return self.rule.init(images)

    def rate_at(self, step: int, steps: int) -> float:
        """Learning rate of step `step` of `steps`, counted from 0."""
        return self.learning_rate * (1 - step / steps) if self.decay == "linear" else self.learning_rate

    def __call__(
        self, images: Tensor, gradient: Tensor, memory: Tensor, *, step: int, steps: int
    ) -> tuple[Tensor, Tensor]:
        """Images and memory after update `step` of `steps`."""
        direction, memory = self.rule.direction(images, gradient, memory, step)
        return images - self.rate_at(step, steps) * direction, memory
