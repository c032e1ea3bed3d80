"""What a network sees of a batch: the one place where stored images are standardised, augmented and mixed.

Training, scoring, matching features and matching gradients all look through a `View`, inside their own graphs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..spec import DatasetSpec, normalise, to_pixels
from . import augment


class Mix(NamedTuple):
    """One CutMix draw (Yun et al., 2019): whose box is pasted into whom, and what that leaves of the first label."""

    partner: Tensor  # (B,) index of the image whose box is pasted
    box: Tensor  # top, bottom, left, right; empty for a batch that is not mixed
    kept: float  # share of the first label


class View:
    """Normalisation and augmentation of one data set.

    Args:
        spec: gives mean and deviation.
        device: where the images lie.
    """

    def __init__(self, spec: DatasetSpec, device: str):
        self.mean, self.std = torch.tensor(spec.mean, device=device), torch.tensor(spec.std, device=device)

    def __call__(self, images: Tensor, operations: tuple[str, ...] = (), uniform: Tensor | None = None) -> Tensor:
        """Standardised images `(B, C, H, W)` of stored ones (uint8 or pixels), one row of `uniform` each if augmented.

        Keeps gradients to the pixels.
        """
        x = normalise(to_pixels(images), self.mean, self.std)
        return x if uniform is None else augment.apply(x, operations, uniform)

    def mixed(
        self, images: Tensor, operations: tuple[str, ...], uniform: Tensor, partner: Tensor, box: Tensor
    ) -> Tensor:
        """As above, and the partner's `box` pasted into each image: CutMix."""
        x = self(images, operations, uniform)
        rows = torch.arange(x.shape[2], device=x.device)
        columns = torch.arange(x.shape[3], device=x.device)
        inside = ((rows >= box[0]) & (rows < box[1]))[:, None] & ((columns >= box[2]) & (columns < box[3]))
        return torch.where(inside, x[partner], x)


def draw_mix(probability: float, height: int, width: int, size: int, stream: torch.Generator) -> Mix:
    """One box for the whole batch, its area uniform (Beta(1, 1)), with probability `probability`."""
    u = torch.rand(4, generator=stream).tolist()
    partner = torch.randperm(size, generator=stream)
    if u[0] >= probability:
        return Mix(partner, torch.zeros(4, dtype=torch.long), 1.0)
    share = math.sqrt(1 - u[1])
    cut_h, cut_w = int(height * share), int(width * share)
    y, x = int(u[2] * height), int(u[3] * width)
    top, bottom = max(y - cut_h // 2, 0), min(y + cut_h // 2, height)
    left, right = max(x - cut_w // 2, 0), min(x + cut_w // 2, width)
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return Mix(partner, torch.tensor([top, bottom, left, right]), kept)
