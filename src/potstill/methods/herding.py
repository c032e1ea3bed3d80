"""Herding (Welling, ICML 2009; as in iCaRL): the chosen images' running mean stays as near the class mean as it can."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import METHODS
from .coreset import Coreset, first_smallest


@METHODS.register("herding")
class Herding(Coreset):
    """Greedy herding on the features of a trained network, per class."""

    def select(self, features: Tensor, count: int) -> Tensor:
        return herd(features, count)


def herd(features: Tensor, count: int) -> Tensor:
    """Indices `(count,)` of `features` `(N, D)`: the k-th is the unused row that brings the sum of k rows nearest to k
    times the mean. Equal rows are taken in order."""
    mean, total = features.mean(dim=0), torch.zeros_like(features[0])
    unused = torch.ones(len(features), dtype=torch.bool, device=features.device)
    chosen = []
    for k in range(1, count + 1):
        distance = (features - (k * mean - total)).square().sum(dim=1)
        best = first_smallest(torch.where(unused, distance, torch.inf))
        chosen.append(best)
        unused[best] = False
        total = total + features[best]
    return torch.stack(chosen)
