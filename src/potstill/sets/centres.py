"""Real samples to start from that stand for a class: those nearest to its k-means centres."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Side in pixels that samples are averaged down to: there lies most of what tells one from another in squared pixels.
SIDE = 8
#: Of Lloyd's algorithm at most; it has mostly settled after half as many.
ROUNDS = 20


def thumbnails(samples: Tensor) -> Tensor:
    """Samples `(N, C, H, W)` as points `(N, D)`: averaged down to at most `SIDE` pixels a side."""
    height, width = samples.shape[-2:]
    small = F.adaptive_avg_pool2d(samples, (min(SIDE, height), min(SIDE, width)))
    return small.flatten(1).double()


def nearest_to_centres(points: Tensor, count: int, stream: torch.Generator) -> Tensor:
    """Row numbers `(count,)` of `points` `(N, D)`: for each k-means centre in turn the nearest row not yet taken.

    Lloyd's algorithm from the starts of k-means++; a centre that loses all its points stays where it is.
    """
    centres = _starts(points, count, stream)
    for _ in range(ROUNDS):
        nearest = torch.cdist(points, centres).argmin(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        sizes = torch.bincount(nearest, minlength=count)[:, None]
        moved = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    distance = torch.cdist(centres, points)
    chosen = []
    for row in distance:
        chosen.append(row.argmin())
        distance[:, chosen[-1]] = torch.inf
    return torch.stack(chosen)


def _starts(points: Tensor, count: int, stream: torch.Generator) -> Tensor:
    """Rows drawn one by one, each with a probability that grows with its squared distance to those before it."""
    chosen = [torch.randint(len(points), (), generator=stream)]
    square = torch.full((len(points),), torch.inf, dtype=points.dtype)
    while len(chosen) < count:
        square = square.minimum((points - points[chosen[-1]]).square().sum(dim=1))
        tiny = torch.finfo(points.dtype).tiny  # where all points are equal, any will do
        chosen.append(torch.multinomial(square + tiny, 1, generator=stream)[0])
    return points[torch.stack(chosen)]
