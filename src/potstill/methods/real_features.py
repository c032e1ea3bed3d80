"""Features that are matched: of real batches, drawn afresh at every step or reused from a bank, and of the decoded set.

A real batch comes with the augmentation draw that made it, which the synthetic samples must share.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import at_least
from ..errors import UsageError
from ..learning.augment import Draw, Strategy
from ..learning.gradients import Weights
from ..learning.pool import Pool
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


def real_batch(problem: Problem, weights: Weights, strategy: Strategy, size: int, number: int) -> RealBatch:
    """Batch number `number` of `size` real images of every class, through a network."""
    drawn = problem.class_draw(strategy, number)
    return RealBatch(problem.extractor.embed(weights, problem.class_batches(size, number), drawn), drawn)


@dataclass(frozen=True)
class BankConfig:
    """How much a bank keeps: a section of a method's keys.

    Attributes:
        draws: batches per network, each with its draw of the augmentation.
        gigabytes: of memory that it may take; fewer batches where they need more.
    """

    draws: int = 16
    gigabytes: float = 4.0

    def __post_init__(self) -> None:
        at_least(self, 1, "draws")
        if not self.gigabytes > 0:
            raise UsageError(f"gigabytes={self.gigabytes:g}: need a number above 0, .inf for all draws")

    def fitting(self, problem: Problem, networks: int, size: int) -> int:
        """As many of `draws` for each network, of `size` real images per class, as there is room for.

        Raises:
            UsageError: for less than one.
        """
        # Of all classes, whatever the shard: the number of draws decides which batches are seen.
        rows = networks * problem.spec.num_classes * problem.batch_size(size)
        one = rows * problem.extractor.network.feature_width * 2 / 1e9
        if one > self.gigabytes:
            raise UsageError(
                f"method.bank.gigabytes={self.gigabytes:g}: one draw for {networks} networks takes {one:.2f} GB; "
                "raise it, lower method.real_batch or use real_statistics=fresh"
            )
        return int(min(self.draws, self.gigabytes / one))


def bank(problem: Problem, pool: Pool, strategy: Strategy, size: int, config: BankConfig) -> Bank:
    """The problem's bank of these settings, made at its first use."""
    make = partial(Bank, problem, pool, strategy, size, config)
    return problem.kept(("bank", strategy, size, config), make)


class Bank:
    """Feature batches kept per network: an approximation that saves two thirds of the work at IPC 10.

    It holds `draws` x networks x K x N x D numbers in bf16, in memory and made when first used, so that a resumed run
    makes them alike; or, where the problem has a feature store, all made at the start (together with whoever else is
    filling it) and read from there.

    Args:
        size: real images per class and batch.
    Raises:
        UsageError: room for less than one draw per network.
    """

    def __init__(self, problem: Problem, pool: Pool, strategy: Strategy, size: int, config: BankConfig):
        self.problem, self.pool, self.strategy, self.size = problem, pool, strategy, size
        self.draws = config.fitting(problem, len(pool), size)
        self._kept: dict[int, tuple[Tensor, Scatter]] = {}  # by batch number
        if problem.features:
            numbers = range(len(pool) * self.draws)
            problem.features.fill([(self._name(n), partial(self._make, n)) for n in numbers])

    def batch(self, member: int, step: int) -> RealBatch:
        """One of the network's batches, drawn for the step."""
        slot = int(torch.randint(self.draws, (), generator=generator(self.problem.seed, "bank", step)))
        number = member * self.draws + slot
        if number not in self._kept:
            features = self._read(number) if self.problem.features else self._make(number)
            self._kept[number] = features, scatter(features.float())
        features, known = self._kept[number]
        return RealBatch(features.float(), self.problem.class_draw(self.strategy, number), known)

    def _make(self, number: int) -> Tensor:
        """Features of batch `number` through its network."""
        weights = self.pool.members[number // self.draws]
        return real_batch(self.problem, weights, self.strategy, self.size, number).features.bfloat16()

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
