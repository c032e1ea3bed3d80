"""Networks by name. A new one is a file here and an import line below.

A name may carry arguments (`convnet:depth=4,norm=batch`, `resnet10:width=64`), or say where a factory of the user's own
is (`package.module:factory`, `path/to/file.py:factory`). Modules that keep the weights they have are `Frozen`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import torch

from ..errors import UsageError
from ..seeding import derive
from ..spec import DatasetSpec
from . import alexnet as _alexnet  # noqa: F401  (registers itself)
from . import convnet as _convnet  # noqa: F401
from . import densenet as _densenet  # noqa: F401
from . import lenet as _lenet  # noqa: F401
from . import mlp as _mlp  # noqa: F401
from . import resnet as _resnet  # noqa: F401
from . import vgg as _vgg  # noqa: F401
from . import vit as _vit  # noqa: F401
from .base import NETWORKS, Backbone, Maps
from .frozen import Frozen, FrozenNetwork, give, given, is_given
from .own import as_backbone, find_factory, source_of

__all__ = [
    "NETWORKS",
    "Backbone",
    "Frozen",
    "FrozenNetwork",
    "Maps",
    "arguments_of",
    "build_network",
    "check_network",
    "give",
    "given",
    "identity",
    "is_given",
    "is_own",
]


def build_network(name: str, spec: DatasetSpec, seed: int) -> Backbone:
    """A freshly initialised network for `spec`; the same `(name, seed)` gives the same weights.

    Raises:
        UsageError: an unknown name (the known are listed), a wrong argument, a factory that cannot be imported or
            gives no module, or a network that cannot take the image side.
    """
    if isinstance(name, str) and is_given(name):
        return FrozenNetwork(given(name)[0], name, spec.shape, spec.num_classes)
    build, arguments = _resolved(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "initial weights", name))
        made = build(spec.shape, spec.num_classes, **arguments)
        network = as_backbone(made, name, spec.shape, spec.num_classes)
    if not is_own(name):
        network.architecture = name
    return network


def check_network(name: str) -> None:
    """What can be known of a network's name without data.

    Raises:
        UsageError: as `build_network`.
    """
    if not (isinstance(name, str) and is_given(name)):  # a run that has finished is scored without its pool
        _resolved(name)


def identity(name: str) -> str:
    """`name`, and for a factory of one's own a hash of its source: what decides which network it is."""
    if is_given(name) or not is_own(name) or (source := source_of(name)) is None:
        return name
    return f"{name}@{blake2b(source.read_bytes(), digest_size=8).hexdigest()}"


def arguments_of(name: str) -> dict[str, Any]:
    """Arguments that a network of ours takes in its name, with their defaults."""
    parameters = inspect.signature(NETWORKS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def is_own(name: str) -> bool:
    """Whether a network is the user's: a factory by its place, or modules that were given in Python."""
    return ":" in name and name.partition(":")[0] not in NETWORKS


def _resolved(name: str) -> tuple[Callable[..., object], dict[str, Any]]:
    if not isinstance(name, str):
        raise UsageError(
            f"network of type {type(name).__name__}: give a name, or where its factory is, as package.module:factory"
        )
    if is_own(name):
        return find_factory(name), {}
    known, _, written = name.partition(":")
    return NETWORKS[known], _parsed(known, written)


def _parsed(known: str, written: str) -> dict[str, Any]:
    """Arguments as `depth=4,norm=batch`."""
    defaults, found = arguments_of(known), {}
    for pair in filter(None, written.split(",")):
        key, equals, value = pair.partition("=")
        if key not in defaults or not equals:
            takes = ", ".join(f"{k}=" for k in defaults) or "no arguments"
            raise UsageError(f"network '{known}:{written}': {pair!r} is no argument of {known}, which takes {takes}")
        if isinstance(defaults[key], str):
            found[key] = value
        elif value.isdecimal() and int(value) > 0:
            found[key] = int(value)
        else:
            raise UsageError(f"network '{known}:{written}': {key}={value}: need a whole number of at least 1")
    return found
