"""The exact set: stored images, spec, factor and provenance in one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..synthetic import SyntheticSet
from .base import EXPORTS, Form


def to_safetensors(synthetic: SyntheticSet, facts: Mapping[str, Any]) -> bytes:
    return synthetic.to_bytes()


EXPORTS.register("safetensors")(Form(to_safetensors, (".safetensors",)))
