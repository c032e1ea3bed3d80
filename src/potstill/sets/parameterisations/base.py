"""What a class's budget of IPC x C x H x W stored numbers holds: how they become samples, and how many."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

from ...errors import UsageError
from ...registry import Registry
from ...spec import DatasetSpec, Split

PARAMETERISATIONS: Registry[type[Parameterisation]] = Registry("parameterisation")


@dataclass(frozen=True)
class Parameterisation(ABC):
    """How stored numbers become samples. Knows no loss; decoding is linear in the numbers, but for a last clamp.

    A set's stored numbers are one tensor `(K, *stored_shape)`; `encode` and `decode` go between it and samples
    `(K, M, C, H, W)` on the pixel scale, M as `samples` says.
    """

    name: ClassVar[str]

    @abstractmethod
    def samples(self, ipc: int, spec: DatasetSpec) -> int:
        """How many samples of one class fit its budget of `ipc` whole images' numbers."""

    @abstractmethod
    def stored_shape(self, ipc: int, spec: DatasetSpec) -> tuple[int, ...]:
        """Of one class's stored numbers."""

    @abstractmethod
    def encode(self, samples: Tensor, spec: DatasetSpec) -> Tensor:
        """The stored numbers whose decoded samples come nearest to `samples` `(K, M, C, H, W)`, in least squares."""

    @abstractmethod
    def decode(self, stored: Tensor, spec: DatasetSpec) -> Tensor:
        """Samples `(K, M, C, H, W)`, differentiable in `stored`."""

    @abstractmethod
    def scale_groups(self, spec: DatasetSpec) -> Tensor:
        """Which numbers share one scale where they are stored in few bits: group 0, 1... of each, as whole numbers.

        Broadcasts to `stored_shape`; all classes share the groups.
        """

    @abstractmethod
    def pictures(self, stored: Tensor, spec: DatasetSpec) -> Tensor:
        """Stored numbers as pictures `(K, N, C or 1, h, w)` on the pixel scale; those around 0 appear around gray."""

    @abstractmethod
    def units(self, spec: DatasetSpec) -> Tensor:
        """What each stored number changes by where its samples change by one on the NORMALISED scale; always above 0.

        Broadcasts to `stored_shape`. Published rates are of normalised pixels, see `Problem.units`.
        """

    def clamp(self, stored: Tensor, spec: DatasetSpec) -> Tensor:
        """`stored` within the range of its own; as it is where stored numbers have none."""
        return stored

    def fitted(self, train: Split, spec: DatasetSpec) -> Parameterisation:
        """Itself with what it takes from the training split."""
        return self

    def check(self, spec: DatasetSpec) -> None:
        """Refuse data that it cannot hold; most can hold anything.

        Raises:
            UsageError: says what it takes.
        """
        return

    def for_data(self, train: Split, spec: DatasetSpec) -> Parameterisation:
        """Itself, checked against the data and fitted to their training split."""
        self.check(spec)
        return self.fitted(train, spec)

    @property
    def shared_numbers(self) -> int:
        """Numbers that all classes share and that travel with the set: they count as storage."""
        return 0

    def describe(self) -> str:
        """In a table's words."""
        return self.name

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}

    @staticmethod
    def from_json(record: Any) -> Parameterisation:
        """The inverse of `to_json`.

        Raises:
            ValueError: an unknown name or key, or a value that cannot be.
        """
        try:
            keys: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
            return PARAMETERISATIONS[keys.pop("name")](**keys)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"parameterisation {record!r} cannot be") from error


def budget(ipc: int, spec: DatasetSpec) -> int:
    """Numbers that a class may store."""
    return ipc * math.prod(spec.shape)


def parse(text: str) -> Parameterisation:
    """A parameterisation from `NAME` or `NAME:key=number,key=number`, as recipes and the command line write it.

    Raises:
        UsageError: an unknown name or key, or a value that is no number.
    """
    name, _, rest = text.partition(":")
    cls = PARAMETERISATIONS[name]
    kinds = {field.name: str(field.type) for field in fields(cls) if str(field.type) in ("int", "float")}
    given: dict[str, Any] = {}
    for word in filter(None, rest.split(",")):
        key, _, value = word.partition("=")
        if key not in kinds:
            raise UsageError(f"parameterisation={text!r}: {name} has no {key!r}, known are {', '.join(kinds)}")
        try:
            given[key] = int(value) if kinds[key] == "int" else float(value)
        except ValueError:
            kind = "a whole number" if kinds[key] == "int" else "a number"
            raise UsageError(f"parameterisation={text!r}: {key}={value!r} is not {kind}") from None
    return cls(**given)
