"""Stratified hold-outs, as pure functions of a seed and labels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DataError, UsageError
from ..seeding import generator
from ..spec import Split


def holdout_split(split: Split, amount: int | float, seed: int, *, per_class: bool = False) -> tuple[Split, Split]:
    """Set part of `split` aside, every class in its proportion; both parts keep the original order.

    Args:
        split: labels from 0.
        amount: a float in (0, 1) is a fraction, of which a class too small to be divided is spared; an integer is
            the number of images to hold out in total, or with `per_class` from each class.
        seed: the same seed, labels and amount hold out the same images.
    Returns:
        (rest, held_out).
    Raises:
        UsageError: an amount outside (0, 1), or one that comes to no image.
        DataError: a class would be left without an image.
    """
    counts = torch.bincount(split.labels)
    quotas = _quotas(counts, amount, per_class)
    held = torch.zeros(len(split), dtype=torch.bool)
    for label, (count, quota) in enumerate(zip(counts.tolist(), quotas.tolist(), strict=True)):
        if count and quota >= count:
            raise DataError(f"class {label} has {count} images: cannot hold out {quota} and keep at least one")
        members = (split.labels == label).nonzero().flatten()
        order = torch.randperm(count, generator=generator(seed, "holdout", label))
        held[members[order[:quota]]] = True
    return split.subset((~held).nonzero().flatten()), split.subset(held.nonzero().flatten())


def _quotas(counts: Tensor, amount: int | float, per_class: bool) -> Tensor:
    """How many to take of each class; shares are rounded so that they add up (largest remainders first)."""
    number = int(counts.sum())
    if isinstance(amount, float):
        if per_class or not 0 < amount < 1:
            raise UsageError(f"amount={amount}: a fraction must lie between 0 and 1 and is not combined with per_class")
        quotas = _shares(counts, round(amount * number)).minimum((counts - 1).clamp_min(0))
    elif per_class:
        quotas = torch.where(counts > 0, amount, 0)
    else:
        quotas = _shares(counts, amount)
    if amount <= 0 or not quotas.any():
        raise UsageError(f"amount={amount}: holds out none of {number} images, need at least 1")
    return quotas


def _shares(counts: Tensor, total: int) -> Tensor:
    exact = counts.double() * total / counts.sum()
    shares = exact.floor().long()
    largest = (exact - shares).argsort(descending=True, stable=True)
    shares[largest[: total - int(shares.sum())]] += 1
    return shares
