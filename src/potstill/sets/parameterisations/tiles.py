"""Partition and expansion (IDC, IDM; DSDM section 4.4): each stored image holds rows x columns small ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UsageError
from ...spec import DatasetSpec
from .base import PARAMETERISATIONS, Parameterisation

Factor = tuple[int, int]

#: The smallest side of a tile: below, enlarging leaves nothing to see.
SMALLEST_TILE = 4


@PARAMETERISATIONS.register("tiles")
@dataclass(frozen=True)
class Tiles(Parameterisation):
    """Images that hold rows x columns small ones each, enlarged bilinearly; 1 x 1 are whole images."""

    name: ClassVar[str] = "tiles"

    rows: int = 1
    columns: int = 1

    def __post_init__(self) -> None:
        check_factor(self.factor)

    @property
    def factor(self) -> Factor:
        return self.rows, self.columns

    def samples(self, ipc: int, spec: DatasetSpec) -> int:
        return ipc * self.rows * self.columns

    def stored_shape(self, ipc: int, spec: DatasetSpec) -> tuple[int, ...]:
        return (ipc, *spec.shape)

    def encode(self, samples: Tensor, spec: DatasetSpec) -> Tensor:
        _, height, width = spec.shape
        tiles = samples.unflatten(1, (-1, self.rows, self.columns))  # (K, IPC, rows, columns, C, H, W)
        tile_h, tile_w = -(-height // self.rows), -(-width // self.columns)
        stored = samples.new_empty(*tiles.shape[:2], *spec.shape)
        for i in range(self.rows):
            for j in range(self.columns):
                top, left = i * tile_h, j * tile_w
                kept_h, kept_w = min(tile_h, height - top), min(tile_w, width - left)
                # What the padding shows of itself is not for the stored numbers to explain.
                fixed = samples.new_full((tile_h, tile_w), spec.padding_value)
                fixed[:kept_h, :kept_w] = 0
                up, across = enlarging(tile_h, height).to(samples), enlarging(tile_w, width).to(samples)
                wanted = tiles[:, :, i, j] - up @ fixed @ across.T
                tile = torch.linalg.pinv(up[:, :kept_h]) @ wanted @ torch.linalg.pinv(across[:, :kept_w]).T
                stored[..., top : top + kept_h, left : left + kept_w] = tile
        return stored

    def decode(self, stored: Tensor, spec: DatasetSpec) -> Tensor:
        return decode(stored, self.factor, spec.padding_value).flatten(1, 2)

    def scale_groups(self, spec: DatasetSpec) -> Tensor:
        """A group for each channel."""
        return torch.arange(spec.shape[0])[:, None, None]

    def pictures(self, stored: Tensor, spec: DatasetSpec) -> Tensor:
        """The stored images."""
        return stored

    def units(self, spec: DatasetSpec) -> Tensor:
        """The deviation of the channel: what is stepped on are the stored pixels, however large they are shown."""
        return torch.tensor(spec.std)[:, None, None]

    def clamp(self, stored: Tensor, spec: DatasetSpec) -> Tensor:
        return stored.clamp(*spec.value_range)

    def check(self, spec: DatasetSpec) -> None:
        check_factor(self.factor, spec)

    def describe(self) -> str:
        return f"{self.rows} x {self.columns}"


def decode(images: Tensor, factor: Factor, padding: float = 0.5) -> Tensor:
    """The small images of stored ones.

    Args:
        images: `(..., C, H, W)` stored images.
        factor: (rows, columns) of the partition; (1, 1) returns the images as they are.
        padding: fill for images that the factor does not divide.
    Returns:
        `(..., rows * columns, C, H, W)`: the tiles of each image, row by row, enlarged bilinearly to H x W. Images
        that the factor does not divide are padded at the bottom and right.
    """
    rows, columns = factor
    *lead, channels, height, width = images.shape
    if factor == (1, 1):
        return images.unsqueeze(-4)
    x = images.reshape(-1, channels, height, width)
    x = F.pad(x, (0, -width % columns, 0, -height % rows), value=padding)
    tile_h, tile_w = x.shape[2] // rows, x.shape[3] // columns
    x = x.reshape(-1, channels, rows, tile_h, columns, tile_w).permute(0, 2, 4, 1, 3, 5)
    x = x.reshape(-1, channels, tile_h, tile_w)
    x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
    return x.reshape(*lead, rows * columns, channels, height, width)


def check_factor(factor: Factor, spec: DatasetSpec | None = None) -> Factor:
    """The factor as a pair.

    Raises:
        UsageError: below 1, or tiles of less than 4 pixels on images of `spec`.
    """
    rows, columns = factor
    if min(rows, columns) < 1:
        raise UsageError(f"factor={rows},{columns}: each must be at least 1")
    if spec is not None:
        _, height, width = spec.shape
        most = max(1, height // SMALLEST_TILE), max(1, width // SMALLEST_TILE)
        if rows > most[0] or columns > most[1]:
            raise UsageError(
                f"factor={rows},{columns} on images of {height}x{width}: tiles need at least {SMALLEST_TILE} pixels a "
                f"side, so rows up to {most[0]} and columns up to {most[1]}"
            )
    return rows, columns


@lru_cache
def enlarging(small: int, large: int) -> Tensor:
    """The matrix `(large, small)` of bilinear enlargement along one axis, as `interpolate` does it."""
    rows = torch.eye(small, dtype=torch.float64)[:, None]
    return F.interpolate(rows, size=large, mode="linear", align_corners=False)[:, 0].T.contiguous()
