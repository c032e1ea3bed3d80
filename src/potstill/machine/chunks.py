"""Batches cut into pieces of one size: compiled graphs have static shapes, and a piece's maps stay near the core."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Chunk(NamedTuple):
    """A piece of some tensors of equal length; of its rows only the first `filled` count."""

    tensors: tuple[Tensor, ...]
    filled: int


def chunks(size: int, *tensors: Tensor) -> Iterator[Chunk]:
    """Pieces of exactly `size` rows, as `Runtime.chunk_of` gives it; the last is filled up by repetition."""
    # One split, not a slice per chunk: the gradient of a slice is as large as the whole set.
    for pieces in zip(*(t.split(size) for t in tensors), strict=True):
        filled = len(pieces[0])
        if filled < size:
            index = torch.arange(size, device=pieces[0].device) % filled
            pieces = tuple(piece[index] for piece in pieces)
        yield Chunk(pieces, filled)
