"""The records that describe labelled data. They hold facts; `data` reads files, `augment` changes pixels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class DatasetSpec:
    """What everything else needs to know about a data set.

    Attributes:
        name: as the user named it, or the folder's name.
        shape: (C, H, W) of one sample.
        classes: class names in label order.
        mean, std: per channel, on the pixel scale below, from the training split unless chosen otherwise.
        value_range: lowest and highest value a sample may take: (0, 1) for images (uint8 divided by 255).
        mirror: whether a left-right mirror image keeps its label (not for digits and letters).
        fingerprint: hash of the training and test content; the key of everything cached.
        licence: of the source data, carried into exported cards; "" where unknown.
    """

    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirror: bool
    fingerprint: str
    value_range: tuple[float, float] = (0.0, 1.0)
    modality: str = "image"
    licence: str = ""

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> DatasetSpec:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**fields)


@dataclass(frozen=True)
class Split:
    """Images `(N, C, H, W)` (uint8 where the source is, else float32 on the spec's scale) and labels `(N,)` int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> Split:
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class LabelledDataset:
    """A data set with its two splits. Methods are handed `train` alone."""

    spec: DatasetSpec
    train: Split
    test: Split


def to_pixels(images: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1]; float input is on the spec's scale already and passes through."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Standardise `(B, C, H, W)` on the pixel scale with per-channel `mean` and `std` `(C,)`."""
    return (pixels - mean[:, None, None]) / std[:, None, None]
