"""DSDM: diversified semantic distribution matching (Li et al., ACM MM 2024), Algorithm 1.

Points where the paper and the authors' code differ are keys of the config; the recipes `dsdm/as_paper` and
`dsdm/as_code` set them together. They are listed with reasons in docs/fidelity.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import at_least, one_of, share
from ..errors import UsageError
from ..learning.augment import Strategy, strategy_for
from ..learning.optim import Descent
from ..learning.pool import Pool
from ..matching.features import calibrate, match_channel_covariances, match_covariances, match_prototypes
from ..matching.statistics import spread
from ..sets.synthetic import SyntheticSet
from .base import METHODS, Method
from .history import History, HistoryConfig
from .problem import Problem
from .real_features import BankConfig, RealBatch, bank, real_batch
from .state import Metrics, State

#: Steps that match each batch of a bank, on average and at least, where a run is shortened: making one takes as long
#: as several of them.
USES = 16


@dataclass(frozen=True)
class DSDMConfig:
    """Keys of DSDM; defaults are fidelity "potstill".

    Attributes:
        steps: iterations T.
        descent: the one joint image step.
        scale_rate: multiply its rate by IPC / 10.
        average: share of all steps, the last ones, over which the result is an exponential mean of the images; 0 for
            the images of the last step.
        prototype_weight: of the term of Eq. (4), 1 in Eq. (9); 0 drops it, as every weight.
        covariance_weight: lambda_1 of Eq. (9).
        channel_covariance_weight: of the term that matches the covariance of the last map's channels, over samples and
            positions together; 0 is the paper.
        calibration_weight: weight of the classifier's cross-entropy; 0 is the paper.
        covariance_ddof: covariance divisor is the sample count less this: 0 paper, 1 authors' code.
        history: the term of the prototypes' history, Eq. (6) to (8).
        real_batch: real samples per class and step, |B_T|.
        synthetic_batch: synthetic samples per class and step at most, |B_S|.
        augment: DSA string of the Siamese augmentation, or none.
        augment_single: draw one of its operations per batch, as DSA and DM do.
        clamp: keep values in range "after" each step, "before" it, or "never".
        real_statistics: features of real images are computed at each step ("fresh"), or drawn from a "bank" of batches
            that are computed once for each network.
        bank: what real_statistics=bank keeps.
    """

    steps: int = 3000
    descent: Descent = Descent(0.2)
    scale_rate: bool = True
    average: float = 0.0
    prototype_weight: float = 1.0
    covariance_weight: float = 50.0
    channel_covariance_weight: float = 0.0
    calibration_weight: float = 0.0
    covariance_ddof: int = 1
    history: HistoryConfig = HistoryConfig()
    real_batch: int = 256
    synthetic_batch: int = 256
    augment: str = "color_crop_cutout"
    augment_single: bool = False
    clamp: str = "after"
    real_statistics: str = "fresh"
    bank: BankConfig = BankConfig()

    def __post_init__(self) -> None:
        one_of(self, ("after", "before", "never"), "clamp")
        one_of(self, ("fresh", "bank"), "real_statistics")
        at_least(self, 1, "steps", "synthetic_batch")
        at_least(self, 2, "real_batch")
        at_least(self, 0, "prototype_weight", "covariance_weight", "channel_covariance_weight", "calibration_weight")
        share(self, "average")
        if self.covariance_ddof not in (0, 1):
            raise UsageError(f"covariance_ddof={self.covariance_ddof}: use 0 (divide by n) or 1 (by n - 1)")
        Strategy.parse(self.augment)


@dataclass(frozen=True)
class DSDMState(State):
    """Images, the optimiser's memory, and the memory bank of historical prototypes.

    Attributes:
        memory: `(0..2, K, IPC, C, H, W)`, see `Descent.init`.
        history, updates: see `history.History`.
        mean: of the images of the last steps; without numbers before them.
    """

    memory: Tensor
    history: Tensor
    updates: Tensor
    mean: Tensor


class Terms(NamedTuple):
    """The weighted terms of Eq. (9), plus calibration and the channels' covariance."""

    prototype: Tensor
    covariance: Tensor
    history: Tensor
    calibration: Tensor
    channel_covariance: Tensor

    def total(self) -> Tensor:
        return self.prototype + self.covariance + self.history + self.calibration + self.channel_covariance


