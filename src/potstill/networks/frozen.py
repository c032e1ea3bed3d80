"""Modules whose weights are given and stay as they are: members of a pool that nothing here has trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import torch
from torch import Tensor, nn

from ..errors import UsageError, refuse_out_of_memory
from .base import Backbone, Maps, line_of

#: What begins the name of modules that were given in Python; their digest follows.
PREFIX = "frozen:"
#: By such names: what `Pool.of` was given in this process.
_GIVEN: dict[str, tuple[Frozen, ...]] = {}


@dataclass(frozen=True, eq=False)
class Frozen:
    """A module with weights of its own, and which of its tensors is the feature `(B, ...)` that sets are matched in.

    Attributes:
        module: takes standardised images `(B, C, H, W)` of the data's shape; it is copied, never changed.
        features: the name of a layer, whose output is the feature, or a function of module and images that gives it; by
            default what `classifier` is given, or the module's own output where no classifier is named.
        classifier: the name of a linear layer that makes logits of the data's classes from the feature, for terms
            that ask for logits (calibration); "" for none.
    """

    module: nn.Module
    features: str | Callable[[nn.Module, Tensor], Tensor] | None = None
    classifier: str = ""

    def weights(self) -> dict[str, Tensor]:
        """As the network made of it has them."""
        return {f"module.{name}": value.detach().cpu().clone() for name, value in self.module.state_dict().items()}

    @cached_property
    def digest(self) -> str:
        """Of all that decides the features: architecture as printed, weights, and which tensor is meant."""
        code = getattr(self.features, "__code__", None)
        chosen = [code.co_code, code.co_consts, code.co_names] if code else self.features
        found = blake2b(repr([self.module, chosen, self.classifier]).encode(), digest_size=8)
        for name, value in self.weights().items():
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()


class FrozenNetwork(Backbone):
    """A frozen module as an extractor of features, without maps, and with logits only where it has a classifier.

    Raises:
        UsageError: a layer that is not there, a module that fails on two black images, features that are no numbers for
            each image, or a classifier that does not fit them; one line.
    """

    def __init__(self, frozen: Frozen, name: str, shape: tuple[int, int, int], num_classes: int):
        super().__init__()
        self.name, self.digest = name, frozen.digest
        self.module = copy.deepcopy(frozen.module).cpu().requires_grad_(False).eval()
        self._features, self._seen = frozen.features, list[Tensor]()
        self._classifier = frozen.classifier
        self._watch()
        self.feature_width = self._width(shape)
        self._check_head(num_classes)

    def maps(self, x: Tensor) -> list[Maps]:
        raise UsageError("a frozen module has no maps of blocks that could be matched; use a network of ours")

    def embed(self, x: Tensor) -> Tensor:
        if callable(self._features):
            return self._features(self.module, x).flatten(1)
        made = self.module(x)
        return (self._seen.pop() if self._watched else made).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        self.require_logits()
        return self._layer(self._classifier)(features)

    def require_logits(self) -> None:
        if not self._classifier:
            raise UsageError(
                f"network {self.name!r} is frozen and has no logits: name its linear layer, Frozen(..., "
                "classifier=...), or leave out the term that asks for them, method.calibration_weight=0"
            )

    def require_trainable(self) -> None:
        raise UsageError(
            f"network {self.name!r} is frozen and cannot be trained: for a pool of it set pool.pretrained=false, and "
            "evaluate with another network"
        )

    @property
    def _head(self) -> nn.Module | None:
        """By its name: as a part of this network too, its weights would be there twice."""
        return self._layer(self._classifier) if self._classifier else None

    def _layer(self, place: str) -> nn.Module:
        try:
            return self.module.get_submodule(place)
        except AttributeError:
            known = ", ".join(name for name, _ in self.module.named_children()) or "none"
            raise UsageError(f"network {self.name!r}: the module has no layer {place!r}; it has {known}") from None

    def _watch(self) -> None:
        """Keep the tensor that is meant, of each pass."""
        seen = self._seen

        def keep(_layer: nn.Module, given: tuple[Tensor, ...], made: Tensor | None = None) -> None:
            seen[:] = [given[0] if made is None else made]

        self._watched = True
        if isinstance(self._features, str):
            self._layer(self._features).register_forward_hook(keep)
        elif self._features is None and (head := self._head) is not None:
            head.register_forward_pre_hook(keep)
        else:
            self._watched = False

    def _width(self, shape: tuple[int, int, int]) -> int:
        try:
            with torch.no_grad():
                made = self.embed(torch.zeros(2, *shape))
        except Exception as error:  # whatever the user's code raises
            refuse_out_of_memory(error, f"network {self.name!r}")
            raise UsageError(f"network {self.name!r} fails on images {shape}: {line_of(error)}") from error
        if len(made) != 2 or not made.is_floating_point():
            found = f"{tuple(made.shape)} {made.dtype}"
            raise UsageError(f"network {self.name!r}: features {found} of 2 images, expected (2, ...) floats")
        return made.shape[1]

    def _check_head(self, num_classes: int) -> None:
        head = self._head
        if head is None:
            return
        wanted = f"need a Linear layer from {self.feature_width} features to {num_classes} classes"
        if not isinstance(head, nn.Linear):
            raise UsageError(f"network {self.name!r}: its classifier is a {type(head).__name__}: {wanted}")
        found = (head.in_features, head.out_features)
        if found != (self.feature_width, num_classes):
            raise UsageError(f"network {self.name!r}: its classifier goes from {found[0]} to {found[1]}: {wanted}")


def give(modules: Sequence[Frozen]) -> str:
    """A name, for this process, of modules of one architecture.

    Raises:
        UsageError: none of them, something else than `Frozen`, or modules of several architectures.
    """
    if not modules:
        raise UsageError("pool: no modules; give at least one potstill.Frozen")
    for i, one in enumerate(modules):
        if not isinstance(one, Frozen):
            raise UsageError(
                f"pool: member {i} is a {type(one).__name__}; wrap it, potstill.Frozen(module, features=...)"
            )
        if _form(one) != _form(modules[0]):
            raise UsageError(f"pool: member {i} is of another architecture than the first; give one architecture a run")
    name = PREFIX + blake2b("".join(one.digest for one in modules).encode(), digest_size=8).hexdigest()
    _GIVEN[name] = tuple(modules)
    return name


def _form(frozen: Frozen) -> object:
    shapes = {name: (value.shape, value.dtype) for name, value in frozen.module.state_dict().items()}
    return type(frozen.module), shapes, frozen.features, frozen.classifier


def is_given(name: str) -> bool:
    """Whether `name` is of modules that were given in Python, in this process or another."""
    return name.startswith(PREFIX)


def given(name: str) -> tuple[Frozen, ...]:
    """The modules of a name that `give` made.

    Raises:
        UsageError: in another process than this.
    """
    if name not in _GIVEN:
        raise UsageError(f"network {name!r}: its modules were given in Python and are not here; pass them again, pool=")
    return _GIVEN[name]
