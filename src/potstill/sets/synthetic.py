"""The synthetic set: learnable images, their labels, and partition and expansion.

`decode` is the only place that knows the factor: losses, evaluation, pictures and exports all go through it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError, UsageError
from ..seeding import generator
from ..spec import DatasetSpec, Split, normalise, to_pixels
from ..tensors import checksum, pack, read_tensors

Factor = tuple[int, int]
FORMAT_VERSION = 1
#: In front of the names of a set's extras in its file.
EXTRA = "extra."
#: Fill for images that the factor does not divide: mid-gray on the pixel scale.
PADDING_VALUE = 0.5


def decode(images: Tensor, factor: Factor) -> Tensor:
    """Partition and expansion (IDC, IDM; DSDM section 4.4): each stored image holds rows x columns small ones.

    Args:
        images: `(..., C, H, W)` stored images.
        factor: (rows, columns) of the partition; (1, 1) returns the images as they are.
    Returns:
        `(..., rows * columns, C, H, W)`: the tiles of each image, row by row, enlarged bilinearly to H x W. Images
        that the factor does not divide are padded at the bottom and right.
    """
    rows, columns = factor
    *lead, channels, height, width = images.shape
    if factor == (1, 1):
        return images.unsqueeze(-4)
    x = images.reshape(-1, channels, height, width)
    x = F.pad(x, (0, -width % columns, 0, -height % rows), value=PADDING_VALUE)
    tile_h, tile_w = x.shape[2] // rows, x.shape[3] // columns
    x = x.reshape(-1, channels, rows, tile_h, columns, tile_w).permute(0, 2, 4, 1, 3, 5)
    x = x.reshape(-1, channels, tile_h, tile_w)
    x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
    return x.reshape(*lead, rows * columns, channels, height, width)


def check_factor(factor: Factor) -> Factor:
    """The factor as a pair.

    Raises:
        UsageError: outside 1..3.
    """
    rows, columns = factor
    if not (1 <= rows <= 3 and 1 <= columns <= 3):
        raise UsageError(f"factor={rows},{columns}: each must be 1, 2 or 3")
    return rows, columns


def initial_images(
    train: Split,
    spec: DatasetSpec,
    *,
    ipc: int,
    factor: Factor = (1, 1),
    kind: str = "mix",
    pick: str = "seeded",
    resize: str = "area",
    seed: int = 0,
    classes: tuple[int, ...] | None = None,
) -> Tensor:
    """Stored images to start from, `(K, IPC, C, H, W)` on the pixel scale.

    Args:
        kind: "mix" fills every tile of the partition with its own down-sized real image; "real" takes whole real
            images; "noise" draws uniformly in the value range.
        pick: "seeded" chooses real images at random per class, "first" takes the first in file order, as the
            authors' code does (fidelity.md, 11).
        resize: "area" averages when shrinking, "nearest" drops pixels, as the authors' code does.
        classes: the classes to make; draws are addressed by class, so a shard starts like the whole.
    Raises:
        UsageError: ipc below 1 or an unknown choice.
        DataError: a class with fewer real images than are needed.
    """
    check_init(kind, pick, resize)
    if ipc < 1:
        raise UsageError(f"ipc={ipc}: need at least 1 image per class")
    classes = tuple(range(spec.num_classes)) if classes is None else classes
    return torch.stack(
        [_initial_class(train, spec, c, ipc, check_factor(factor), kind, pick, resize, seed) for c in classes]
    )


def _initial_class(
    train: Split, spec: DatasetSpec, cls: int, ipc: int, factor: Factor, kind: str, pick: str, resize: str, seed: int
) -> Tensor:
    stream = generator(seed, "initial images", cls)
    if kind == "noise":
        low, high = spec.value_range
        return torch.rand(ipc, *spec.shape, generator=stream) * (high - low) + low
    rows, columns = factor if kind == "mix" else (1, 1)
    needed = ipc * rows * columns
    members = (train.labels == cls).nonzero().flatten()
    if len(members) < needed:
        raise DataError(
            f"class {spec.classes[cls]!r} has {len(members)} training images, {needed} needed for "
            f"ipc={ipc} at factor {rows},{columns}: lower ipc or factor, or use init.kind=noise"
        )
    chosen = members[torch.randperm(len(members), generator=stream)[:needed]] if pick == "seeded" else members[:needed]
    return _mosaic(to_pixels(train.images[chosen]), rows, columns, resize)


def _mosaic(x: Tensor, rows: int, columns: int, resize: str) -> Tensor:
    """Put each `rows * columns` successive images into one, as `decode` will cut them apart."""
    if (rows, columns) == (1, 1):
        return x
    count, channels, height, width = x.shape
    tile_h, tile_w = -(-height // rows), -(-width // columns)
    x = F.interpolate(x, size=(tile_h, tile_w), mode=resize)
    x = x.reshape(count // (rows * columns), rows, columns, channels, tile_h, tile_w)
    x = x.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, rows * tile_h, columns * tile_w)
    return x[:, :, :height, :width].contiguous()


def check_init(kind: str, pick: str, resize: str) -> None:
    """Refuse what `initial_images` does not know.

    Raises:
        UsageError: by the name of the recipe's key.
    """
    for name, value, known in (
        ("init.kind", kind, ("mix", "real", "noise")),
        ("init.pick", pick, ("seeded", "first")),
        ("init.resize", resize, ("area", "nearest")),
    ):
        if value not in known:
            raise UsageError(f"{name}={value!r}: use one of {', '.join(known)}")


@dataclass
class SyntheticSet(Dataset[tuple[Tensor, int]]):
    """A small synthetic data set, and a torch `Dataset` of its decoded, normalised samples.

    Attributes:
        images: `(K, IPC, C, H, W)` stored images on the pixel scale of `spec`.
        spec: of the data set it stands for.
        factor: partition, see `decode`.
        classes: the class of each row of `images`.
        provenance: free text fields saved with it (method, seed, recipe hash...).
        extras: what a method learned besides images and whoever trains on them is to use (DD's step sizes), by name.
    """

    images: Tensor
    spec: DatasetSpec
    factor: Factor = (1, 1)
    classes: tuple[int, ...] = ()
    provenance: dict[str, str] = field(default_factory=dict)
    extras: dict[str, Tensor] = field(default_factory=dict)
    _decoded: tuple[Tensor, Tensor] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.classes = self.classes or tuple(range(self.images.shape[0]))
        if len(self.classes) != len(self.images) or tuple(self.images.shape[2:]) != self.spec.shape:
            raise UsageError(
                f"images {tuple(self.images.shape)} do not fit {len(self.classes)} classes of shape {self.spec.shape}"
            )

    @property
    def ipc(self) -> int:
        """Stored images per class."""
        return self.images.shape[1]

    @property
    def numbers_stored(self) -> int:
        """Numbers that make up the set: the storage that sets are compared at."""
        return self.images.numel() + sum(extra.numel() for extra in self.extras.values())

    def decoded(self) -> Split:
        """All samples a network trains on, class by class: `(K * IPC * tiles, C, H, W)` pixels and labels."""
        samples = decode(self.images, self.factor).flatten(0, 2)
        per_class = len(samples) // len(self.classes)
        return Split(samples, torch.tensor(self.classes).repeat_interleave(per_class))

    def __len__(self) -> int:
        return self.images.shape[0] * self.ipc * self.factor[0] * self.factor[1]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self._decoded is None:
            split = self.decoded()
            mean, std = torch.tensor(self.spec.mean), torch.tensor(self.spec.std)
            self._decoded = (normalise(split.images, mean, std), split.labels)
        samples, labels = self._decoded
        return samples[index], int(labels[index])

    def to_bytes(self) -> bytes:
        """The exact set as a safetensors file; the same set gives the same bytes."""
        extras = {EXTRA + name: extra.contiguous() for name, extra in self.extras.items()}
        tensors = {"images": self.images.contiguous(), "classes": torch.tensor(self.classes), **extras}
        metadata = {
            "format_version": str(FORMAT_VERSION),
            "spec": json.dumps(self.spec.to_json(), sort_keys=True),
            "factor": json.dumps(self.factor),
            "provenance": json.dumps(self.provenance, sort_keys=True),
        }
        return pack(tensors, metadata)

    def digest(self) -> str:
        """A hash of all that the file of `to_bytes` holds."""
        return checksum(self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> SyntheticSet:
        """Read a `distilled.safetensors` file, or the folder that holds one.

        Raises:
            DataError: missing, damaged, or not written by `to_bytes`.
        """
        path = Path(path)
        path = path / "distilled.safetensors" if path.is_dir() else path
        if not path.exists():
            raise DataError(f"{path}: no distilled set here; expected a distilled.safetensors file")
        tensors, facts = read_tensors(path, "distilled set", "take another copy, or make the set anew")
        try:
            _check_version(facts)
            spec = DatasetSpec.from_json(json.loads(facts["spec"]))
            return cls(
                images=_finite_images(tensors["images"]),
                spec=spec,
                factor=_whole_factor(json.loads(facts["factor"])),
                classes=_known_classes(tensors["classes"], spec),
                provenance=_texts(json.loads(facts["provenance"])),
                extras={name.removeprefix(EXTRA): x for name, x in tensors.items() if name.startswith(EXTRA)},
            )
        except KeyError as error:
            raise DataError(f"{path}: not a distilled set written by potstill ({error} is missing)") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not a distilled set written by potstill ({error})") from error


def _check_version(facts: dict[str, str]) -> None:
    version = facts.get("format_version", str(FORMAT_VERSION))
    if version != str(FORMAT_VERSION):
        raise ValueError(f"format {version}, this version reads {FORMAT_VERSION}: read it with the one that wrote it")


def _finite_images(images: Tensor) -> Tensor:
    if images.ndim != 5 or not images.is_floating_point() or not images.float().isfinite().all():
        found = f"{images.dtype} of shape {tuple(images.shape)}".removeprefix("torch.")
        raise ValueError(f"images are {found}, expected finite floats (K, IPC, C, H, W)")
    return images.float()


def _whole_factor(factor: Any) -> Factor:
    if not (isinstance(factor, list) and len(factor) == 2 and all(type(count) is int for count in factor)):
        raise ValueError(f"factor {factor!r}, expected [rows, columns]")
    return check_factor((factor[0], factor[1]))


def _known_classes(classes: Tensor, spec: DatasetSpec) -> tuple[int, ...]:
    found, known = classes.flatten().tolist(), range(spec.num_classes)
    if len({*found}) < len(found) or not all(type(cls) is int and cls in known for cls in found):
        raise ValueError(f"classes {found[:10]}, expected different ones of 0..{spec.num_classes - 1}")
    return tuple(found)


def _texts(record: Any) -> dict[str, str]:
    if not (isinstance(record, dict) and all(isinstance(text, str) for text in record.values())):
        raise ValueError("provenance is not text by name")
    return record
