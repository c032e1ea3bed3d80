"""Class statistics of features: prototypes, covariances and the distance between covariances.

Pure functions on float tensors; leading axis K = classes. Legend: K classes, N real, M synthetic, D features.
The same distance is written twice: directly, as the paper has it, and through Gram matrices, which is equal and
needs N x N and N x M products in place of D x D. Run them outside autocast: the difference of two covariances is
small against either.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def prototypes(features: Tensor) -> Tensor:
    """Class means: `(K, N, D)` to `(K, D)`. DSDM Eq. (4), second line."""
    return features.mean(dim=1)


def centred(features: Tensor) -> Tensor:
    """Features less their class prototype, `(K, N, D)`."""
    return features - features.mean(dim=1, keepdim=True)


class Scatter(NamedTuple):
    """Of the centred rows X of each class, `(K,)`: tr(X'X) and ||X'X||^2. For constant features worked out once."""

    trace: Tensor
    square: Tensor


def scatter(features: Tensor) -> Scatter:
    """Of features `(K, N, D)`; never holds more than min(D, N)^2 numbers per class."""
    rows = centred(features)
    thin = rows if rows.shape[1] < rows.shape[2] else rows.transpose(1, 2)  # ||XX'|| = ||X'X||
    return Scatter(rows.square().sum(dim=(1, 2)), _gram(thin, thin))


def covariances(features: Tensor, ddof: int) -> Tensor:
    """Class covariances `(K, D, D)`, divisor `N - ddof`. DSDM Eq. (5): ddof 0 in the paper, 1 in the authors' code."""
    rows = centred(features)
    return rows.transpose(1, 2) @ rows / (features.shape[1] - ddof)


def covariance_distance_direct(real: Tensor, synthetic: Tensor, ddof: int) -> Tensor:
    """Squared Frobenius distance of the class covariances, `(K,)`, through D x D matrices: the plain formula."""
    difference = covariances(real, ddof) - covariances(synthetic, ddof)
    return difference.square().sum(dim=(1, 2))


def covariance_distance_gram(real: Tensor, synthetic: Tensor, ddof: int, known: Scatter | None = None) -> Tensor:
    """The same `(K,)` through Gram matrices of the centred rows X and Y with divisors a and b:

    ||X'X/a - Y'Y/b||^2 = ||XX'||^2/a^2 - 2 ||XY'||^2/(ab) + ||YY'||^2/b^2, with ||XX'||^2 = ||X'X||^2.

    Args:
        known: the scatter of `real`, where it was worked out before: it spares the largest of the three products.
    """
    x, y = centred(real), centred(synthetic)
    a, b = real.shape[1] - ddof, synthetic.shape[1] - ddof
    square = known.square if known else _gram(x, x)
    return square / a**2 - 2 * _gram(x, y) / (a * b) + _gram(y, y) / b**2


def covariance_distance(real: Tensor, synthetic: Tensor, ddof: int, known: Scatter | None = None) -> Tensor:
    """Squared Frobenius distance of the class covariances `(K,)`, by the cheaper of the two forms.

    Never holds more than min(D^2, (N + M)^2) numbers per class. `known` as in `covariance_distance_gram`.
    """
    n, m, d = real.shape[1], synthetic.shape[1], real.shape[2]
    if n + m < d:
        return covariance_distance_gram(real, synthetic, ddof, known)
    return covariance_distance_direct(real, synthetic, ddof)


def spread(features: Tensor, ddof: int) -> Tensor:
    """Trace of the class covariance `(K,)`: how far samples lie from their prototype."""
    return centred(features).square().sum(dim=(1, 2)) / (features.shape[1] - ddof)


def _gram(x: Tensor, y: Tensor) -> Tensor:
    return torch.bmm(x, y.transpose(1, 2)).square().sum(dim=(1, 2))
