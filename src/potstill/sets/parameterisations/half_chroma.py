"""Tiles with chroma at half resolution: eyes and networks need colour less finely than brightness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UsageError
from ...spec import DatasetSpec
from .base import PARAMETERISATIONS, Parameterisation, budget
from .colour import CHROMA_REACH, colour_lengths, from_rgb, to_rgb
from .tiles import SMALLEST_TILE, enlarging


@PARAMETERISATIONS.register("half_chroma")
@dataclass(frozen=True)
class HalfChroma(Parameterisation):
    """A luma tile and two chroma tiles of half its side for each sample: twice the samples of colour tiles.

    Attributes:
        luma: side of the luma tile in pixels.
        chroma: side of either chroma tile; half of luma's where 0.
    """

    name: ClassVar[str] = "half_chroma"

    luma: int = 16
    chroma: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "chroma", self.chroma or self.luma // 2)
        for key, value, least in (("luma", self.luma, SMALLEST_TILE), ("chroma", self.chroma, 1)):
            if value < least:
                raise UsageError(f"parameterisation half_chroma: {key}={value}, need a side of at least {least} pixels")

    @property
    def numbers(self) -> int:
        """Numbers of one sample."""
        return self.luma**2 + 2 * self.chroma**2

    def samples(self, ipc: int, spec: DatasetSpec) -> int:
        return budget(ipc, spec) // self.numbers

    def stored_shape(self, ipc: int, spec: DatasetSpec) -> tuple[int, ...]:
        return self.samples(ipc, spec), self.numbers

    def encode(self, samples: Tensor, spec: DatasetSpec) -> Tensor:
        planes = from_rgb(samples)
        luma = _shrunk(planes[:, :, :1], self.luma)
        chroma = _shrunk(planes[:, :, 1:], self.chroma)
        return torch.cat([luma.flatten(2), chroma.flatten(2)], dim=2)

    def decode(self, stored: Tensor, spec: DatasetSpec) -> Tensor:
        side, half = self.luma, self.chroma
        luma, chroma = stored.split([side**2, 2 * half**2], dim=2)
        size = spec.shape[1:]
        luma = _enlarged(luma.reshape(-1, 1, side, side), size)
        chroma = _enlarged(chroma.reshape(-1, 2, half, half), size)
        samples = to_rgb(torch.cat([luma, chroma], dim=1)).clamp(*spec.value_range)
        return samples.unflatten(0, stored.shape[:2])

    def scale_groups(self, spec: DatasetSpec) -> Tensor:
        """Luma and either chroma."""
        sizes = torch.tensor([self.luma**2, self.chroma**2, self.chroma**2])
        return torch.arange(3).repeat_interleave(sizes)

    def pictures(self, stored: Tensor, spec: DatasetSpec) -> Tensor:
        """Luma, and at its right the two chroma tiles, one above the other."""
        gray, side, half = sum(spec.value_range) / 2, self.luma, self.chroma
        luma, chroma = stored.split([side**2, 2 * half**2], dim=2)
        canvas = stored.new_full((*stored.shape[:2], 1, max(side, 2 * half), side + half), gray)
        canvas[..., 0, :side, :side] = luma.unflatten(2, (side, side))
        canvas[..., 0, : 2 * half, side:] = chroma.unflatten(2, (2 * half, half)) + gray
        return canvas

    def units(self, spec: DatasetSpec) -> Tensor:
        """By the length of what a number adds to a normalised sample, enlarged."""
        luma, *chroma = colour_lengths(spec.std)
        sides = [(luma, self.luma), *((length, self.chroma) for length in chroma)]
        return torch.cat([(1 / (length * _spot_lengths(side, spec.shape[1:]))).flatten() for length, side in sides])

    def clamp(self, stored: Tensor, spec: DatasetSpec) -> Tensor:
        low, high = spec.value_range
        reach = stored.new_tensor([size * (high - low) for size in CHROMA_REACH]).repeat_interleave(self.chroma**2)
        luma, chroma = stored.split([self.luma**2, 2 * self.chroma**2], dim=2)
        return torch.cat([luma.clamp(low, high), chroma.clamp(-reach, reach)], dim=2)

    def check(self, spec: DatasetSpec) -> None:
        channels, *size = spec.shape
        if channels != 3:
            raise UsageError(
                f"parameterisation half_chroma: {spec.name} has {channels} channel, it needs 3 colours: "
                "use tiles or dct"
            )
        if max(self.luma, self.chroma) > min(size):
            raise UsageError(
                f"parameterisation half_chroma: luma={self.luma}, chroma={self.chroma} on images of "
                f"{size[0]}x{size[1]}: sides go up to {min(size)}"
            )

    def describe(self) -> str:
        return f"luma {self.luma} + chroma {self.chroma}"


def _shrunk(planes: Tensor, side: int) -> Tensor:
    """The tiles of `side` whose enlargement comes nearest to planes `(..., H, W)`."""
    up, across = (torch.linalg.pinv(enlarging(side, size)).to(planes) for size in planes.shape[-2:])
    return up @ planes @ across.T


def _spot_lengths(side: int, size: tuple[int, ...]) -> Tensor:
    """`(side, side)`: the length of a map of `size` enlarged from a tile that is 1 at one place."""
    down, across = (enlarging(side, large).norm(dim=0) for large in size)
    return torch.outer(down, across).float()


def _enlarged(tiles: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(tiles, size=size, mode="bilinear", align_corners=False)
