"""DCT coefficients at the positions that hold most of the training split (FreD, NeurIPS 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import UsageError
from ...spec import DatasetSpec, Split, to_pixels
from .base import PARAMETERISATIONS, Parameterisation, budget
from .colour import colour_lengths, from_rgb, to_rgb

#: Training images per chunk while positions are chosen.
CHUNK = 2048


@PARAMETERISATIONS.register("dct")
@dataclass(frozen=True)
class DCT(Parameterisation):
    """Coefficients of an orthonormal DCT-II of luma and chroma, at positions shared by all classes.

    Attributes:
        luma: coefficients of luma, or of the one channel of gray samples.
        chroma: coefficients of either chroma channel; gray samples have none.
        scale: stored numbers are coefficients divided by this, so that a learning rate that suits pixels suits them.
        luma_positions, chroma_positions: row x W + column of each, chosen by `fitted`.
    """

    name: ClassVar[str] = "dct"

    luma: int = 100
    chroma: int = 25
    scale: float = 4.0
    luma_positions: tuple[int, ...] = ()
    chroma_positions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for key, value, least in (("luma", self.luma, 1), ("chroma", self.chroma, 0)):
            if value < least:
                raise UsageError(f"parameterisation dct: {key}={value}, need at least {least} coefficients")
        if not 0 < self.scale < math.inf:
            raise UsageError(f"parameterisation dct: scale={self.scale:g}, need a finite number above 0")
        for key, count, found in (
            ("luma", self.luma, self.luma_positions),
            ("chroma", self.chroma, self.chroma_positions),
        ):
            if found and not (len(found) == len({*found}) == count and min(found) >= 0):
                raise UsageError(f"parameterisation dct: {key} has {len(found)} positions, need {count} different ones")

    def numbers(self, spec: DatasetSpec) -> int:
        """Numbers of one sample."""
        return self.luma + (2 * self.chroma if spec.shape[0] == 3 else 0)

    @property
    def shared_numbers(self) -> int:
        return len(self.luma_positions) + len(self.chroma_positions)

    def samples(self, ipc: int, spec: DatasetSpec) -> int:
        shared = self.luma + (self.chroma if spec.shape[0] == 3 else 0)
        return (budget(ipc, spec) * spec.num_classes - shared) // spec.num_classes // self.numbers(spec)

    def stored_shape(self, ipc: int, spec: DatasetSpec) -> tuple[int, ...]:
        return self.samples(ipc, spec), self.numbers(spec)

    def fitted(self, train: Split, spec: DatasetSpec) -> DCT:
        """With the positions that leave the least squared error on the training split: those of the largest squares.

        Chroma's are chosen by the sum of its two channels. Squares are about zero, as no mean is stored beside them.
        """
        square = torch.zeros(spec.shape, dtype=torch.float64)
        for images in train.images.split(CHUNK):
            square += _coefficients(_planes(to_pixels(images))).double().square().sum(dim=0)
        luma, chroma = _largest(square.flatten(1)[0], self.luma), _largest(square[1:].sum(dim=0).flatten(), self.chroma)
        return replace(self, luma_positions=luma, chroma_positions=chroma if spec.shape[0] == 3 else ())

    def encode(self, samples: Tensor, spec: DatasetSpec) -> Tensor:
        coefficients = _coefficients(_planes(samples)).flatten(3) / self.scale
        kept = [coefficients[:, :, 0, list(self.luma_positions)]]
        kept += [coefficients[:, :, c, list(self.chroma_positions)] for c in range(1, spec.shape[0])]
        return torch.cat(kept, dim=2)

    def decode(self, stored: Tensor, spec: DatasetSpec) -> Tensor:
        _, height, width = spec.shape
        luma, chroma = stored.split([self.luma, stored.shape[2] - self.luma], dim=2)
        planes = [luma @ self._basis(self.luma_positions, height, width, stored)]
        if spec.shape[0] == 3:
            basis = self._basis(self.chroma_positions, height, width, stored)
            planes += [part @ basis for part in chroma.split(self.chroma, dim=2)]
        samples = torch.stack(planes, dim=2).unflatten(3, (height, width))
        samples = to_rgb(samples) / math.sqrt(3) if spec.shape[0] == 3 else samples
        return samples.clamp(*spec.value_range)

    def scale_groups(self, spec: DatasetSpec) -> Tensor:
        """Each coefficient: low frequencies are many times as large as high ones."""
        return torch.arange(self.numbers(spec))

    def pictures(self, stored: Tensor, spec: DatasetSpec) -> Tensor:
        """Coefficients at their positions, lowest frequency top left: luma, and at its right each chroma."""
        gray, width = sum(spec.value_range) / 2, spec.shape[2]
        parts = zip(
            stored.split([self.luma, *[self.chroma] * (spec.shape[0] - 1)], dim=2),
            [self.luma_positions, *[self.chroma_positions] * (spec.shape[0] - 1)],
            strict=True,
        )
        planes = []
        for numbers, positions in parts:
            plane = stored.new_full((*stored.shape[:2], math.prod(spec.shape[1:])), gray)
            plane[..., list(positions)] = numbers + gray
            planes.append(plane.unflatten(2, (1, -1, width)))
        side = 1 + max(max(p // width, p % width) for p in self.luma_positions + self.chroma_positions)
        return torch.cat([plane[..., :side, :side] for plane in planes], dim=-1)

    def units(self, spec: DatasetSpec) -> Tensor:
        """By the length of what a coefficient adds to a normalised sample."""
        if spec.shape[0] == 1:
            return torch.full((self.luma,), spec.std[0] / self.scale)
        lengths = torch.tensor(colour_lengths(spec.std)) * (self.scale / math.sqrt(3))
        return (1 / lengths).repeat_interleave(torch.tensor([self.luma, self.chroma, self.chroma]))

    def check(self, spec: DatasetSpec) -> None:
        channels, height, width = spec.shape
        most = max(self.luma, self.chroma, *(p + 1 for p in self.luma_positions + self.chroma_positions))
        if most > height * width:
            raise UsageError(f"parameterisation dct: {most} coefficients on {height}x{width}, up to {height * width}")
        if channels not in (1, 3):
            raise UsageError(f"parameterisation dct: {spec.name} has {channels} channels, it takes 1 or 3; use tiles")

    def describe(self) -> str:
        return f"dct {self.luma} + 2 x {self.chroma}" if self.chroma_positions else f"dct {self.luma}"

    def _basis(self, positions: tuple[int, ...], height: int, width: int, like: Tensor) -> Tensor:
        """`(k, H W)`: the picture of each coefficient, in stored units."""
        return _pictures(positions, height, width, self.scale, like.dtype, like.device)


@lru_cache(maxsize=32)
def _pictures(
    positions: tuple[int, ...], height: int, width: int, scale: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    index = torch.tensor(positions, dtype=torch.long)
    rows, columns = _transform(height)[index // width], _transform(width)[index % width]
    return (scale * rows[:, :, None] * columns[:, None, :]).flatten(1).to(device, dtype)


@lru_cache
def _transform(side: int) -> Tensor:
    """The orthonormal DCT-II matrix `(side, side)`, a frequency a row."""
    frequency, position = torch.arange(side, dtype=torch.float64)[:, None], torch.arange(side, dtype=torch.float64)
    matrix = torch.cos(math.pi * frequency * (2 * position + 1) / (2 * side)) * math.sqrt(2 / side)
    matrix[0] /= math.sqrt(2)
    return matrix


def _planes(samples: Tensor) -> Tensor:
    """Luma and chroma in an orthonormal basis; one channel as it is."""
    return from_rgb(samples) * math.sqrt(3) if samples.shape[-3] == 3 else samples


def _coefficients(planes: Tensor) -> Tensor:
    rows, columns = (_transform(side).to(planes) for side in planes.shape[-2:])
    return rows @ planes @ columns.T


def _largest(square: Tensor, count: int) -> tuple[int, ...]:
    """Positions of the `count` largest, the first of equals, in order of position."""
    order = square.sort(descending=True, stable=True).indices[:count]
    return tuple(sorted(order.tolist()))
