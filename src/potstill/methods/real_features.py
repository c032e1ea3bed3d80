"""Features that are matched: of real batches, drawn afresh at every step or reused from a bank, and of the decoded set.

A real batch comes with the augmentation draw that made it, which the synthetic samples must share.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError
from ..learning.augment import Draw, Strategy
from ..matching.statistics import Scatter, scatter
from ..seeding import generator
from .problem import Problem

#: Raised when a change of code makes the same batch of images give other features.
FEATURES_VERSION = 1


class RealBatch(NamedTuple):
    """Features `(K, N, D)` of one real batch per class, its draw with one row per class, and what is known of them."""

    features: Tensor
    draw: Draw
    known: Scatter | None = None


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
        UsageError: a budget below one draw per network.
    """
    if statistics == "fresh":
        return lambda member, step: embed_batch(problem, strategy, size, step)
    key = ("bank", strategy, size, draws, budget)
    return problem.kept(key, lambda: Bank(problem, strategy, size=size, draws=draws, budget=budget))


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
    """Feature batches kept per network: `draws` x networks x K x N x D numbers in bf16.

    Kept in memory and made when first used, so that a resumed run makes them alike; or, where the problem has a
    feature store, all made at the start (together with whoever else is filling it) and read from there.
    """

    def __init__(self, problem: Problem, strategy: Strategy, *, size: int, draws: int, budget: float):
        self.pool = problem.require_pool("bank")
        # Of all classes, whatever the shard: the number of draws decides which batches are seen.
        rows = len(self.pool) * problem.spec.num_classes * problem.batch_size(size)
        one = rows * problem.extractor.network.feature_width * 2
        fitting = int(budget * 1e9 // one)
        if fitting < 1:
            raise UsageError(
                f"method.bank_gigabytes={budget:g}: one draw for {len(self.pool)} networks takes {one / 1e9:.2f} GB; "
                "raise it, lower method.real_batch or use real_statistics=fresh"
            )
        self.problem, self.strategy, self.size = problem, strategy, size
        self.draws = min(draws, fitting)
        self._kept: dict[int, tuple[Tensor, Scatter]] = {}  # by batch number
        if problem.features:
            numbers = range(len(self.pool) * self.draws)
            problem.features.fill([(self._name(n), partial(self._make, n, load=True)) for n in numbers])

    def __call__(self, member: int, step: int) -> RealBatch:
        slot = int(torch.randint(self.draws, (), generator=generator(self.problem.seed, "bank", step)))
        number = member * self.draws + slot
        if number not in self._kept:
            features = self._read(number) if self.problem.features else self._make(number)
            self._kept[number] = features, scatter(features.float())
        features, known = self._kept[number]
        return RealBatch(features.float(), self.problem.class_draw(self.strategy, number), known)

    def _make(self, number: int, *, load: bool = False) -> Tensor:
        """Features of batch `number` through its network, which is `load`ed or loaded already."""
        if load:
            self.problem.extractor.load(self.pool.members[number // self.draws])
        return embed_batch(self.problem, self.strategy, self.size, number).features.bfloat16()

    def _read(self, number: int) -> Tensor:
        assert self.problem.features
        return self.problem.features.read(self._name(number)).to(self.problem.runtime.device)

    def _name(self, number: int) -> str:
        """Names batch `number` in the feature store, by all that determines it."""
        p, runtime = self.problem, self.problem.runtime
        facts = {
            "version": FEATURES_VERSION,
            "data": [p.spec.fingerprint, p.spec.mean, p.spec.std],
            "network": [p.network, self.pool.digests[number // self.draws]],
            "batch": [p.seed, number, p.batch_size(self.size), p.classes],
            "augmentation": asdict(self.strategy),
            "runtime": [torch.device(runtime.device).type, runtime.precision, runtime.compile],
        }
        return blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=12).hexdigest()
