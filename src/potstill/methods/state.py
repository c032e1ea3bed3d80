"""What a method carries from step to step, and what a step reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

#: A value of a State: a tensor, or tuples and mappings of such, nested: a queue of networks is a tuple of mappings.
Nest: TypeAlias = "Tensor | tuple[Nest, ...] | Mapping[str, Nest]"


@dataclass(frozen=True)
class State:
    """All that a method carries from step to step: the number of steps done, and tensors. Subclasses add fields.

    A field is a tensor, or a tuple or mapping of tensors, nested as need be. A step shares with the state before what
    it leaves alone, and never writes into it. Go through mappings by key: their order is lost in a snapshot.
    """

    step: int
    images: Tensor

    def to_tensors(self) -> dict[str, Tensor]:
        """Every tensor on the CPU under a name such as "images" or "queue/0/conv.weight", for a snapshot."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "step"}
        named = {k: v.detach().cpu().contiguous() for k, v in _flattened(values).items()}
        return {"step": torch.tensor(self.step), **named}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], device: str) -> State:
        """The inverse of `to_tensors`.

        Raises:
            KeyError: a field has no tensor.
        """
        values: Any = _nested({name: tensor.to(device) for name, tensor in tensors.items() if name != "step"})
        rest = {f.name: values[f.name] for f in fields(cls) if f.name != "step"}
        return cls(step=int(tensors["step"]), **rest)

    def advanced(self, **changes: Any) -> Any:
        """The state after one more step."""
        return replace(self, step=self.step + 1, **changes)


@dataclass(frozen=True)
class Metrics:
    """What a step reports.

    Attributes:
        loss: the sum of the terms.
        terms: by name, as weighted in the loss.
        notes: diagnostics, which are no part of the loss: a spread, an accuracy, which network was used.
    """

    loss: float
    terms: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, loss: Tensor, terms: Mapping[str, Tensor] | None = None, notes: Mapping[str, Tensor | float] | None = None
    ) -> Metrics:
        """Numbers of scalars on the device, which is waited for once."""
        terms, notes = terms or {}, notes or {}
        scalars = [torch.as_tensor(x, device=loss.device, dtype=loss.dtype) for x in notes.values()]
        first, *values = torch.stack([loss.detach(), *(t.detach() for t in terms.values()), *scalars]).tolist()
        split = len(terms)
        return cls(first, dict(zip(terms, values[:split], strict=True)), dict(zip(notes, values[split:], strict=True)))

    def to_json(self) -> dict[str, Any]:
        """The three kinds apart, as a line of `metrics.jsonl` has them."""
        return {"loss": self.loss, "terms": dict(self.terms), "notes": dict(self.notes)}


def _flattened(value: Nest, name: str = "") -> dict[str, Tensor]:
    """Tensors by their path, "a/0/b": the key of a tuple's item is its number. An empty tuple or mapping leaves a
    tensor without elements at "a/()" or "a/{}"."""
    if isinstance(value, Tensor):
        return {name: value}
    if not value and name:
        return {f"{name}/{'()' if isinstance(value, tuple) else '{}'}": torch.empty(0)}
    items = enumerate(value) if isinstance(value, tuple) else value.items()
    if not isinstance(value, tuple):
        assert not any("/" in key or key.isdecimal() for key in value), f"{name}: a number or / in {list(value)}"
    prefix = f"{name}/" if name else ""
    return {path: tensor for key, item in items for path, tensor in _flattened(item, f"{prefix}{key}").items()}


def _nested(tensors: Mapping[str, Tensor]) -> Nest:
    """The inverse of `_flattened`."""
    groups: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        key, _, rest = path.partition("/")
        groups.setdefault(key, {})[rest] = tensor
    if "()" in groups:
        return ()
    if "{}" in groups:
        return {}
    values = {key: group[""] if "" in group else _nested(group) for key, group in groups.items()}
    if all(key.isdecimal() for key in values):
        return tuple(values[key] for key in sorted(values, key=int))
    return values
