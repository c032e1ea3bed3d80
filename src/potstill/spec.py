"""The records that describe labelled data. They hold facts; `data` reads files, `augment` changes pixels."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

#: What training on one kind of data does to a batch, unless a recipe says otherwise.
AUGMENTATION = {"image": "color_crop_cutout_flip_scale_rotate", "sound": "none"}
FINGERPRINTS = ("fingerprint", "train_fingerprint", "test_fingerprint")


def noun_of(modality: str) -> str:
    """What one sample is called: an image, or a sample of sound."""
    return "image" if modality == "image" else "sample"


@dataclass(frozen=True)
class DatasetSpec:
    """What everything else needs to know about a data set.

    Attributes:
        name: as the user named it, or the folder's name.
        shape: (C, H, W) of one sample.
        classes: class names in label order.
        mean, std: per channel, on the pixel scale below, from the training split unless chosen otherwise.
        value_range: lowest and highest value a sample may take: (0, 1) unless an older set says otherwise.
        source_range: the numbers of the source that 0 and 1 of a sample stand for; (0, 1) for images of bytes.
        mirror: whether a left-right mirror image keeps its label (not for digits, letters and sound).
        modality: "image", or "sound" for spectrograms (axis 0 frequency, low first; axis 1 time).
        fingerprint: hash of the training and test content; the key of everything cached.
        train_fingerprint, test_fingerprint: of each split's samples and labels alone; "" in older sets.
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
    source_range: tuple[float, float] = (0.0, 1.0)
    train_fingerprint: str = ""
    test_fingerprint: str = ""

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def noun(self) -> str:
        return noun_of(self.modality)

    @property
    def padding_value(self) -> float:
        """What fills the rim of a sample that is enlarged: mid-gray for images, silence for sound."""
        low, high = self.value_range
        return low if self.modality == "sound" else (low + high) / 2

    @property
    def augmentation(self) -> str:
        """The augmentation usual for this kind of data."""
        return AUGMENTATION[self.modality]

    def to_source(self, samples: Tensor) -> Tensor:
        """Samples in the numbers that the source had (0..255, log magnitudes, ...)."""
        low, high = self.source_range
        return samples * (high - low) + low

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
            **{name: isinstance(getattr(self, name), str) for name in ("name", "licence", *FINGERPRINTS)},
            "modality": self.modality in AUGMENTATION,
            "shape": _are(int, self.shape, 3) and min(self.shape) > 0,
            "classes": _are(str, self.classes) and len(self.classes) > 0,
            "mean": _are(float, self.mean, channels),
            "std": _are(float, self.std, channels) and min(self.std) > 0,
            "mirror": isinstance(self.mirror, bool),
            **{name: _is_range(getattr(self, name)) for name in ("value_range", "source_range")},
        }
        for name in (name for name, fits in right.items() if not fits):
            raise ValueError(f"spec: {name}={getattr(self, name)!r} cannot be")


def _is_range(values: Any) -> bool:
    return _are(float, values, 2) and values[0] < values[1]


def _are(kind: type, values: Any, count: int | None = None) -> bool:
    """Whether `values` is a tuple of `count` (None: any number of) texts or finite numbers."""
    kinds = (int, float) if kind is float else (kind,)
    fitting = isinstance(values, tuple) and all(type(value) in kinds for value in values)
    return fitting and count in (None, len(values)) and (kind is str or all(math.isfinite(v) for v in values))


@dataclass(frozen=True)
class Split(Dataset[tuple[Tensor, int]]):
    """One split: all of its tensors, and a torch `Dataset` of its decoded, normalised samples for a loop of one's own.

    Attributes:
        images: `(N, C, H, W)`, uint8 where the source is, else float32 on the spec's scale.
        labels: `(N,)` int64.
        mean, std: what `split[i]` is standardised with, per channel; filled in by `LabelledDataset`.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """(image `(C, H, W)` float32, label) as the networks see them."""
        return (
            normalise(to_pixels(self.images[index]), torch.tensor(self.mean), torch.tensor(self.std)),
            int(self.labels[index]),
        )

    def subset(self, index: Tensor) -> Split:
        return replace(self, images=self.images[index], labels=self.labels[index])


@dataclass(frozen=True)
class LabelledDataset:
    """A data set with its two splits. Methods are handed `train` alone."""

    spec: DatasetSpec
    train: Split
    test: Split

    def __post_init__(self) -> None:
        for name in ("train", "test"):
            split = replace(getattr(self, name), mean=self.spec.mean, std=self.spec.std)
            object.__setattr__(self, name, split)

    @property
    def smallest_class(self) -> int:
        """Training images of it."""
        return int(torch.bincount(self.train.labels, minlength=self.spec.num_classes).min())


def to_pixels(images: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1]; float input is on the spec's scale already and passes through."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Standardise `(B, C, H, W)` on the pixel scale with per-channel `mean` and `std` `(C,)`."""
    return (pixels - mean[:, None, None]) / std[:, None, None]
