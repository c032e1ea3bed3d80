"""The memory bank of historical prototypes: where a network has seen the synthetic classes before, DSDM Eq. (6-8)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import at_least, one_of, share
from ..matching.features import integrate_history, match_history
from ..matching.statistics import prototypes


@dataclass(frozen=True)
class HistoryConfig:
    """How prototypes are remembered and matched: a section of DSDM's keys.

    Attributes:
        weight: lambda_2 of Eq. (9); 0 drops the term.
        scope: "per_network" keeps prototypes for each pool member, "shared" one set for all.
        first: prototypes before the first step: "zero" (Eq. 8) or "prototype" (the first one computed).
        start: steps done before the term counts: 1 is the paper's t > 1.
        divide: divide the term by D, as the authors' code does. Not divided, most of the term is the difference between
            augmentation draws (fidelity.md, 3).
        features: prototypes to integrate come from "step" (those the loss used: no second pass), "plain" (after the
            step, not augmented: Eq. 7) or "augmented" (after the step, with a draw of its own).
        smoothing: alpha of Eq. (8).
    """

    weight: float = 0.2
    scope: str = "per_network"
    first: str = "prototype"
    start: int = 1
    divide: bool = True
    features: str = "step"
    smoothing: float = 0.99

    def __post_init__(self) -> None:
        one_of(self, ("per_network", "shared"), "scope")
        one_of(self, ("zero", "prototype"), "first")
        one_of(self, ("step", "plain", "augmented"), "features")
        at_least(self, 0, "weight", "start")
        share(self, "smoothing")


@dataclass(frozen=True)
class History:
    """Integrated prototypes of one slot per network, or of one that all networks share.

    Attributes:
        prototypes: `(slots, K, D)`, zero where there are none yet.
        updates: `(slots,)` int64, how often each slot was updated.
    """

    prototypes: Tensor
    updates: Tensor

    @classmethod
    def empty(cls, slots: int, like: Tensor, width: int) -> History:
        """Of the classes of stored numbers `like` `(K, ...)`, on their device."""
        return cls(like.new_zeros(slots, len(like), width), torch.zeros(slots, dtype=torch.long, device=like.device))

    def term(self, slot: int, synthetic: Tensor, config: HistoryConfig) -> Tensor:
        """Eq. (6), of features `(K, M, D)`; zero while the slot is empty, unless it begins with zeros."""
        if self.updates[slot] == 0 and config.first == "prototype":
            return synthetic.new_zeros(())
        return match_history(synthetic, self.prototypes[slot], divide=config.divide)

    def updated(self, slot: int, synthetic: Tensor, config: HistoryConfig) -> History:
        """After features `(K, M, D)` were seen, Eq. (8): at t = 1 `first` says what it begins with."""
        current = prototypes(synthetic)
        if self.updates[slot] == 0:
            new = current if config.first == "prototype" else torch.zeros_like(current)
        else:
            new = integrate_history(self.prototypes[slot], current, config.smoothing)
        history, updates = self.prototypes.clone(), self.updates.clone()
        history[slot], updates[slot] = new, updates[slot] + 1
        return History(history, updates)
