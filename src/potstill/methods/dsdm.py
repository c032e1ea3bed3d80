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
from ..learning.augment import Draw, Strategy, strategy_for
from ..learning.optim import Descent
from ..learning.pool import Pool
from ..matching.features import calibrate, match_channel_covariances, match_covariances, match_prototypes
from ..matching.influence import influence_means, match_influence_means
from ..matching.statistics import spread
from ..sets.synthetic import SyntheticSet
from .base import METHODS, Method
from .experts import calibration
from .history import History, HistoryConfig
from .problem import Problem
from .real_features import BankConfig, RealBatch, bank, real_batch
from .state import Metrics, State


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
        influence: rho of Inf-Match, 0 to 1: features count in their means by what they ask of the network's classifier;
            0, plain means, is the paper.
        covariance_weight: lambda_1 of Eq. (9).
        channel_covariance_weight: of the term that matches the covariance of the last map's channels, over samples and
            positions together; 0 is the paper.
        calibration_weight: weight of the classifier's cross-entropy; 0 is the paper.
        calibrate_later: a second draw gives the network that calibrates, a trained one of the same run at the same
            moment or later, so that early and untrained ones may be matched in; else it is the one of matching.
        covariance_ddof: covariance divisor is the sample count less this: 0 paper, 1 authors' code.
        history: the term of the prototypes' history, Eq. (6) to (8).
        real_batch: real samples per class and step, |B_T|.
        synthetic_batch: synthetic samples per class and step at most, |B_S|.
        mirrored: match them together with their mirror images, where mirroring keeps the label.
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
    influence: float = 0.0
    covariance_weight: float = 50.0
    channel_covariance_weight: float = 0.0
    calibration_weight: float = 0.0
    calibrate_later: bool = False
    covariance_ddof: int = 1
    history: HistoryConfig = HistoryConfig()
    real_batch: int = 256
    synthetic_batch: int = 256
    mirrored: bool = False
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
        share(self, "average", "influence")
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


