"""Features that are matched: of real batches, drawn afresh at every step or reused from a bank, and of the decoded set.

A real batch comes with the augmentation draw that made it, which the synthetic samples must share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..augment import Draw, Strategy
from ..errors import UsageError
from ..seeding import generator
from .base import Problem


class RealBatch(NamedTuple):
    """Features `(K, N, D)` of one real batch per class, and its draw with one row per class."""

    features: Tensor
    draw: Draw


RealSource = Callable[[int, int], RealBatch]  # (member, step) -> batch; the extractor has loaded the member


def real_source(
    problem: Problem, strategy: Strategy, *, size: int, statistics: str, draws: int, budget: float
) -> RealSource:
    """Where real features come from.

    Args:
        size: real images per class and batch.
        statistics: "fresh" (the paper) or "bank" (an approximation that saves two thirds of the work at IPC 10).
        draws: for "bank": (batch, augmentation) draws kept per network.
        budget: for "bank": gigabytes it may take; fewer draws are kept where they would not fit.
    Raises:
        UsageError: an unknown choice, or a budget below one draw per network.
    """
    if statistics == "fresh":
        return lambda member, step: embed_batch(problem, strategy, size, step)
    if statistics == "bank":
        return Bank(problem, strategy, size=size, draws=draws, budget=budget)
    raise UsageError(f"method.real_statistics={statistics!r}: use fresh or bank")


def embed_batch(problem: Problem, strategy: Strategy, size: int, number: int) -> RealBatch:
    """Batch number `number` of every class through the network now loaded."""
    drawn = problem.class_draw(strategy, number)
    images = problem.class_batches(size, number)
    per_class = len(images) // len(problem.classes)
    features = problem.extractor.embed_real(images, drawn.repeat(per_class))
    return RealBatch(features.unflatten(0, (len(problem.classes), per_class)), drawn)


def embed_decoded(problem: Problem, samples: Tensor, draw: Draw) -> Tensor:
    """Features `(K, M, D)` of decoded samples `(K, M, C, H, W)` under one row of `draw` per class; keeps gradients."""
    features = problem.extractor.embed_synthetic(samples.flatten(0, 1), draw.repeat(samples.shape[1]))
    return features.unflatten(0, samples.shape[:2])


class Bank:
    """Feature batches kept per network, filled when first used, so that a resumed run fills it alike.

    `draws` x networks x K x N x D numbers in bf16.
    """

    def __init__(self, problem: Problem, strategy: Strategy, *, size: int, draws: int, budget: float):
        members = len(problem.require_pool("bank"))
        # Of all classes, whatever the shard: the number of draws decides which batches are seen.
        rows = members * problem.spec.num_classes * problem.batch_size(size)
        one = rows * problem.extractor.network.feature_width * 2
        fitting = int(budget * 1e9 // one)
        if fitting < 1:
            raise UsageError(
                f"method.bank_gigabytes={budget:g}: one draw for {members} networks takes {one / 1e9:.2f} GB; "
                "raise it, lower method.real_batch or use real_statistics=fresh"
            )
        self.problem, self.strategy, self.size = problem, strategy, size
        self.draws = min(draws, fitting)
        self._kept: dict[tuple[int, int], tuple[Tensor, Draw]] = {}

    def __call__(self, member: int, step: int) -> RealBatch:
        slot = int(torch.randint(self.draws, (), generator=generator(self.problem.seed, "bank", step)))
        if (member, slot) not in self._kept:
            batch = embed_batch(self.problem, self.strategy, self.size, member * self.draws + slot)
            self._kept[member, slot] = (batch.features.bfloat16(), batch.draw)
        features, drawn = self._kept[member, slot]
        return RealBatch(features.float(), drawn)
