"""What eight bits keep of a set: the samples that pictures show, clamped to the value range and rounded.

Level 0 is the lowest value of the spec's range and level 255 the highest, in even steps.
"""

from __future__ import annotations

import io
import math
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from ...errors import DataError, UsageError
from ...spec import DatasetSpec
from ..synthetic import SyntheticSet
from .base import logger

TOP = 255


def quantise(synthetic: SyntheticSet) -> SyntheticSet:
    """The set as a folder of pictures holds it, to be evaluated beside the exact one.

    The stored images are decoded first, as pictures show decoded samples: the answer has factor (1, 1).

    Raises:
        UsageError: a value range that is not finite.
        DataError: values that are not finite.
    """
    levels, _ = sample_levels(synthetic)
    images = from_levels(levels, synthetic.spec).reshape(len(synthetic.classes), -1, *synthetic.spec.shape)
    facts = {**synthetic.provenance, "pixels": "8 bits", "stored": synthetic.way.describe()}
    return replace(synthetic, images=images, parameterisation=(1, 1), levels=None, provenance=facts, _decoded=None)


def sample_levels(synthetic: SyntheticSet) -> tuple[Tensor, float]:
    """Levels `(N, C, H, W)` uint8 of all decoded samples, and the share of values that had to be clamped.

    Raises:
        as `quantise`.
    """
    low, high = _finite_range(synthetic.spec)
    samples = synthetic.decoded().images.detach().cpu()
    if not torch.isfinite(samples).all():
        raise DataError(f"the set for {synthetic.spec.name} has NaN or infinite values, expected finite ones")
    clipped = float(((samples < low) | (samples > high)).double().mean())
    if clipped:
        logger.warning("%.2g %% of the values lie outside %g to %g and are clamped", 100 * clipped, low, high)
    return to_levels(samples, synthetic.spec), clipped


def to_levels(pixels: Tensor, spec: DatasetSpec) -> Tensor:
    """uint8 levels of values on the spec's scale, clamped and rounded to the nearest."""
    low, high = _finite_range(spec)
    # float64: the nearest level, also where the range is narrow beside its distance from zero.
    return ((pixels.double() - low) / (high - low) * TOP).round().clamp(0, TOP).to(torch.uint8)


def from_levels(levels: Tensor, spec: DatasetSpec) -> Tensor:
    """The float32 values that levels stand for; for images uint8 divided by 255."""
    low, high = _finite_range(spec)
    return levels.float() / TOP * (high - low) + low


def _finite_range(spec: DatasetSpec) -> tuple[float, float]:
    low, high = spec.value_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(
            f"the value range of {spec.name} is {low:g} to {high:g}: pictures need two finite ends, "
            "export to safetensors or pt instead"
        )
    return low, high


def png_bytes(levels: Tensor) -> bytes:
    """One sample `(C, H, W)` uint8 as a gray (C = 1) or colour (C = 3) PNG.

    Raises:
        UsageError: another number of channels.
    """
    channels = levels.shape[0]
    if channels not in (1, 3):
        raise UsageError(f"{channels} channels: a picture holds 1 or 3, export to safetensors or pt instead")
    pixels = levels[0] if channels == 1 else levels.permute(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(file, format="PNG", optimize=True)
    return file.getvalue()
