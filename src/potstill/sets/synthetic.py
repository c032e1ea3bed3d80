"""The synthetic set: stored numbers, their labels, and how numbers become samples.

Its parameterisation alone knows what is stored: losses, evaluation, pictures and exports all decode through it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError, UsageError
from ..files import expanded
from ..seeding import generator
from ..spec import DatasetSpec, Split, normalise, to_pixels
from ..tensors import checksum, pack, read_tensors
from .centres import nearest_to_centres, thumbnails
from .parameterisations import Factor, Parameterisation, Tiles
from .quantise import Levels, quantise

FORMAT_VERSION = 2
#: Of files that hold levels.
LEVELS_VERSION = 3
#: Bytes of a number that all classes share: a position.
SHARED_WIDTH = 2
#: In front of the names of a set's extras in its file.
EXTRA = "extra."


def initial_images(
    train: Split,
    spec: DatasetSpec,
    *,
    ipc: int,
    parameterisation: Parameterisation | Factor = (1, 1),
    kind: str = "mix",
    pick: str = "seeded",
    resize: str = "area",
    seed: int = 0,
    classes: tuple[int, ...] | None = None,
) -> Tensor:
    """Stored numbers to start from, `(K, IPC, C, H, W)` pixels for tiles.

    Args:
        kind: "mix" takes a real image for every sample (down-sized into tiles, else encoded); "real" stores whole real
            images, which tiles alone can; "noise" draws uniformly in the value range.
        pick: "seeded" chooses real images at random per class, "centres" those nearest to the class's k-means centres,
            "first" takes the first in file order, as the authors' code does (fidelity.md, 11).
        resize: into tiles: "area" averages when shrinking, "nearest" drops pixels, as the authors' code does.
        classes: the classes to make; draws are addressed by class, so a shard starts like the whole.
    Raises:
        UsageError: ipc below 1 or an unknown choice.
        DataError: a class with fewer real images than are needed.
    """
    check_init(kind, pick, resize)
    if ipc < 1:
        raise UsageError(f"ipc={ipc}: need at least 1 image per class")
    classes = tuple(range(spec.num_classes)) if classes is None else classes
    way = as_parameterisation(parameterisation)
    way.check(spec)
    if way.samples(ipc, spec) < 1:
        raise UsageError(f"ipc={ipc}: no sample stored as {way.describe()} fits; raise ipc or store less of each")
    return torch.stack([_initial_class(train, spec, c, ipc, way, kind, pick, resize, seed) for c in classes])


def _initial_class(
    train: Split,
    spec: DatasetSpec,
    cls: int,
    ipc: int,
    way: Parameterisation,
    kind: str,
    pick: str,
    resize: str,
    seed: int,
) -> Tensor:
    stream = generator(seed, "initial images", cls)
    tiles = isinstance(way, Tiles)
    if kind == "real" and not tiles:
        raise UsageError(f"init.kind=real: {way.name} stores no whole images, use mix or noise")
    if kind == "noise":
        low, high = spec.value_range
        count = ipc if tiles else way.samples(ipc, spec)
        noise = torch.rand(count, *spec.shape, generator=stream) * (high - low) + low
        return noise if tiles else way.encode(noise[None], spec)[0]
    needed = ipc if kind == "real" else way.samples(ipc, spec)
    members = (train.labels == cls).nonzero().flatten()
    if len(members) < needed:
        raise DataError(
            f"class {spec.classes[cls]!r} has {len(members)} training images, {needed} needed for "
            f"ipc={ipc} at {way.describe()}: lower ipc or factor, or use init.kind=noise"
        )
    samples = to_pixels(train.images[_picked(train, members, needed, pick, stream)])
    if isinstance(way, Tiles):
        return samples if kind == "real" else _mosaic(samples, way.rows, way.columns, resize)
    return way.clamp(way.encode(samples[None], spec), spec)[0]


def _picked(train: Split, members: Tensor, count: int, pick: str, stream: torch.Generator) -> Tensor:
    """`count` of the `members` of a class."""
    if pick == "first":
        return members[:count]
    if pick == "centres":
        return members[nearest_to_centres(thumbnails(to_pixels(train.images[members])), count, stream)]
    return members[torch.randperm(len(members), generator=stream)[:count]]


def as_parameterisation(value: Parameterisation | Factor) -> Parameterisation:
    """A factor is the short name of tiles."""
    return value if isinstance(value, Parameterisation) else Tiles(*value)


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
        ("init.pick", pick, ("seeded", "centres", "first")),
        ("init.resize", resize, ("area", "nearest")),
    ):
        if value not in known:
            raise UsageError(f"{name}={value!r}: use one of {', '.join(known)}")


@dataclass
class SyntheticSet(Dataset[tuple[Tensor, int]]):
    """A small synthetic data set, and a torch `Dataset` of its decoded, normalised samples.

    Attributes:
        images: `(K, ...)` stored numbers; for tiles `(K, IPC, C, H, W)` images on the pixel scale of `spec`.
        spec: of the data set it stands for.
        parameterisation: how stored numbers become samples; a factor (rows, columns) is the short name of tiles.
        classes: the class of each row of `images`.
        provenance: free text fields saved with it (method, seed, recipe hash...).
        extras: what a method learned besides images and whoever trains on them is to use (DD's step sizes), by name.
        ipc: the budget, in whole images per class; told by the shape where tiles are stored.
        levels: of a set stored in few bits, see `quantised`; `images` are then the numbers that they stand for.
    """

    images: Tensor
    spec: DatasetSpec
    parameterisation: Parameterisation | Factor = (1, 1)
    classes: tuple[int, ...] = ()
    provenance: dict[str, str] = field(default_factory=dict)
    extras: dict[str, Tensor] = field(default_factory=dict)
    ipc: int = 0
    levels: Levels | None = None
    _decoded: tuple[Tensor, Tensor] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.parameterisation = as_parameterisation(self.parameterisation)
        if not isinstance(self.images, Tensor) or not self.images.is_floating_point():
            found = getattr(self.images, "dtype", type(self.images).__name__)
            raise UsageError(f"images of type {found}: need a float tensor of pixels, which are bytes divided by 255")
        self.classes = self.classes or tuple(range(self.images.shape[0]))
        if isinstance(self.parameterisation, Tiles):
            self.ipc = self.images.shape[1] if self.images.ndim > 1 else 0
        shape = self.parameterisation.stored_shape(self.ipc, self.spec) if self.ipc else None
        if len(self.classes) != len(self.images) or tuple(self.images.shape[1:]) != shape:
            raise UsageError(
                f"images {tuple(self.images.shape)} do not fit {len(self.classes)} classes of shape {self.spec.shape}"
                + ("" if isinstance(self.parameterisation, Tiles) else f" stored as {self.parameterisation.describe()}")
            )

        if self.levels is not None and not torch.equal(self.levels.numbers(), self.images):
            raise UsageError("images are not those of the levels: give levels=None beside other images")

    def __repr__(self) -> str:
        """One line, for a notebook: what it stands for and stores, not its numbers."""
        stored = f"{len(self.classes)} classes, ipc={self.ipc}, {self.way.describe()}"
        return f"<SyntheticSet of {self.spec.name}: {stored}, {len(self)} samples>"

    @property
    def way(self) -> Parameterisation:
        """The parameterisation, for type checkers sure of it."""
        assert isinstance(self.parameterisation, Parameterisation)
        return self.parameterisation

    @property
    def factor(self) -> Factor | None:
        """Rows and columns of tiles; None where something else is stored."""
        return self.way.factor if isinstance(self.way, Tiles) else None

    @property
    def numbers_stored(self) -> int:
        """Numbers that make up the set: the storage that sets are compared at."""
        extras = sum(extra.numel() for extra in self.extras.values())
        scales = 2 * self.levels.scale.numel() if self.levels else 0
        return self.images.numel() + scales + self.way.shared_numbers + extras

    @property
    def bytes_stored(self) -> int:
        """Bytes of those numbers at the width they are kept in."""
        extras = sum(extra.nbytes for extra in self.extras.values())
        stored = self.levels.bytes_stored if self.levels else self.images.nbytes
        return stored + SHARED_WIDTH * self.way.shared_numbers + extras

    @property
    def stored_bits(self) -> int:
        """Width of a stored number."""
        return self.levels.bits if self.levels else 8 * self.images.element_size()

    def quantised(self, bits: int = 8) -> SyntheticSet:
        """This set with its stored numbers, not its decoded samples, rounded to levels of `bits` bits.

        Raises:
            UsageError: bits outside 1 to 8.
            DataError: numbers that are not finite.
        """
        levels = quantise(self.images, self.way.scale_groups(self.spec), bits)
        facts = {**self.provenance, "stored_bits": str(bits)}
        return replace(self, images=levels.numbers(), levels=levels, provenance=facts, _decoded=None)

    def samples(self) -> Tensor:
        """What a network trains on, `(K, M, C, H, W)` pixels."""
        return self.way.decode(self.images, self.spec)

    def decoded(self) -> Split:
        """All samples a network trains on, class by class: `(K * M, C, H, W)` pixels and labels."""
        samples = self.samples()
        labels = torch.tensor(self.classes).repeat_interleave(samples.shape[1])
        return Split(samples.flatten(0, 1), labels)

    def __len__(self) -> int:
        return len(self.classes) * self.way.samples(self.ipc, self.spec)

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
        stored = self.levels.to_tensors() if self.levels else {"images": self.images.contiguous()}
        tensors = {**stored, "classes": torch.tensor(self.classes), **extras}
        width = {"stored_bits": str(self.levels.bits)} if self.levels else {}
        metadata = {
            "format_version": str(LEVELS_VERSION if self.levels else FORMAT_VERSION),
            "spec": json.dumps(self.spec.to_json(), sort_keys=True),
            "parameterisation": json.dumps(self.way.to_json(), sort_keys=True),
            "ipc": str(self.ipc),
            "provenance": json.dumps(self.provenance, sort_keys=True),
            **width,
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
        path = expanded(path)
        path = path / "distilled.safetensors" if path.is_dir() else path
        if not path.exists():
            raise DataError(f"{path}: no distilled set here; expected a distilled.safetensors file")
        tensors, facts = read_tensors(path, "distilled set", "take another copy, or make the set anew")
        try:
            _check_version(facts)
            spec = DatasetSpec.from_json(json.loads(facts["spec"]))
            way = as_parameterisation(_way_of(facts, spec))
            levels = _levels_of(tensors, facts, way, spec) if "stored_bits" in facts else None
            return cls(
                images=_finite(levels.numbers() if levels else tensors["images"]),
                spec=spec,
                parameterisation=way,
                classes=_known_classes(tensors["classes"], spec),
                provenance=_texts(json.loads(facts["provenance"])),
                extras={name.removeprefix(EXTRA): x for name, x in tensors.items() if name.startswith(EXTRA)},
                ipc=int(facts.get("ipc", 0)),
                levels=levels,
            )
        except KeyError as error:
            raise DataError(f"{path}: not a distilled set written by potstill ({error} is missing)") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not a distilled set written by potstill ({error})") from error


def _check_version(facts: dict[str, str]) -> None:
    version, known = facts.get("format_version", "1"), [str(v) for v in range(1, LEVELS_VERSION + 1)]
    if version not in known:
        listed = ", ".join(known)
        raise ValueError(f"format {version}, this version reads {listed}: read it with the one that wrote it")


def _levels_of(tensors: dict[str, Tensor], facts: dict[str, str], way: Parameterisation, spec: DatasetSpec) -> Levels:
    shape = len(tensors["classes"]), *way.stored_shape(int(facts["ipc"]), spec)
    return Levels.from_tensors(tensors, int(facts["stored_bits"]), way.scale_groups(spec), shape)


def _finite(images: Tensor) -> Tensor:
    if images.ndim < 3 or not images.is_floating_point() or not images.float().isfinite().all():
        found = f"{images.dtype} of shape {tuple(images.shape)}".removeprefix("torch.")
        raise ValueError(f"images are {found}, expected finite floats (K, ...)")
    return images.float()


def _way_of(facts: Mapping[str, str], spec: DatasetSpec) -> Parameterisation | Factor:
    """How a file's numbers become samples; files of format 1 name a factor."""
    if "factor" in facts:
        return _whole_factor(json.loads(facts["factor"]))
    way = Parameterisation.from_json(json.loads(facts["parameterisation"]))
    if not isinstance(way, Tiles):
        way.check(spec)
    elif (
        way.rows > spec.shape[1] or way.columns > spec.shape[2]
    ):  # smaller tiles than can be asked for were written once
        raise ValueError(f"tiles {way.describe()} of images of shape {spec.shape}")
    return way


def _whole_factor(factor: Any) -> Factor:
    if not (isinstance(factor, list) and len(factor) == 2 and all(type(count) is int for count in factor)):
        raise ValueError(f"factor {factor!r}, expected [rows, columns]")
    if not all(1 <= count <= 3 for count in factor):
        raise ValueError(f"factor {factor!r}, format 1 has 1 to 3")
    return factor[0], factor[1]


def _known_classes(classes: Tensor, spec: DatasetSpec) -> tuple[int, ...]:
    found, known = classes.flatten().tolist(), range(spec.num_classes)
    if len({*found}) < len(found) or not all(type(cls) is int and cls in known for cls in found):
        raise ValueError(f"classes {found[:10]}, expected different ones of 0..{spec.num_classes - 1}")
    return tuple(found)


def _texts(record: Any) -> dict[str, str]:
    if not (isinstance(record, dict) and all(isinstance(text, str) for text in record.values())):
        raise ValueError("provenance is not text by name")
    return record