@METHODS.register("dsdm")
class DSDM(Method[DSDMState]):
    """Match prototypes and covariances of real and synthetic features, and the synthetic prototypes' own history."""

    Config = DSDMConfig
    State = DSDMState
    needs_pool = True

    @classmethod
    def in_steps(cls, config: DSDMConfig, steps: int, networks: int) -> DSDMConfig:
        """Where steps are few: larger ones, if their size is the rate's alone, and a bank of no more than pays."""
        shorter = replace(config, steps=steps)
        if steps >= config.steps:
            return shorter
        draws = max(1, min(config.bank.draws, steps // (USES * networks)))
        rate = config.descent.learning_rate * (config.steps / steps) ** 0.25
        descent = replace(config.descent, learning_rate=rate) if config.descent.optimizer == "adam" else config.descent
        return replace(shorter, descent=descent, bank=replace(config.bank, draws=draws))

    def init(self, problem: Problem) -> DSDMState:
        pool, config = problem.require_pool(self.name), self.config
        images = problem.initial_images()
        if config.covariance_weight and problem.samples < 2:
            raise UsageError(
                f"ipc={problem.ipc} at factor 1 gives {problem.samples} sample per class, which has no covariance: "
                "set method.covariance_weight=0, or use factor 2 or ipc 2"
            )
        if config.real_statistics == "bank":
            _ = config.bank.fitting(problem, len(pool), config.real_batch)
        problem.require_logits(config.calibration_weight)
        slots = len(pool) if config.history.scope == "per_network" else 1
        history = History.empty(slots, images, problem.extractor.network.feature_width)
        return DSDMState(
            step=0,
            images=images,
            memory=config.descent.init(images),
            history=history.prototypes,
            updates=history.updates,
            mean=images.new_empty(0),
        )

    def step(self, problem: Problem, state: DSDMState) -> tuple[DSDMState, Metrics]:
        """One iteration of Algorithm 1, lines 4 to 12, for all classes at once."""
        pool = problem.require_pool(self.name)
        member = pool.draw(problem.seed, state.step)
        history = History(state.history, state.updates)
        real = self._real_batch(problem, pool, member, state.step)
        pixels = self._clamp(problem, state.images, "before").detach().requires_grad_()
        terms, synthetic, gradient = self._gradient(problem, pixels, real, history, member, state.step)
        descent, steps = self._descent(problem), self.config.steps
        images, memory = descent(pixels.detach(), gradient, state.memory, step=state.step, steps=steps)
        images = self._clamp(problem, images, "after")
        history = self._remembered(problem, history, member, images, synthetic, state.step)
        after = state.advanced(
            images=images,
            memory=memory,
            history=history.prototypes,
            updates=history.updates,
            mean=self._averaged(state.mean, images, state.step),
        )
        return after, _metrics(terms, real, synthetic, member, self.config.covariance_ddof)

    def result(self, problem: Problem, state: DSDMState) -> SyntheticSet:
        return super().result(problem, replace(state, images=state.mean) if len(state.mean) else state)

    def passes(self, problem: Problem) -> int:
        pool, c = problem.require_pool(self.name), self.config
        real = c.steps if c.real_statistics == "fresh" else min(c.steps, len(pool) * c.bank.draws)
        synthetic = c.steps * self._synthetic_passes(problem)
        return len(problem.classes) * (synthetic + real * problem.batch_size(c.real_batch))

    def _synthetic_passes(self, problem: Problem) -> int:
        """Of a class in a step: forward, backward, and once more where the history wants features of its own."""
        remembered = int(self.config.history.weight > 0 and self.config.history.features != "step")
        return min(problem.samples, self.config.synthetic_batch) * (2 + remembered)

    def _real_batch(self, problem: Problem, pool: Pool, member: int, step: int) -> RealBatch:
        c, strategy = self.config, self._strategy(problem)
        if c.real_statistics == "fresh":
            return real_batch(problem, pool.members[member], strategy, c.real_batch, step)
        return bank(problem, pool, strategy, c.real_batch, c.bank).batch(member, step)

    def _samples(self, problem: Problem, pixels: Tensor, step: int) -> Tensor:
        """At most `synthetic_batch` of the decoded samples of each class, `(K, M, C, H, W)`: the paper's B_S."""
        return problem.chosen_samples(problem.decode(pixels), self.config.synthetic_batch, step)

    def _gradient(
        self, problem: Problem, pixels: Tensor, real: RealBatch, history: History, member: int, step: int
    ) -> tuple[Terms, Tensor, Tensor]:
        """Eq. (9), the synthetic features that it is of, and its gradient to the pixels."""
        weights = problem.require_pool(self.name).members[member]
        synthetic = problem.extractor.embed(weights, self._samples(problem, pixels, step), real.draw)
        terms = self._terms(problem, real, synthetic, history, member, step)
        (gradient,) = torch.autograd.grad(terms.total(), pixels)
        return terms, synthetic.detach(), gradient

    def _terms(
        self, problem: Problem, real: RealBatch, synthetic: Tensor, history: History, member: int, step: int
    ) -> Terms:
        c, zero = self.config, synthetic.new_zeros(())
        prototype = covariance = remembered = calibration = channels = zero
        # The history first: the order of the terms is the order in which their gradients are summed, to the last bit.
        if c.history.weight and step >= c.history.start:
            remembered = history.term(self._slot(member), synthetic, c.history)
        if c.prototype_weight:
            prototype = c.prototype_weight * self._prototypes_apart(problem, real.features, synthetic, member)
        if c.covariance_weight:
            distance = match_covariances(real.features, synthetic, ddof=c.covariance_ddof, known=real.known)
            covariance = c.covariance_weight * distance
        remembered = c.history.weight * remembered
        if c.calibration_weight:
            calibration = c.calibration_weight * self._calibration(problem, synthetic, member, step)
        if c.channel_covariance_weight:
            count = problem.extractor.channels
            distance = match_channel_covariances(real.features, synthetic, count, ddof=c.covariance_ddof)
            channels = c.channel_covariance_weight * distance
        return Terms(prototype, covariance, remembered, calibration, channels)

    def _prototypes_apart(self, problem: Problem, real: Tensor, synthetic: Tensor, member: int) -> Tensor:
        """Eq. (4) of features of both sides in a member of the pool."""
        return match_prototypes(real, synthetic)

    def _calibration(self, problem: Problem, synthetic: Tensor, member: int, step: int) -> Tensor:
        """Cross-entropy of the member's own classifier on the samples of these features."""
        return calibrate(*self._classified(problem, synthetic, member))

    def _classified(self, problem: Problem, features: Tensor, member: int) -> tuple[Tensor, Tensor]:
        """Logits `(K, N, C)` of features by a member's own classifier, and the labels `(K,)`."""
        weights = problem.require_pool(self.name).members[member]
        return problem.extractor.classify(weights, features), torch.tensor(problem.classes, device=features.device)

    def _remembered(
        self, problem: Problem, history: History, member: int, images: Tensor, synthetic: Tensor, step: int
    ) -> History:
        """The memory bank after the step, whose loss saw the features `synthetic`: Eq. (7) and (8)."""
        c = self.config
        if not c.history.weight:
            return history
        if c.history.features != "step":
            strategy = self._strategy(problem) if c.history.features == "augmented" else Strategy()
            draw = problem.class_draw(strategy, -1 - step)  # no real batch has a negative number
            weights = problem.require_pool(self.name).members[member]
            with torch.no_grad():
                synthetic = problem.extractor.embed(weights, self._samples(problem, images, -1 - step), draw)
        return history.updated(self._slot(member), synthetic, c.history)

    def _averaged(self, mean: Tensor, images: Tensor, step: int) -> Tensor:
        """The exponential mean after step `step`, by the usual weight for a span of n steps: 2 / (n + 1)."""
        span = round(self.config.average * self.config.steps)
        if step < self.config.steps - span:
            return mean
        return torch.lerp(mean, images, 2 / (span + 1)) if len(mean) else images

    def _slot(self, member: int) -> int:
        return member if self.config.history.scope == "per_network" else 0

    def _strategy(self, problem: Problem) -> Strategy:
        return strategy_for(problem.spec, self.config.augment, single=self.config.augment_single)

    def _descent(self, problem: Problem) -> Descent:
        descent = self.config.descent
        if not self.config.scale_rate:
            return descent
        return replace(descent, learning_rate=descent.learning_rate * problem.ipc / 10)

    def _clamp(self, problem: Problem, images: Tensor, moment: str) -> Tensor:
        return problem.clamp(images) if self.config.clamp == moment else images


def _metrics(terms: Terms, real: RealBatch, synthetic: Tensor, member: int, ddof: int) -> Metrics:
    """The loss, its terms, and log(tr Cov_S / tr Cov_T) averaged over classes: below 0 the set is too narrow."""
    notes: dict[str, Tensor | float] = {}
    if synthetic.shape[1] > 1:
        known = real.known.trace / (real.features.shape[1] - ddof) if real.known else spread(real.features, ddof)
        # A class of equal images has no spread; a diagnostic must not end the run for it.
        narrow, wide = (s.clamp_min(torch.finfo(torch.float32).tiny) for s in (spread(synthetic, ddof), known))
        notes["spread"] = (narrow / wide).log().mean()
    return Metrics.of(terms.total(), terms._asdict(), {**notes, "network": member})
