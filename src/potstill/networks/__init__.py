"""Networks by name. A new one is a file here and an import line below."""

from __future__ import annotations

import torch

from ..seeding import derive
from ..spec import DatasetSpec
from . import convnet as _convnet  # noqa: F401  (registers itself)
from . import resnet as _resnet  # noqa: F401
from .base import NETWORKS, Backbone

__all__ = ["NETWORKS", "Backbone", "build_network"]


def build_network(name: str, spec: DatasetSpec, seed: int) -> Backbone:
    """A freshly initialised network for `spec`; the same `(name, seed)` gives the same weights.

    Raises:
        UsageError: an unknown name (the known are listed) or a network that cannot take the image side.
    """
    build = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "initial weights", name))
        return build(spec.shape, spec.num_classes)
