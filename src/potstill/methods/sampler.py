"""Class batches, as pure functions of a seed and labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import DataError
from ..seeding import generator


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
            raise DataError(f"class {self._names[cls]!r} has {found} images, {count} needed: lower ipc or factor")

    def batch(self, cls: int, step: int, size: int) -> Tensor:
        """Positions `(size,)` of images of class `cls` for `step` >= 0.

        An epoch is as many whole batches as the class holds; what is left over waits for the next order. A class of
        fewer images than `size` goes on through as many orders as it takes, none of them cut short.
        """
        self.require(cls, 1)
        count = len(self._members[cls])
        if size <= count:
            epoch, part = divmod(step, count // size)
            return self._order(cls, epoch)[part * size : (part + 1) * size]
        begin, end = step * size, (step + 1) * size
        orders = [self._order(cls, epoch) for epoch in range(begin // count, -(-end // count))]
        return torch.cat(orders)[begin % count :][:size]

    def _order(self, cls: int, epoch: int) -> Tensor:
        if self._orders.get(cls, (None,))[0] != epoch:
            members = self._members[cls]
            order = torch.randperm(len(members), generator=generator(self._seed, "batch", cls, epoch))
            self._orders[cls] = (epoch, members[order])
        return self._orders[cls][1]
