"""Class means weighted by influence: what each sample asks of the network's classifier, beside where it lies.

The idea of Inf-Match (CVPR 2026). The gradient of the cross-entropy at the logits of a sample is g =
softmax(z) - one-hot(y), that at the classifier's row of output j is g_j f. A mean of (1 + rho g_j) f for each j tells
two sets apart whose mean features are equal, and of which the network is not equally sure.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def influence_means(features: Tensor, logits: Tensor, labels: Tensor, rho: float) -> Tensor:
    """Means over the samples of each class of (1 + rho g_j) f, for each output j of the classifier: `(K, C, D)`.

    Args:
        features: `(K, N, D)`.
        logits: `(K, N, C)` of the same samples.
        labels: `(K,)` class index of each row.
    """
    influence = logits.softmax(dim=2) - F.one_hot(labels, logits.shape[2])[:, None]
    return torch.einsum("knc,knd->kcd", 1 + rho * influence, features) / features.shape[1]


def match_influence_means(real: Tensor, synthetic: Tensor) -> Tensor:
    """Squared distance of `influence_means` `(K, C, D)`, a mean over outputs, summed over classes.

    Of rho 0 it is `match_prototypes`.
    """
    return (real - synthetic).square().sum() / real.shape[1]
