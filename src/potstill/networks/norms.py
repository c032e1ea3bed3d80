"""Normalisation layers by the names a recipe uses."""

from __future__ import annotations

from torch import nn

from ..errors import UsageError

NORMS = ("instance", "batch", "group", "none")


def norm_layer(kind: str, channels: int) -> nn.Module:
    """A layer with an affine: instance (every channel by itself), batch, group (4 groups, as in DC's code) or none.

    Raises:
        UsageError: an unknown kind, or channels that four groups do not divide.
    """
    if kind == "instance":
        return nn.GroupNorm(channels, channels)
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        if channels % 4:
            raise UsageError(f"network width={channels}: group norm has 4 groups and needs a multiple of 4")
        return nn.GroupNorm(4, channels)
    if kind == "none":
        return nn.Identity()
    raise UsageError(f"network norm={kind!r}: use one of {', '.join(NORMS)}")
