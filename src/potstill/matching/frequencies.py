"""Distances of distributions through their characteristic functions: NCFM (Wang et al., CVPR 2025)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Keeps the root's gradient finite where phases agree, as the published code does.
LEAST = 1e-12


def match_characteristic_functions(real: Tensor, synthetic: Tensor, frequencies: Tensor, phase: float = 0.5) -> Tensor:
    """Distance of the empirical characteristic functions, averaged over frequencies, summed over classes: NCFM's loss.

    With phi(t) the mean of exp(i t.f) over a class's features f, each of norm 1:

        sqrt((1 - phase) (|phi_r| - |phi_s|)^2 + phase 2 (|phi_r| |phi_s| - Re(phi_r conj(phi_s))))

    The first part compares amplitudes (how diverse), the second phases (how realistic).

    Args:
        real: `(K, N, D)` features of real batches, constant; `synthetic`: `(K, M, D)`, carries the gradient.
        frequencies: `(T, D)` draws of a standard normal, new at each step.
        phase: share of the phase part, 0..1.
    Returns:
        Scalar >= 0.
    """
    r_cos, r_sin = _characteristic(real, frequencies)
    s_cos, s_sin = _characteristic(synthetic, frequencies)
    r_size, s_size = torch.hypot(r_cos, r_sin), (s_cos.square() + s_sin.square()).clamp_min(LEAST).sqrt()
    apart = 2 * (r_size * s_size - r_cos * s_cos - r_sin * s_sin)
    squared = (1 - phase) * (r_size - s_size).square() + phase * apart.clamp_min(LEAST)
    return squared.sqrt().mean(dim=1).sum()


def _characteristic(features: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part `(K, T)` of the empirical characteristic function of features `(K, N, D)`."""
    angles = F.normalize(features, dim=2) @ frequencies.T
    return angles.cos().mean(dim=1), angles.sin().mean(dim=1)
