"""The memory bank of historical prototypes: where a network has seen the synthetic classes before, DSDM Eq. (6-8)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..matching.features import integrate_history, match_history
from ..matching.statistics import prototypes


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

    def term(self, slot: int, synthetic: Tensor, *, first: str, divide: bool) -> Tensor:
        """Eq. (6), of features `(K, M, D)`; zero while the slot is empty, unless it begins with zeros."""
        if self.updates[slot] == 0 and first == "prototype":
            return synthetic.new_zeros(())
        return match_history(synthetic, self.prototypes[slot], divide=divide)

    def updated(self, slot: int, synthetic: Tensor, *, first: str, smoothing: float) -> History:
        """After features `(K, M, D)` were seen, Eq. (8): at t = 1 `first` says what it begins with."""
        current = prototypes(synthetic)
        if self.updates[slot] == 0:
            new = current if first == "prototype" else torch.zeros_like(current)
        else:
            new = integrate_history(self.prototypes[slot], current, smoothing)
        history, updates = self.prototypes.clone(), self.updates.clone()
        history[slot], updates[slot] = new, updates[slot] + 1
        return History(history, updates)
