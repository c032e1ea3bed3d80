"""The records that describe labelled data. They hold facts; `data` reads files, `augment` changes pixels."""

from __future__ import annotations

import math
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
        """The inverse of `to_json`.

        Raises:
            ValueError: names the first field that is missing, unknown or of another kind.
        """
        if not isinstance(record, dict):
            raise ValueError(f"spec is a {type(record).__name__}, expected fields by name")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        try:
            spec = cls(**fields)
        except TypeError as error:
            found = str(error).removeprefix("DatasetSpec.__init__() ")
            raise ValueError(f"spec: {found}") from error
        spec._check_kinds()
        return spec

    def _check_kinds(self) -> None:
        """Raises ValueError where a field cannot be what the class says."""
        channels = self.shape[0] if _are(int, self.shape, 3) else 0
        right = {
            **{name: isinstance(getattr(self, name), str) for name in ("name", "fingerprint", "modality", "licence")},
            "shape": _are(int, self.shape, 3) and min(self.shape) > 0,
            "classes": _are(str, self.classes) and len(self.classes) > 0,
            "mean": _are(float, self.mean, channels),
            "std": _are(float, self.std, channels) and min(self.std) > 0,
            "mirror": isinstance(self.mirror, bool),
            "value_range": _are(float, self.value_range, 2) and self.value_range[0] < self.value_range[1],
        }
        for name in (name for name, fits in right.items() if not fits):
            raise ValueError(f"spec: {name}={getattr(self, name)!r} cannot be")


def _are(kind: type, values: Any, count: int | None = None) -> bool:
    """Whether `values` is a tuple of `count` (None: any number of) texts or finite numbers."""
    kinds = (int, float) if kind is float else (kind,)
    fitting = isinstance(values, tuple) and all(type(value) in kinds for value in values)
    return fitting and count in (None, len(values)) and (kind is str or all(math.isfinite(v) for v in values))


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
