"""What is measured of a finished split: range, mean and deviation, fingerprint. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from ..spec import Split
from .layout import CHUNK
from .records import Statistics


def channel_statistics(images: Tensor) -> Statistics:
    """Mean and standard deviation per channel over all pixels of `(N, C, H, W)`, on the pixel scale.

    Sums run in float64 over chunks: float32 sums over 50 million pixels lose the third digit.
    """
    # Measured from the first pixel, so that a constant channel gives exactly 0 and not the rounding of a difference.
    shift = images[0, :, :1, :1].double()
    total, squares = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for part in images.split(CHUNK):
        centred = part.double() - shift
        total += centred.sum(dim=(0, 2, 3))
        squares += centred.square_().sum(dim=(0, 2, 3))
    count = images.numel() // images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    scale = 255 if images.dtype == torch.uint8 else 1
    return tuple(((mean + shift.flatten()) / scale).tolist()), tuple((std / scale).tolist())


def fingerprint(train: Split, test: Split, classes: Sequence[str]) -> str:
    """Hash of all that a result can depend on: shapes, types, pixels, labels and class names, in their order."""
    digest = _digest(train, test)
    digest.update(json.dumps(list(classes)).encode())
    return digest.hexdigest()


def split_fingerprint(split: Split) -> str:
    """Hash of one split alone: shapes, types, pixels and labels."""
    return _digest(split).hexdigest()


def _digest(*splits: Split) -> blake2b:
    digest = blake2b(digest_size=16)
    for split in splits:
        for tensor in (split.images, split.labels):
            digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
            digest.update(tensor.cpu().contiguous().numpy().reshape(-1).data)
    return digest
