"""From arrays in any common layout to `(N, C, H, W)` tensors: shape, type and value checks. Knows no files.

N images, C channels, H height, W width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..errors import DataError
from .records import MIN_SIDE, RawSplit, Size, as_sides

TOLERANCE = 1e-6  # of a pixel that passed through another range
NOMINAL = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))  # ranges that pixels are usual in

CHUNK = 1024  # images converted at a time: bounds the float copy of a uint8 set


def to_images(split: RawSplit) -> Tensor:
    """Images as contiguous `(N, C, H, W)`, uint8 where they are whole numbers, else float32.

    Raises:
        DataError: another number of images than labels, a layout or type that is not one of images,
            sides below 8, or values that are not finite.
    """
    images = split.images
    if len(images) != len(split.labels):
        raise DataError(f"{split.origin}: {len(images)} images but {len(split.labels)} labels, expected one per image")
    images = _channels_first(images, split.origin)
    images = _as_bytes(images, split.origin) if images.dtype.kind in "iu" else _as_floats(images, split.origin)
    return torch.from_numpy(np.require(images, requirements=["C", "W"]))


def _channels_first(images: np.ndarray, origin: str) -> np.ndarray:
    # Sides are at least 8 and channels at most 3, so the two 4-D layouts cannot be taken for each other.
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(
            f"{origin}: images of shape {images.shape}, expected (N, C, H, W), (N, H, W, C) or (N, H, W) "
            "with 1 or 3 channels"
        )
    if min(images.shape[2:]) < MIN_SIDE:
        height, width = images.shape[2:]
        raise DataError(f"{origin}: images of {height}x{width} pixels, expected at least {MIN_SIDE}x{MIN_SIDE}")
    return images


def _as_bytes(images: np.ndarray, origin: str) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    low, high = int(images.min()), int(images.max())
    if low < 0 or high > 255:
        raise DataError(f"{origin}: {images.dtype} pixels from {low} to {high}, expected 0 to 255, or floats")
    return images.astype(np.uint8)


def _as_floats(images: np.ndarray, origin: str) -> np.ndarray:
    if images.dtype.kind != "f":
        raise DataError(f"{origin}: images of type {images.dtype}, expected uint8 or float")
    images = images.astype(np.float32, copy=False)
    for start in range(0, len(images), CHUNK):
        finite = np.isfinite(images[start : start + CHUNK]).all(axis=(1, 2, 3))
        if not finite.all():
            first = start + int(np.argmin(finite))
            raise DataError(f"{origin}: image {first} has NaN or infinite pixels, expected finite values")
    return images


def source_range(train: Tensor, test: Tensor, origin: str) -> tuple[float, float]:
    """The numbers of a float set that become 0 and 1: a usual range of pixels, else that of the training split.

    Raises:
        DataError: training pixels are in [0, 1], test pixels are not.
    """
    (low, high), (low_test, high_test) = (tuple(map(float, x.aminmax())) for x in (train, test))
    if low >= 0 and high <= 1 and (low_test < 0 or high_test > 1):
        raise DataError(
            f"{origin}: pixels from {low_test:g} to {high_test:g}, expected 0 to 1 as in the training split: "
            "scale both splits alike"
        )
    for bottom, top in NOMINAL:
        # A range that is mostly empty is not the one meant: sound in 0..3 is not 0..255.
        if bottom <= min(low, low_test) and max(high, high_test) <= top and high > top / 4:
            return bottom, top
    return (low, high) if low < high else (low, low + 1)


def scaled(samples: Tensor, low: float, high: float) -> Tensor:
    """Float samples with `low` at 0 and `high` at 1."""
    return samples if (low, high) == (0, 1) else (samples - low) / (high - low)


def exact_bytes(images: Tensor) -> Tensor | None:
    """The uint8 images that these float pixels are, divided by 255; None if they are anything else.

    Data sets with a to-tensor transform hand over bytes as floats. Stored as bytes they are the same pixels in a
    quarter of the memory, with the same fingerprint as the original files.
    """
    if images.dtype == torch.uint8:
        return images
    whole = torch.empty(images.shape, dtype=torch.uint8)
    for pixels, target in zip(images.split(CHUNK), whole.split(CHUNK), strict=True):
        scaled = (pixels * 255).round().clamp(0, 255)
        if (scaled / 255 - pixels).abs().max() > TOLERANCE:
            return None
        target.copy_(scaled)
    return whole


def resize(images: Tensor, size: Size) -> Tensor:
    """`(N, C, H, W)` to the given sides, bilinear with anti-aliasing; keeps the type. A fitting size is a no-op."""
    sides = as_sides(size)
    if tuple(images.shape[2:]) == sides:
        return images
    resized = torch.empty(*images.shape[:2], *sides, dtype=images.dtype)
    for pixels, target in zip(images.split(CHUNK), resized.split(CHUNK), strict=True):
        scaled = functional.interpolate(pixels.float(), sides, mode="bilinear", antialias=True)
        target.copy_(scaled.round().clamp(0, 255) if images.dtype == torch.uint8 else scaled)
    return resized
