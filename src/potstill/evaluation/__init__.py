"""The one evaluator. A set is worth what networks trained on it score on real test data, at the LAST epoch.

Protocols are named and stored with every row, because the recipe is worth as much as the method: sets are compared
under one protocol only. Nothing here knows how a set was made, and no method ever sees the test split.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import fmean, stdev
from typing import Any

from ..errors import UsageError
from ..learning.fit import Schedule, accuracy, fit
from ..machine.runtime import Runtime
from ..networks import build_network
from ..seeding import derive
from ..sets.synthetic import SyntheticSet
from ..spec import DatasetSpec, Split

_STEPS_THIRDS = {"decay": "steps", "decay_at": (2 / 3, 5 / 6), "decay_factor": 0.2}

#: Evaluation recipes by name; sources in docs/fidelity.md.
PROTOCOLS: dict[str, Schedule] = {
    # DSDM and DANCE: IDC's recipe with 1500 epochs.
    "dsdm": Schedule(
        epochs=1500, batch=64, learning_rate=0.01, augment="color_crop_flip_scale_rotate", cutmix=0.5, **_STEPS_THIRDS
    ),
    # DSDM's exceptions for MNIST at factor 2: no CutMix (mirroring is off by the data set's spec).
    "mnist": Schedule(epochs=1500, batch=64, learning_rate=0.01, augment="color_crop_scale_rotate", **_STEPS_THIRDS),
    # IDC.
    "idc": Schedule(
        epochs=1000, batch=64, learning_rate=0.01, augment="color_crop_flip_scale_rotate", cutmix=0.5, **_STEPS_THIRDS
    ),
    # DC, DSA, DM, CAFE+DSA: one operation per batch, rate times .1 at half.
    "dc": Schedule(
        epochs=1000,
        batch=256,
        learning_rate=0.01,
        decay="steps",
        decay_at=(0.5,),
        decay_factor=0.1,
        augment="color_crop_cutout_flip_scale_rotate",
        augment_single=True,
    ),
    # NCFM.
    "ncfm": Schedule(
        epochs=2000,
        batch=128,
        optimizer="adamw",
        learning_rate=1e-3,
        decay="steps",
        decay_at=(0.2, 0.4, 0.6, 0.8),
        decay_factor=0.5,
        augment="color_crop_flip_scale_rotate",
        cutmix=0.5,
    ),
}


@dataclass(frozen=True)
class Score:
    """One network, trained on one set, at its last epoch. `accuracy` is a share of the test split, 0..1."""

    network: str
    protocol: str
    epochs: int
    seed: int
    accuracy: float
    train_loss: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Scores:
    """The scores of `n_sets x n_nets` networks under one protocol."""

    scores: tuple[Score, ...]
    n_sets: int = 1

    @property
    def n_nets(self) -> int:
        return len(self.scores) // self.n_sets

    @property
    def mean(self) -> float:
        """Mean accuracy, 0..1."""
        return fmean(s.accuracy for s in self.scores)

    @property
    def std(self) -> float:
        """Sample standard deviation over all networks; nan for a single one."""
        return stdev(s.accuracy for s in self.scores) if len(self.scores) > 1 else math.nan

    def __str__(self) -> str:
        first = self.scores[0]
        spread = f" +- {100 * self.std:.2f}" if len(self.scores) > 1 else ""
        return (
            f"{100 * self.mean:.2f}{spread} % (last epoch, n = {self.n_sets} set x {self.n_nets} nets, "
            f"{first.network}, protocol {first.protocol}, {first.epochs} epochs)"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "mean": self.mean,
            "std": None if math.isnan(self.std) else self.std,
            "n_sets": self.n_sets,
            "n_nets": self.n_nets,
            "selection": "last epoch",
            "scores": [s.to_json() for s in self.scores],
        }


def protocol_schedule(protocol: str, epochs: int | None = None) -> Schedule:
    """The schedule of a named protocol, shortened or lengthened to `epochs` where given.

    Raises:
        UsageError: an unknown protocol, or epochs below 1.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"unknown protocol {protocol!r}: known are {', '.join(sorted(PROTOCOLS))}")
    if epochs is None:
        return PROTOCOLS[protocol]
    if epochs < 1:
        raise UsageError(f"epochs={epochs}: need at least 1")
    return replace(PROTOCOLS[protocol], epochs=epochs)


def evaluate_once(
    train: Split,
    spec: DatasetSpec,
    test: Split,
    *,
    network: str,
    protocol: str,
    seed: int,
    runtime: Runtime,
    epochs: int | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> Score:
    """Train one fresh network on `train`, a decoded set or real data, and score it on `test` after the last epoch."""
    schedule = protocol_schedule(protocol, epochs)
    started = time.perf_counter()
    losses: list[float] = []

    def keep(epoch: int, loss: float) -> None:
        losses.append(loss)
        if on_epoch:
            on_epoch(epoch, loss)

    net = build_network(network, spec, derive(seed, "evaluate"))
    fit(net, train, spec, schedule, runtime, seed=derive(seed, "evaluate"), on_epoch=keep)
    score = accuracy(net, test, spec, runtime)
    return Score(network, protocol, schedule.epochs, seed, score, losses[-1], time.perf_counter() - started)


def evaluation_seeds(seed: int, network: str, nets: int) -> list[int]:
    """The seeds of `nets` evaluation networks; more nets later keep the first ones.

    Raises:
        UsageError: nets below 1.
    """
    if nets < 1:
        raise UsageError(f"nets={nets}: need at least 1 network")
    return [derive(seed, "evaluation net", network, i) for i in range(nets)]


def evaluate(
    synthetic: SyntheticSet,
    test: Split,
    *,
    network: str = "convnet",
    nets: int = 3,
    protocol: str = "dsdm",
    epochs: int | None = None,
    seed: int = 0,
    runtime: Runtime | None = None,
) -> Scores:
    """Score a synthetic set: the mean over `nets` networks trained on it from scratch, each at its last epoch.

    Args:
        synthetic: the set; it brings normalisation and factor.
        test: real test data `(N, C, H, W)`, never shown to a method.
        network: an architecture name, see `potstill list networks`.
        protocol: one of `PROTOCOLS`; `epochs` overrides its length, and the row says so.
    """
    seeds = evaluation_seeds(seed, network, nets)
    samples = len(synthetic) * protocol_schedule(protocol, epochs).epochs
    runtime = runtime or Runtime.resolve(passes=samples * nets, side=synthetic.spec.shape[1])
    runtime.start()
    train_and_score = partial(
        evaluate_once, synthetic.decoded(), synthetic.spec, test, network=network, protocol=protocol, epochs=epochs
    )
    return Scores(tuple(train_and_score(seed=s, runtime=runtime) for s in seeds))
