"""Distances of distributions through a kernel: M3D (Zhang et al., AAAI 2024).

A characteristic kernel compares all moments at once, where prototypes compare the first alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Bandwidths as multiples of the mean squared distance, from the published code.
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


def match_kernel_means(real: Tensor, synthetic: Tensor, bandwidths: tuple[float, ...] = BANDWIDTHS) -> Tensor:
    """Squared maximum mean discrepancy under a sum of Gaussian kernels, summed over classes: M3D's loss.

    Biased: a sample's kernel with itself is counted. The bandwidth is the mean squared distance of two different rows
    of the joint batch, treated as constant.

    Args:
        real: `(K, N, D)` features of real batches, constant.
        synthetic: `(K, M, D)` features of the decoded synthetic samples; carries the gradient.
        bandwidths: multiples of that mean, one kernel each.
    Returns:
        Scalar >= 0.
    """
    rows = torch.cat([synthetic, real], dim=1)
    distance = _squared_distances(rows)
    count, m = rows.shape[1], synthetic.shape[1]
    width = distance.detach().sum(dim=(1, 2)) / (count**2 - count)
    kernel = torch.stack([torch.exp(-distance / (b * width)[:, None, None]) for b in bandwidths]).sum(dim=0)
    within = kernel[:, :m, :m].mean(dim=(1, 2)) + kernel[:, m:, m:].mean(dim=(1, 2))
    return (within - 2 * kernel[:, :m, m:].mean(dim=(1, 2))).sum()


def _squared_distances(rows: Tensor) -> Tensor:
    """`(K, R, R)` of rows `(K, R, D)`, from centred rows: differences of large norms would cost the last digits."""
    rows = rows - rows.detach().mean(dim=1, keepdim=True)
    square = rows.square().sum(dim=2)
    products = torch.bmm(rows, rows.transpose(1, 2))
    distance = (square[:, :, None] + square[:, None, :] - 2 * products).clamp_min(0)
    return distance * (1 - torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device))
