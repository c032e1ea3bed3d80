"""The feature extractor: images in, features out, at the speed of the hardware.

It owns one working network whose weights are overwritten to become any member of a pool, so that every member runs
through the same compiled graphs. Normalising, augmenting and embedding happen in one graph, a chunk of images at a
time, while the chunk's maps are still near the core.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..machine.runtime import Runtime
from ..networks import Backbone
from ..spec import DatasetSpec, normalise, to_pixels
from . import augment
from .augment import Draw

#: Samples whose maps are kept for the backward pass, half a megabyte each at 32x32; beyond, a chunk's maps are
#: computed again when its gradient is due: a third more work, and memory that no longer grows with the set.
KEEP_MAPS_OF = 4096
#: How many times larger the maps are that eager code keeps (2.2 MB a sample in fp32): one for each operation, where
#: compiled code fuses them.
EAGER_MAPS = 5


class Extractor:
    """Embeds real batches (no gradient) and synthetic samples (gradient to the pixels) with frozen weights.

    Args:
        network: the working network; its weights are replaced by `load`.
        spec: gives the normalisation.
        runtime: device, precision, chunk, compile.
    """

    def __init__(self, network: Backbone, spec: DatasetSpec, runtime: Runtime):
        self.network = network.requires_grad_(False).eval().to(runtime.device)
        self.runtime = runtime
        self.mean = torch.tensor(spec.mean, device=runtime.device)
        self.std = torch.tensor(spec.std, device=runtime.device)
        self._embed_chunk = runtime.compiled(self._embed_one_chunk)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Become the network with these weights; compiled graphs stay."""
        self.network.load_state_dict(weights)

    @torch.no_grad()
    def embed_real(self, images: Tensor, draw: Draw) -> Tensor:
        """Features `(B, D)` fp32 of real images `(B, C, H, W)` (uint8 or pixels), one row of `draw` each."""
        return self._embed(images, draw)

    def embed_synthetic(self, pixels: Tensor, draw: Draw) -> Tensor:
        """Features `(B, D)` fp32 of decoded synthetic samples `(B, C, H, W)`, differentiable in `pixels`."""
        kept = len(pixels) * (1 if self.runtime.compile else EAGER_MAPS)
        return self._embed(pixels, draw, recompute=kept > KEEP_MAPS_OF)

    def classify(self, features: Tensor) -> Tensor:
        """Logits `(..., num_classes)` of features `(..., D)` by the classifier of the network now loaded."""
        return self.network.classifier(features)

    def _embed(self, images: Tensor, draw: Draw, *, recompute: bool = False) -> Tensor:
        device = torch.device(self.runtime.device)
        uniform = draw.uniform.to(device)
        embed = partial(checkpoint, self._embed_chunk, use_reentrant=False) if recompute else self._embed_chunk
        features = [
            embed(chunk.images, draw.operations, chunk.uniform)[: chunk.filled]
            for chunk in chunks(images.to(device), uniform, self.runtime.chunk_of(len(images)))
        ]
        return torch.cat(features)

    def _embed_one_chunk(self, images: Tensor, operations: tuple[str, ...], uniform: Tensor) -> Tensor:
        x = normalise(to_pixels(images), self.mean, self.std)
        x = augment.apply(x, operations, uniform)
        with self.runtime.autocast():
            return self.network.embed(x).float()


class Chunk(NamedTuple):
    images: Tensor
    uniform: Tensor
    filled: int


def chunks(images: Tensor, uniform: Tensor, size: int) -> list[Chunk]:
    """Pieces of exactly `size` images, as `Runtime.chunk_of` gives it; the last is filled up by repetition."""
    found = []
    # One split, not a slice per chunk: the gradient of a slice is as large as the whole set.
    for x, u in zip(images.split(size), uniform.split(size), strict=True):
        filled = len(x)
        if filled < size:
            index = torch.arange(size, device=images.device) % filled
            x, u = x[index], u[index]
        found.append(Chunk(x, u, filled))
    return found
