"""What DANCE, TGDD and NCFM ask of the training runs that made the pool."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UsageError
from ..learning.augment import Draw
from ..learning.gradients import Weights
from ..learning.pool import Pool
from ..matching.features import calibrate
from .problem import Problem


def require_initial(pool: Pool, method: str) -> None:
    """Raises UsageError where the pool's runs do not begin with the untrained network."""
    if pool.moments and pool.moments[0] != 0:
        kept = ", ".join(f"{moment:g}" for moment in pool.moments)
        raise UsageError(
            f"method {method!r} starts from untrained networks, and the pool keeps epochs {kept}: "
            "add 0 to pool.snapshots"
        )


def mixed(initial: Weights, final: Weights, share: float) -> Weights:
    """`share` of the initial weights and the rest of the final ones; whole numbers (counts) are the final ones."""
    return {
        name: torch.lerp(value, initial[name], share) if value.is_floating_point() else value
        for name, value in final.items()
    }


def calibration(problem: Problem, weights: Weights, samples: Tensor, draw: Draw) -> Tensor:
    """Cross-entropy of a network's own classifier on samples `(K, M, C, H, W)`: class means, summed over classes."""
    features = problem.extractor.embed(weights, samples, draw)
    labels = torch.tensor(problem.classes, device=features.device)
    return calibrate(problem.extractor.classify(weights, features), labels)
