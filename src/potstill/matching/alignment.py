"""Layer-wise alignment and discrimination: CAFE (Wang et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def align_levels(real: Sequence[Tensor], synthetic: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Sum over levels of weight x squared distance of the class means `(K, ...)`, summed over classes: Eq. 2."""
    terms = [w * (a - b).square().sum() for w, a, b in zip(weights, real, synthetic, strict=True)]
    return torch.stack(terms).sum()


def discriminate(real: Tensor, centres: Tensor) -> Tensor:
    """Cross-entropy of real features `(K, N, D)` told apart by their products with the synthetic class centres.

    Args:
        centres: `(K, D)`, means of synthetic features.
    Returns:
        The sum over all real samples, as in the authors' code.
    """
    labels = torch.arange(len(real), device=real.device).repeat_interleave(real.shape[1])
    return F.cross_entropy(real.flatten(0, 1) @ centres.T, labels, reduction="sum")
