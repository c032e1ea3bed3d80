"""The losses of the paper, as pure functions of features. Weights and state belong to the method.

Features come as `(K, N, D)`: K classes, N samples each, D features. Every loss is a sum over classes, so the
gradient of one class does not depend on which others are distilled with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from .statistics import Scatter, covariance_distance, prototypes


def match_prototypes(real: Tensor, synthetic: Tensor) -> Tensor:
    """Squared distance between class prototypes, summed over classes: DSDM Eq. (4).

    Args:
        real: `(K, N, D)` features of real batches; treated as constant.
        synthetic: `(K, M, D)` features of the decoded synthetic samples; carries the gradient.
    Returns:
        Scalar >= 0.
    """
    return (prototypes(real) - prototypes(synthetic)).square().sum()


def match_covariances(real: Tensor, synthetic: Tensor, *, ddof: int = 1, known: Scatter | None = None) -> Tensor:
    """Squared distance between class covariances, per feature, summed over classes: DSDM Eq. (5).

    Prototypes fix where a class lies; covariances fix how it spreads, and so keep the synthetic set diverse.

    Args:
        real: `(K, N, D)`, constant.
        synthetic: `(K, M, D)`, carries the gradient.
        ddof: the divisor is the sample count less this: 0 in the paper, 1 in the authors' code (fidelity.md, 1).
        known: `statistics.scatter(real)`, where it was worked out before; the result is the same.
    Returns:
        Scalar >= 0: the D x D entries' squared differences summed, divided by D.
    Raises:
        UsageError: fewer than two samples on either side: one sample has no covariance.
    """
    n, m = real.shape[1], synthetic.shape[1]
    if min(n, m) < 2:
        raise UsageError(
            f"covariance of {min(n, m)} sample per class: need at least 2; "
            "raise ipc or factor, or set method.covariance_weight=0"
        )
    return covariance_distance(real, synthetic, ddof, known).sum() / real.shape[2]


def match_channel_covariances(real: Tensor, synthetic: Tensor, channels: int, *, ddof: int = 1) -> Tensor:
    """Squared distance between the covariances of a class's channels, per channel, summed over classes.

    Not in the paper: the idea of IID (CVPR 2024). Every position of every sample's last map counts as one observation
    of `channels` numbers, so the C x C covariance has full rank where that of all features has that of the batch.

    Args:
        real: `(K, N, D)`, constant; D = C x P, the channels of a map of P positions, flattened.
        synthetic: `(K, M, D)`, carries the gradient.
        channels: C; D where features have no positions, which leaves `match_covariances`.
        ddof: the divisor is the count of observations less this.
    Raises:
        UsageError: fewer than two observations on either side.
    """
    return match_covariances(observations(real, channels), observations(synthetic, channels), ddof=ddof)


def observations(features: Tensor, channels: int) -> Tensor:
    """Features `(K, N, C x P)` as `(K, N x P, C)`: a row for each position of each sample."""
    return features.unflatten(2, (channels, -1)).transpose(2, 3).flatten(1, 2)


def match_history(synthetic: Tensor, historical: Tensor, *, divide: bool = False) -> Tensor:
    """Squared distance of synthetic prototypes to their history, summed over classes: DSDM Eq. (6).

    Args:
        synthetic: `(K, M, D)`, carries the gradient.
        historical: `(K, D)` integrated prototypes after the previous step, constant.
        divide: divide by D as well, as the authors' code does (fidelity.md, 3).
    """
    distance = (prototypes(synthetic) - historical).square().sum()
    return distance / synthetic.shape[2] if divide else distance


def integrate_history(historical: Tensor, current: Tensor, smoothing: float) -> Tensor:
    """Exponential average of prototypes, Eq. (8) for t > 1: `smoothing * h + (1 - smoothing) * current`, `(K, D)`."""
    return torch.lerp(current, historical, smoothing)


def calibrate(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of a trained network's own classifier on the synthetic samples, summed over classes.

    Not in the paper: the idea of DANCE, IDM and NCFM. Matching alone lets samples drift across the network's
    decision borders; this holds them on their side.

    Args:
        logits: `(K, M, num_classes)` of the decoded, augmented samples.
        labels: `(K,)` class index of each row.
    Returns:
        Scalar >= 0: per class the mean over its M samples.
    """
    per_sample = F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1]), reduction="none")
    return per_sample.sum() / logits.shape[1]
