"""A small vision transformer (Dosovitskiy et al., 2021): 64 patches, six layers, mean pooling."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .base import NETWORKS, Backbone, Maps, chain


class Layer(nn.Module):
    """Norm, self-attention, norm, two linear layers with GELU; each pair added to its input. Maps `(B, D, h, w)`."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # (B, T, D)
        tokens = tokens + self.out(self._attend(self.norm1(tokens)))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.transpose(1, 2).reshape(x.shape)

    def _attend(self, tokens: Tensor) -> Tensor:
        # Written out: the fused attention of torch cannot be differentiated forward over reverse.
        batch, count, width = tokens.shape
        heads = self.qkv(tokens).reshape(batch, count, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # (B, heads, T, D / heads) each
        scores = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]), dim=-1)
        return (scores @ v).transpose(1, 2).reshape(batch, count, width)


class ViT(Backbone):
    """Patches of an eighth of the side, learned positions, pre-norm layers; the embedding is the mean of the tokens.

    Raises:
        UsageError: a side that eight patches do not divide, or a width that the heads do not.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, *, width: int, depth: int, heads: int = 3):
        super().__init__()
        channels, height, width_px = shape
        across = [next((n for n in (8, 7, 6, 5, 4) if side % n == 0), 0) for side in (height, width_px)]
        if not all(across):
            raise UsageError(f"network vit at {height}x{width_px}: need sides that 4 to 8 patches divide; use convnet")
        if width < heads or width % heads:
            raise UsageError(f"network width={width}: vit has {heads} heads and needs a multiple of {heads}")
        patch = (height // across[0], width_px // across[1])
        self.patches = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, width, *across))
        self.blocks = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.feature_width = width
        self.classifier = nn.Linear(width, num_classes)

    def maps(self, x: Tensor) -> list[Maps]:
        return chain(self.blocks, self.patches(x) + self.positions)

    def embed_map(self, last: Tensor) -> Tensor:
        return self.norm(last.flatten(2).transpose(1, 2)).mean(dim=1)


@NETWORKS.register("vit")
def vit(shape: tuple[int, int, int], num_classes: int, *, width: int = 192, depth: int = 6) -> Backbone:
    """A small vision transformer: 8x8 patches (7x7 at 28 pixels), six layers, 192 wide, three heads."""
    return ViT(shape, num_classes, width=width, depth=depth)
