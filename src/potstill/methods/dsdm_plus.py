"""dsdm_plus: DSDM with a calibrated objective and the optimiser that measured best on a hold-out of the training split.

The same algorithm under other defaults, so every key of DSDM applies; docs/methods/dsdm_plus.md says where each comes
from, what it gains and what it costs.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..learning.optim import Descent
from .base import METHODS
from .dsdm import DSDM, DSDMConfig


@dataclass(frozen=True)
class DSDMPlusConfig(DSDMConfig):
    """Keys as in `DSDMConfig`; the defaults differ: calibration, Adam with linear decay, features from a bank."""

    steps: int = 1500
    descent: Descent = Descent(0.01, optimizer="adam", decay="linear")
    scale_rate: bool = False
    calibration_weight: float = 1.0
    real_statistics: str = "bank"


@METHODS.register("dsdm_plus")
class DSDMPlus(DSDM):
    """DSDM plus calibration: matched features, held on the right side of a trained classifier."""

    Config = DSDMPlusConfig
    stores = "suited"
