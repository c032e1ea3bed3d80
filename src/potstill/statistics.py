"""Class statistics of features: prototypes, covariances and the distance between covariances.

Pure functions on float tensors; leading axis K = classes. Legend: K classes, N real, M synthetic, D features.
The same distance is written twice: directly, as the paper has it, and through Gram matrices, which is equal and
needs N x N and N x M products in place of D x D. Run them outside autocast: the difference of two covariances is
small against either.
"""

from __future__ import annotations

import torch
from torch import Tensor


def prototypes(features: Tensor) -> Tensor:
    """Class means: `(K, N, D)` to `(K, D)`. DSDM Eq. (4), second line."""
    return features.mean(dim=1)


def centred(features: Tensor) -> Tensor:
    """Features less their class prototype, `(K, N, D)`."""
    return features - features.mean(dim=1, keepdim=True)


def covariances(features: Tensor, ddof: int) -> Tensor:
    """Class covariances `(K, D, D)`, divisor `N - ddof`. DSDM Eq. (5): ddof 0 in the paper, 1 in the authors' code."""
    rows = centred(features)
    return rows.transpose(1, 2) @ rows / (features.shape[1] - ddof)


def covariance_distance_direct(real: Tensor, synthetic: Tensor, ddof: int) -> Tensor:
    """Squared Frobenius distance of the class covariances, `(K,)`, through D x D matrices: the plain formula."""
    difference = covariances(real, ddof) - covariances(synthetic, ddof)
    return difference.square().sum(dim=(1, 2))


def covariance_distance_gram(real: Tensor, synthetic: Tensor, ddof: int) -> Tensor:
    """The same `(K,)` through Gram matrices of the centred rows X and Y with divisors a and b:

    ||X'X/a - Y'Y/b||^2 = ||XX'||^2/a^2 - 2 ||XY'||^2/(ab) + ||YY'||^2/b^2.
    """
    x, y = centred(real), centred(synthetic)
    a, b = real.shape[1] - ddof, synthetic.shape[1] - ddof
    return _gram(x, x) / a**2 - 2 * _gram(x, y) / (a * b) + _gram(y, y) / b**2


def covariance_distance(real: Tensor, synthetic: Tensor, ddof: int) -> Tensor:
    """Squared Frobenius distance of the class covariances `(K,)`, by the cheaper of the two forms.

    Never holds more than min(D^2, (N + M)^2) numbers per class.
    """
    n, m, d = real.shape[1], synthetic.shape[1], real.shape[2]
    cheaper = covariance_distance_gram if n + m < d else covariance_distance_direct
    return cheaper(real, synthetic, ddof)


def spread(features: Tensor, ddof: int) -> Tensor:
    """Trace of the class covariance `(K,)`: how far samples lie from their prototype."""
    return centred(features).square().sum(dim=(1, 2)) / (features.shape[1] - ddof)


def _gram(x: Tensor, y: Tensor) -> Tensor:
    return torch.bmm(x, y.transpose(1, 2)).square().sum(dim=(1, 2))
