"""Luma and two chroma channels: an orthogonal basis of RGB, so that nearest in it is nearest in pixels.

The columns (1, 1, 1), sqrt(3/2) (1, 0, -1) and sqrt(1/2) (1, -2, 1) all have the length sqrt(3): luma is the mean of
the three colours, on their own scale, and a unit of chroma moves pixels as far as a unit of luma.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

COLUMNS = torch.tensor(
    [
        [1.0, math.sqrt(1.5), math.sqrt(0.5)],
        [1.0, 0.0, -2 * math.sqrt(0.5)],
        [1.0, -math.sqrt(1.5), math.sqrt(0.5)],
    ],
    dtype=torch.float64,
)

#: Largest size of either chroma channel for colours between 0 and 1.
CHROMA_REACH = (1 / (2 * math.sqrt(1.5)), 1 / (3 * math.sqrt(0.5)))


def to_rgb(luma_chroma: Tensor) -> Tensor:
    """`(..., 3, H, W)`, luma first."""
    return torch.einsum("rc,...chw->...rhw", COLUMNS.to(luma_chroma), luma_chroma)


def from_rgb(rgb: Tensor) -> Tensor:
    """The inverse of `to_rgb`."""
    return torch.einsum("rc,...rhw->...chw", COLUMNS.to(rgb) / 3, rgb)


def colour_lengths(std: tuple[float, ...]) -> list[float]:
    """How far a unit of luma and of either chroma moves a pixel whose colours are counted in deviations `std`."""
    return (COLUMNS / torch.tensor(std, dtype=torch.float64)[:, None]).norm(dim=0).tolist()
