"""What a network owes the rest: features in stages, an embedding, and logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from ..registry import Registry

#: name -> function (shape (C, H, W), number of classes) -> Backbone, with PyTorch's default initialisation.
NETWORKS: Registry[Callable[..., Backbone]] = Registry("network")


class Backbone(nn.Module, ABC):
    """A classifier whose features can be matched.

    Attributes:
        feature_width: D, the width of `embed`.
        couples_batch: whether samples of a batch influence each other (batch norm); then a batch cannot be
            split into chunks while training.
    """

    feature_width: int
    couples_batch: bool = False
    classifier: nn.Linear

    @abstractmethod
    def stages(self, x: Tensor) -> list[Tensor]:
        """Feature maps after each block, from normalised images `(B, C, H, W)`."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Features `(B, D)` before the classifier: the paper's g(theta_F; x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, K)`."""
        return self.classifier(self.embed(x))
