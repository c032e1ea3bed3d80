"""What a network owes the rest: maps of its blocks, an embedding, and logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from ..registry import Registry

#: name -> function (shape (C, H, W), number of classes, keyword arguments) -> network, with its own initialisation.
NETWORKS: Registry[Callable[..., nn.Module]] = Registry("network")


class Maps(NamedTuple):
    """What one block makes of its input, `(B, C, H, W)` each; equal where the block has no pooling at its end."""

    before: Tensor  # the block's activations, before its pooling
    after: Tensor  # what the next block is given


class Backbone(nn.Module, ABC):
    """A classifier whose features can be matched.

    Attributes:
        feature_width: D, the width of `embed`.
        couples_batch: whether samples of a batch influence each other (batch norm); then a batch cannot be
            split into chunks while training.
        architecture: the name that one of ours was built by; networks of one name compute alike and share graphs.
    """

    feature_width: int
    couples_batch: bool = False
    architecture: str = ""
    classifier: nn.Linear

    @abstractmethod
    def maps(self, x: Tensor) -> list[Maps]:
        """Maps of every block, from normalised images `(B, C, H, W)`; `embed` may have a faster way to the last."""

    def embed_map(self, last: Tensor) -> Tensor:
        """Features `(B, D)` of what the last block gives on: the way from `maps` to `embed`."""
        return last.flatten(1)

    def embed(self, x: Tensor) -> Tensor:
        """Features `(B, D)` before the classifier: the paper's g(theta_F; x)."""
        return self.embed_map(self.maps(x)[-1].after)

    def classify(self, features: Tensor) -> Tensor:
        """Logits `(..., K)` of features `(..., D)`."""
        return self.classifier(features)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, K)`."""
        return self.classify(self.embed(x))

    def require_trainable(self) -> None:
        """Raises UsageError where weights are given and stay as they are."""

    def require_logits(self) -> None:
        """Raises UsageError where there is no classifier."""


def line_of(error: Exception) -> str:
    """What a user's code raised, in one line."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"


def chain(blocks: nn.ModuleList, x: Tensor) -> list[Maps]:
    """Maps of blocks in a row, each of which ends without pooling."""
    found = []
    for block in blocks:
        x = block(x)
        found.append(Maps(x, x))
    return found
