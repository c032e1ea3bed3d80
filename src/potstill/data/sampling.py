"""Which images: stratified hold-outs and class batches, as pure functions of a seed and labels."""

from __future__ import annotations

from collections.abc import Sequence

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


class ClassSampler:
    """Batches of one class each, without replacement within an epoch, a new order every epoch.

    What `batch` returns depends on the seed, the class, the step and the size alone, never on earlier calls.
    So a resumed run and a shard of the classes see the batches of the one uninterrupted run.

    Args:
        labels: `(N,)`, from 0 to `num_classes` - 1.
        classes: names for error messages; the labels themselves where None.
    """

    def __init__(self, labels: Tensor, num_classes: int, seed: int, *, classes: Sequence[str] | None = None):
        counts = torch.bincount(labels.cpu(), minlength=num_classes)
        assert len(counts) == num_classes, f"label {len(counts) - 1} with {num_classes} classes"
        self._members = labels.cpu().argsort(stable=True).split(counts.tolist())
        self._names = list(classes) if classes else list(range(num_classes))
        self._seed = seed
        self._orders: dict[int, tuple[int, Tensor]] = {}

    def indices(self, cls: int) -> Tensor:
        """Positions `(n,)` of the images of class `cls`, ascending."""
        return self._members[cls]

    def require(self, cls: int, count: int) -> None:
        """Raises DataError unless class `cls` has at least `count` images."""
        found = len(self._members[cls])
        if found < count:
            raise DataError(f"class {self._names[cls]!r} has {found} images, {count} needed")

    def batch(self, cls: int, step: int, size: int) -> Tensor:
        """Positions `(size,)` of images of class `cls` for `step` >= 0; all of them where there are fewer than `size`.

        An epoch is as many whole batches as the class holds; what is left over waits for the next order.
        """
        self.require(cls, 1)
        epoch, part = divmod(step, max(1, len(self._members[cls]) // size))
        return self._order(cls, epoch)[part * size : (part + 1) * size]

    def _order(self, cls: int, epoch: int) -> Tensor:
        if self._orders.get(cls, (None,))[0] != epoch:
            members = self._members[cls]
            order = torch.randperm(len(members), generator=generator(self._seed, "batch", cls, epoch))
            self._orders[cls] = (epoch, members[order])
        return self._orders[cls][1]
