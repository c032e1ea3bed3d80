"""Stored numbers in few bits: a level for each, and for each group of them the scale and offset of its levels.

What is rounded is what a set stores, whatever its parameterisation, and never the samples that it decodes to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, UsageError

MOST_BITS = 8


@dataclass(frozen=True, eq=False)
class Levels:
    """Numbers of one shape as `offset + scale * level`.

    Attributes:
        levels: uint8, 0 to 2 ** bits - 1.
        groups: broadcasts to the shape of `levels`; which of the G groups each number belongs to.
        offset, scale: `(G,)` fp32 of each group.
        bits: of a level, 1 to 8.
    """

    levels: Tensor
    groups: Tensor
    offset: Tensor
    scale: Tensor
    bits: int

    def numbers(self) -> Tensor:
        """The fp32 numbers that the levels stand for."""
        return self.offset[self.groups] + self.scale[self.groups] * self.levels.float()

    @property
    def bytes_stored(self) -> int:
        """Of the levels without gaps, and of scales and offsets."""
        return math.ceil(self.levels.numel() * self.bits / 8) + self.offset.nbytes + self.scale.nbytes

    def to_tensors(self) -> dict[str, Tensor]:
        """As a file holds them: `levels` packed into bytes, the last one filled up with zeros."""
        rows = np.unpackbits(self.levels.numpy().reshape(-1, 1), axis=1)[:, 8 - self.bits :]
        return {"levels": torch.from_numpy(np.packbits(rows)), "offset": self.offset, "scale": self.scale}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor], bits: int, groups: Tensor, shape: tuple[int, ...]) -> Levels:
        """The inverse of `to_tensors`.

        Raises:
            ValueError: tensors that do not fit the bits, groups and shape.
        """
        _check_bits(bits)
        count, sizes = math.prod(shape), (int(groups.max()) + 1,)
        packed, offset, scale = tensors["levels"], tensors["offset"], tensors["scale"]
        if packed.dtype != torch.uint8 or packed.shape != (math.ceil(count * bits / 8),):
            raise ValueError(f"levels of shape {tuple(packed.shape)} do not hold {count} numbers of {bits} bits")
        for name, values in (("offset", offset), ("scale", scale)):
            if values.dtype != torch.float32 or values.shape != sizes or not values.isfinite().all():
                raise ValueError(f"{name} of shape {tuple(values.shape)}, expected {sizes[0]} finite floats")
        rows = np.unpackbits(packed.numpy(), count=count * bits).reshape(-1, bits)
        levels = np.packbits(rows, axis=1)[:, 0] >> (8 - bits)
        return Levels(torch.from_numpy(levels).reshape(shape), groups, offset, scale, bits)


def quantise(numbers: Tensor, groups: Tensor, bits: int) -> Levels:
    """The nearest levels; those of a group go in even steps from its smallest number to its largest.

    Raises:
        UsageError: bits outside 1 to 8.
        DataError: numbers that are not finite.
    """
    _check_bits(bits)
    if not numbers.isfinite().all():
        raise DataError("the set stores NaN or infinite numbers, which no level stands for: expected finite ones")
    # float64: the nearest level, also where a group is narrow beside its distance from zero.
    numbers, top = numbers.detach().cpu().double(), 2**bits - 1
    index = groups.expand(numbers.shape).flatten()
    ends = numbers.new_zeros(int(groups.max()) + 1)
    low = ends.scatter_reduce(0, index, numbers.flatten(), "amin", include_self=False).float()
    high = ends.scatter_reduce(0, index, numbers.flatten(), "amax", include_self=False)
    scale = ((high - low.double()) / top).float()
    steps = (numbers - low.double()[groups]) / scale.double()[groups]
    levels = steps.nan_to_num(0).round().clamp(0, top).to(torch.uint8)  # 0 / 0: a group of equal numbers
    return Levels(levels, groups, low, scale, bits)


def _check_bits(bits: int) -> None:
    if not isinstance(bits, int) or not 1 <= bits <= MOST_BITS:
        raise UsageError(f"stored bits {bits}: need a whole number of 1 to {MOST_BITS}")
