"""The feature extractor: samples in, features out, at the speed of the hardware.

It owns one working network, into which the weights of a call are copied unless they are there already, so that all
members of a pool run through the same compiled graphs. Normalising, augmenting and embedding happen in one graph, a
chunk of samples at a time, while the chunk's maps are still near the core.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..machine.allocator import return_freed_memory
from ..machine.chunks import chunks
from ..machine.runtime import Runtime
from ..networks import Backbone
from ..spec import DatasetSpec
from .augment import Draw
from .gradients import Weights
from .view import View

#: Samples whose maps are kept for the backward pass, half a megabyte each at 32x32; beyond, a chunk's maps are
#: computed again when its gradient is due: a third more work, and memory that no longer grows with the set.
KEEP_MAPS_OF = 4096
#: How many times larger the maps are that eager code keeps (2.2 MB a sample in fp32): one for each operation, where
#: compiled code fuses them.
EAGER_MAPS = 5


class Levels(NamedTuple):
    """What a network makes of the samples of each class on its way.

    Attributes:
        means: class means `(K, C, H, W)` of each block's map before its pooling, and of the last one's after it.
        features: `(K, N, D)`.
    """

    means: list[Tensor]
    features: Tensor


class Extractor:
    """Embeds samples with frozen weights, which every call is given; mappings of weights are never rewritten.

    Gradients of features are to be taken before other weights are used: autograd refuses later.

    Args:
        network: the working network; its own weights are overwritten.
        spec: gives the normalisation.
        runtime: device, precision, chunk, compile.
    """

    def __init__(self, network: Backbone, spec: DatasetSpec, runtime: Runtime):
        self.network = network.requires_grad_(False).eval().to(runtime.device)
        self.runtime = runtime
        self.view = View(spec, runtime.device)
        self.shape = spec.shape
        self._present: Weights | None = None
        self._embed_chunk = runtime.compiled(self._embed_one_chunk)
        # In two graphs: a method that draws one operation a step would compile the network once for each of them.
        self._see = runtime.compiled(self.view.__call__)
        self._levels_chunk = runtime.compiled(self._levels_of_one_chunk)

    def embed(self, weights: Weights, samples: Tensor, draw: Draw) -> Tensor:
        """Features `(K, N, D)` fp32 of samples `(K, N, C, H, W)`, uint8 or pixels, under one row of `draw` per class.

        Differentiable in pixels that ask for their gradient.
        """
        self._use(weights)
        classes, count = samples.shape[:2]
        with torch.set_grad_enabled(samples.requires_grad and torch.is_grad_enabled()):
            return self._embed(samples.flatten(0, 1), draw.repeat(count)).unflatten(0, (classes, count))

    def levels(self, weights: Weights, samples: Tensor, draw: Draw) -> Levels:
        """Class means of the maps of every block, and features, of samples as for `embed`; differentiable like it."""
        self._use(weights)
        classes, count = samples.shape[:2]
        share = torch.eye(classes, device=self.runtime.device).repeat_interleave(count, dim=0) / count
        with torch.set_grad_enabled(samples.requires_grad and torch.is_grad_enabled()):
            means, features = self._levels(samples.flatten(0, 1), draw.repeat(count), share)
        return Levels(means, features.unflatten(0, (classes, count)))

    def classify(self, weights: Weights, features: Tensor) -> Tensor:
        """Logits `(..., num_classes)` of features `(..., D)` by the network's own classifier."""
        self._use(weights)
        return self.network.classify(features)

    @cached_property
    def channels(self) -> int:
        """Of the map that features are, flattened; where they are no map, each feature is a channel of its own."""
        with torch.no_grad():
            last = self.network.maps(torch.zeros(1, *self.shape, device=self.runtime.device))[-1].after
        width = self.network.feature_width
        return last.shape[1] if last[0].numel() == width else width

    def _use(self, weights: Weights) -> None:
        if weights is not self._present:
            self.network.load_state_dict(weights)
            self._present = weights

    def _embed(self, samples: Tensor, draw: Draw) -> Tensor:
        device, embed = torch.device(self.runtime.device), self._sparing(self._embed_chunk, len(samples))
        features = []
        size = self.runtime.chunk_of(len(samples))
        for (x, uniform), filled in chunks(size, samples.to(device), draw.uniform.to(device)):
            features.append(embed(x, draw.operations, uniform)[:filled])
        return torch.cat(features)

    def _levels(self, samples: Tensor, draw: Draw, share: Tensor) -> tuple[list[Tensor], Tensor]:
        device, look = torch.device(self.runtime.device), self._sparing(self._levels_chunk, len(samples))
        means, features = list[Tensor](), list[Tensor]()
        size = self.runtime.chunk_of(len(samples))
        for (x, uniform, part), filled in chunks(size, samples.to(device), draw.uniform.to(device), share):
            part = F.pad(part[:filled], (0, 0, 0, size - filled))  # what fills the last chunk up weighs nothing
            *sums, found = look(self._see(x, draw.operations, uniform), part)
            means = [a + b for a, b in zip(means, sums, strict=True)] if means else sums
            features.append(found[:filled])
        return means, torch.cat(features)

    def _sparing(self, look: Callable[..., Any], count: int) -> Callable[..., Any]:
        """`look`, computed again on the way back where maps of `count` samples are too many to keep."""
        if count * (1 if self.runtime.compile else EAGER_MAPS) <= KEEP_MAPS_OF:
            return look
        if not self.runtime.compile:
            look = _in_returned_memory(look)
        return partial(checkpoint, look, use_reentrant=False) if torch.is_grad_enabled() else look

    def _levels_of_one_chunk(self, x: Tensor, share: Tensor) -> tuple[Tensor, ...]:
        """Of seen samples: sums of maps by `share` `(B, K)`, `(K, C, H, W)` for each level, and features `(B, D)`."""
        with self.runtime.autocast():
            maps = self.network.maps(x)
            features = self.network.embed_map(maps[-1].after).float()
        seen = [*(found.before for found in maps), maps[-1].after]
        return *(torch.einsum("bk,bchw->kchw", share, found.float()) for found in seen), features

    def _embed_one_chunk(self, samples: Tensor, operations: tuple[str, ...], uniform: Tensor) -> Tensor:
        x = self.view(samples, operations, uniform)
        with self.runtime.autocast():
            return self.network.embed(x).float()


def _in_returned_memory(look: Callable[..., Any]) -> Callable[..., Any]:
    """`look`, after the maps of former chunks were handed back: of many sizes and cut up by the features that stay, the
    room that the C library keeps of them would grow from chunk to chunk."""

    def looks(*given: Any) -> Any:
        return_freed_memory()
        return look(*given)

    return looks