class Drawn(NamedTuple):
    """Members of the pool that a step uses: one in which features are matched, one whose classifier calibrates."""

    matching: int
    calibrating: int


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
        problem.require_logits(config.calibration_weight or config.influence)
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
        member, calibrating = drawn = self._draw(pool, problem.seed, state.step)
        weights, history = pool.members[member], History(state.history, state.updates)
        real = self._real_batch(problem, pool, member, state.step)
        pixels = self._clamp(problem, state.images, "before").detach().requires_grad_()
        synthetic = problem.extractor.embed(weights, self._samples(problem, pixels, state.step), real.draw)
        terms = self._terms(problem, real, synthetic, history, drawn, state.step)
        (gradient,) = torch.autograd.grad(terms.total(), pixels)
        if self.config.calibration_weight and calibrating != member:  # once the first network's gradient is taken
            term, more = self._calibrated_apart(problem, pixels, real.draw, calibrating, state.step)
            terms, gradient = terms._replace(calibration=term), gradient + more
        descent, steps = self._descent(problem), self.config.steps
        images, memory = descent(pixels.detach(), gradient, state.memory, step=state.step, steps=steps)
        images = self._clamp(problem, images, "after")
        history = self._remembered(problem, history, member, images, synthetic.detach(), state.step)
        after = state.advanced(
            images=images,
            memory=memory,
            history=history.prototypes,
            updates=history.updates,
            mean=self._averaged(state.mean, images, state.step),
        )
        return after, _metrics(terms, real, synthetic.detach(), member, self.config.covariance_ddof)

    def result(self, problem: Problem, state: DSDMState) -> SyntheticSet:
        return super().result(problem, replace(state, images=state.mean) if len(state.mean) else state)

    def passes(self, problem: Problem) -> int:
        pool, c = problem.require_pool(self.name), self.config
        real = c.steps if c.real_statistics == "fresh" else min(c.steps, len(pool) * c.bank.draws)
        remembered = int(c.history.weight > 0 and c.history.features != "step")
        looks = 2 + remembered + 2 * (c.calibrate_later and c.calibration_weight > 0)
        synthetic = c.steps * min(problem.samples, c.synthetic_batch) * looks * (1 + self._mirrors(problem))
        return len(problem.classes) * (synthetic + real * problem.batch_size(c.real_batch))

    def _draw(self, pool: Pool, seed: int, step: int) -> Drawn:
        member = pool.draw(seed, step)
        return Drawn(member, pool.draw_later(member, seed, step) if self.config.calibrate_later else member)

    def _real_batch(self, problem: Problem, pool: Pool, member: int, step: int) -> RealBatch:
        c, strategy = self.config, self._strategy(problem)
        if c.real_statistics == "fresh":
            return real_batch(problem, pool.members[member], strategy, c.real_batch, step)
        return bank(problem, pool, strategy, c.real_batch, c.bank).batch(member, step)

    def _samples(self, problem: Problem, pixels: Tensor, step: int) -> Tensor:
        """At most `synthetic_batch` of the decoded samples of each class, `(K, M, C, H, W)`: the paper's B_S.

        With their mirror images they are twice as many, the idea of FYI (ECCV 2024): samples that look alike from both
        sides would match mirrored objects, which are two modes.
        """
        samples = problem.chosen_samples(problem.decode(pixels), self.config.synthetic_batch, step)
        return torch.cat([samples, samples.flip(-1)], dim=1) if self._mirrors(problem) else samples

    def _mirrors(self, problem: Problem) -> bool:
        return self.config.mirrored and problem.spec.mirror

    def _terms(
        self, problem: Problem, real: RealBatch, synthetic: Tensor, history: History, drawn: Drawn, step: int
    ) -> Terms:
        c, zero, member = self.config, synthetic.new_zeros(()), drawn.matching
        prototype = covariance = remembered = calibrated = channels = zero
        # The history first: the order of the terms is the order in which their gradients are summed, to the last bit.
        if c.history.weight and step >= c.history.start:
            remembered = history.term(self._slot(member), synthetic, c.history)
        if c.prototype_weight:
            prototype = c.prototype_weight * self._distance_of_means(problem, real.features, synthetic, member)
        if c.covariance_weight:
            distance = match_covariances(real.features, synthetic, ddof=c.covariance_ddof, known=real.known)
            covariance = c.covariance_weight * distance
        remembered = c.history.weight * remembered
        if c.calibration_weight and drawn.calibrating == member:
            logits, labels = self._classified(problem, synthetic, member)
            calibrated = c.calibration_weight * calibrate(logits, labels)
        if c.channel_covariance_weight:
            count = problem.extractor.channels
            distance = match_channel_covariances(real.features, synthetic, count, ddof=c.covariance_ddof)
            channels = c.channel_covariance_weight * distance
        return Terms(prototype, covariance, remembered, calibrated, channels)

    def _distance_of_means(self, problem: Problem, real: Tensor, synthetic: Tensor, member: int) -> Tensor:
        if not self.config.influence:
            return match_prototypes(real, synthetic)
        sides = ((side, *self._classified(problem, side, member)) for side in (real, synthetic))
        return match_influence_means(*(influence_means(*side, self.config.influence) for side in sides))

    def _classified(self, problem: Problem, features: Tensor, member: int) -> tuple[Tensor, Tensor]:
        """Logits `(K, N, C)` of features by a member's own classifier, and the labels `(K,)`."""
        weights = problem.require_pool(self.name).members[member]
        return problem.extractor.classify(weights, features), torch.tensor(problem.classes, device=features.device)

    def _calibrated_apart(
        self, problem: Problem, pixels: Tensor, draw: Draw, member: int, step: int
    ) -> tuple[Tensor, Tensor]:
        """The calibration by a network of its own, and its gradient to the pixels."""
        weights = problem.require_pool(self.name).members[member]
        term = calibration(problem, weights, self._samples(problem, pixels, step), draw)
        weighted = self.config.calibration_weight * term
        return weighted.detach(), torch.autograd.grad(weighted, pixels)[0]

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
