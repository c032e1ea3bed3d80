"""dsdm_plus: DSDM with a calibrated objective and the optimiser that measured best on a hold-out of the training split.

The same algorithm under other defaults, so every key of DSDM applies, and three ideas of other methods that are off by
default; docs/methods/dsdm_plus.md says where each comes from, what it gains and what it costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import share
from ..learning.optim import Descent
from ..matching.influence import influence_means, match_influence_means
from .base import METHODS
from .dsdm import DSDM, DSDMConfig, DSDMState, Terms
from .experts import calibration
from .history import History
from .problem import Problem
from .real_features import RealBatch


@dataclass(frozen=True)
class DSDMPlusConfig(DSDMConfig):
    """Keys as in `DSDMConfig`; the defaults differ: calibration, Adam with linear decay, features from a bank.

    Attributes:
        mirrored: match samples together with their mirror images, where mirroring keeps the label.
        influence: rho of Inf-Match, 0 to 1: features count in their means by what they ask of the network's classifier;
            0 for plain means.
        calibrate_later: a second draw gives the network that calibrates, a trained one of the same run at the same
            moment or later, so that early and untrained ones may be matched in; else it is the one of matching.
    """

    steps: int = 1500
    descent: Descent = Descent(0.01, optimizer="adam", decay="linear")
    scale_rate: bool = False
    calibration_weight: float = 1.0
    real_statistics: str = "bank"
    mirrored: bool = False
    influence: float = 0.0
    calibrate_later: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "influence")


@METHODS.register("dsdm_plus")
class DSDMPlus(DSDM):
    """DSDM plus calibration: matched features, held on the right side of a trained classifier."""

    Config = DSDMPlusConfig
    stores = "suited"
    config: DSDMPlusConfig

    def init(self, problem: Problem) -> DSDMState:
        problem.require_logits(self.config.influence)
        return super().init(problem)

    def _synthetic_passes(self, problem: Problem) -> int:
        apart = 2 * min(problem.samples, self.config.synthetic_batch) * bool(self.config.calibration_weight)
        passes = super()._synthetic_passes(problem) + apart * self.config.calibrate_later
        return passes * (1 + self._mirrors(problem))

    def _samples(self, problem: Problem, pixels: Tensor, step: int) -> Tensor:
        """The samples and, after FYI (ECCV 2024), their mirror images.

        Samples that look alike from both sides would match mirrored objects, which are two modes.
        """
        samples = super()._samples(problem, pixels, step)
        return torch.cat([samples, samples.flip(-1)], dim=1) if self._mirrors(problem) else samples

    def _mirrors(self, problem: Problem) -> bool:
        return self.config.mirrored and problem.spec.mirror

    def _prototypes_apart(self, problem: Problem, real: Tensor, synthetic: Tensor, member: int) -> Tensor:
        if not self.config.influence:
            return super()._prototypes_apart(problem, real, synthetic, member)
        sides = ((side, *self._classified(problem, side, member)) for side in (real, synthetic))
        return match_influence_means(*(influence_means(*side, self.config.influence) for side in sides))

    def _gradient(
        self, problem: Problem, pixels: Tensor, real: RealBatch, history: History, member: int, step: int
    ) -> tuple[Terms, Tensor, Tensor]:
        terms, synthetic, gradient = super()._gradient(problem, pixels, real, history, member, step)
        judge, weight = self._judge(problem, member, step), self.config.calibration_weight
        if judge == member or not weight:
            return terms, synthetic, gradient
        # Apart, once the first network's gradient is taken: an extractor holds the weights of one network.
        weights = problem.require_pool(self.name).members[judge]
        term = weight * calibration(problem, weights, self._samples(problem, pixels, step), real.draw)
        (more,) = torch.autograd.grad(term, pixels)
        return terms._replace(calibration=term.detach()), synthetic, gradient + more

    def _calibration(self, problem: Problem, synthetic: Tensor, member: int, step: int) -> Tensor:
        if self._judge(problem, member, step) != member:
            return synthetic.new_zeros(())
        return super()._calibration(problem, synthetic, member, step)

    def _judge(self, problem: Problem, member: int, step: int) -> int:
        """The member that calibrates, where another is matched in: TGDD's second draw."""
        pool = problem.require_pool(self.name)
        return pool.draw_later(member, problem.seed, step) if self.config.calibrate_later else member
