"""K-Center greedy (Sener and Savarese, ICLR 2018): no image of the class is far from the nearest chosen one."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import METHODS
from .coreset import Coreset, first_smallest


@METHODS.register("kcenter")
class KCenter(Coreset):
    """Greedy k-center on the features of a trained network, per class, starting nearest the class mean."""

    def select(self, features: Tensor, count: int) -> Tensor:
        return spread_centres(features, count)


def spread_centres(features: Tensor, count: int) -> Tensor:
    """Indices `(count,)` of `features` `(N, D)`: first the row nearest the mean, then always the row farthest from its
    nearest centre. Equal rows are taken in order; a chosen row is never chosen again."""
    chosen = [first_smallest(_distances(features, features.mean(dim=0)))]
    nearest = torch.full((len(features),), torch.inf, device=features.device)
    for _ in range(count - 1):
        nearest = torch.minimum(nearest, _distances(features, features[chosen[-1]]))
        nearest[torch.stack(chosen)] = -1.0  # below every distance, so that duplicates of a centre come first
        chosen.append(first_smallest(-nearest))
    return torch.stack(chosen)


def _distances(features: Tensor, point: Tensor) -> Tensor:
    """Squared distances `(N,)` of the rows to one point."""
    return (features - point).square().sum(dim=1)
