"""The one classifier loop: it pre-trains pool members on real data and trains evaluation networks on synthetic data.

Data stay on the device as they are stored; batches are gathered, normalised, augmented, mixed and trained on in
chunks. No data loader, no worker, no copy per epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.func import functional_call

from ..errors import RunError, UsageError
from ..machine.chunks import chunks
from ..machine.runtime import Runtime
from ..networks import Backbone, build_network
from ..spec import DatasetSpec, Split
from .augment import strategy_for
from .gradients import Weights
from .inner import Batch, Learner, epoch_of
from .optim import Rule
from .view import View


@dataclass(frozen=True)
class Schedule:
    """How a classifier is trained.

    Attributes:
        epochs: passes over the data.
        batch: images per step; the last batch of an epoch may be smaller.
        optimizer: "sgd" or "adamw".
        learning_rate: the peak.
        momentum, nesterov, weight_decay: of SGD (AdamW takes the weight decay).
        decay: "none", "steps" (times `decay_factor` at each of `decay_at`), or "one_cycle" (up over the first
            fifth, then down to zero).
        decay_at: shares of the epochs, for "steps".
        decay_restarts: whether the optimiser forgets its memory at each decay, as a new one does.
        augment: a DSA string, see `augment.Strategy`; `augment_single` as there.
        cutmix: probability that a batch is mixed by CutMix.
    """

    epochs: int
    batch: int
    learning_rate: float
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay: str = "none"
    decay_at: tuple[float, ...] = ()
    decay_factor: float = 0.2
    decay_restarts: bool = False
    augment: str = "none"
    augment_single: bool = False
    cutmix: float = 0.0

    def rate(self, epoch: int, progress: float) -> float:
        """Learning rate in `epoch` (from 0), `progress` (0..1) of the whole training done."""
        if self.decay == "none":
            return self.learning_rate
        if self.decay == "steps":
            return self.learning_rate * self.decay_factor ** sum(epoch >= decay for decay in self._decays)
        if self.decay == "one_cycle":
            return self.learning_rate * min(progress / 0.2, (1 - progress) / 0.8)
        raise UsageError(f"decay={self.decay!r}: use none, steps or one_cycle")

    def restarts(self, epoch: int) -> bool:
        """Whether a new optimiser starts with `epoch` (from 0)."""
        return self.decay_restarts and epoch in self._decays

    @property
    def _decays(self) -> list[int]:
        """Down to whole epochs, as the published codes divide; a hair more, as 2/3 of 1500 is to be 1000."""
        return [math.floor(share * self.epochs + 1e-6) for share in self.decay_at]


def fit(
    network: Backbone,
    data: Split,
    spec: DatasetSpec,
    schedule: Schedule,
    runtime: Runtime,
    *,
    seed: int,
    on_epoch: Callable[[int, float], None] | None = None,
    snapshots: Sequence[float] = (),
    on_snapshot: Callable[[float, float], None] = lambda epoch, loss: None,
) -> Backbone:
    """Train `network` in place on `data` and return it after the LAST epoch.

    Args:
        data: images `(N, C, H, W)` uint8 or pixels, labels `(N,)`; sound is neither augmented nor mixed.
        seed: addresses the order, the augmentation and CutMix of every step.
        on_epoch: called after each epoch with (epochs done, mean loss of the epoch).
        snapshots: moments in epochs, from 0 (untrained) and in parts, each rounded to a step; at each `on_snapshot` is
            called with it and the mean loss of its epoch so far (nan before the first step), `network` being as it is.
    Raises:
        RunError: the loss is no longer finite.
    """
    network.to(runtime.device).requires_grad_(True)
    images, labels = data.images.to(runtime.device), data.labels.to(runtime.device)
    learner = _learner(network, spec, runtime, schedule)
    step = learner.step if schedule.decay == "one_cycle" else learner.replayed  # few rates are few graphs
    weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
    memory = learner.init(weights)
    steps_per_epoch = math.ceil(len(data) / schedule.batch)
    moments = [(round(epoch * steps_per_epoch), epoch) for epoch in snapshots]
    done = started = 0

    def snapshot(loss: float) -> None:
        for epoch in (epoch for step, epoch in moments if step == done):
            network.load_state_dict(weights)
            on_snapshot(epoch, loss)

    snapshot(math.nan)
    for epoch in range(schedule.epochs):
        if schedule.restarts(epoch):
            memory, started = learner.init(weights), done
        total, seen = torch.zeros((), device=runtime.device), 0
        for x, y, stream in epoch_of(images, labels, schedule.batch, seed, epoch):
            rate = schedule.rate(epoch, (done + 0.5) / (steps_per_epoch * schedule.epochs))
            weights, memory, loss = step(weights, memory, Batch(x, y, rate, stream), done - started)
            total += loss * len(y)
            seen, done = seen + len(y), done + 1
            if any(step == done for step, _ in moments):
                snapshot(_finite(float(total) / seen, epoch))
        mean = _finite(float(total) / len(data), epoch)
        if on_epoch:
            network.load_state_dict(weights)
            on_epoch(epoch + 1, mean)
    network.load_state_dict(weights)
    return network.eval()


def _finite(loss: float, epoch: int) -> float:
    if not math.isfinite(loss):
        raise RunError(f"training loss is {loss} in epoch {epoch + 1}: lower the learning rate or use fp32")
    return loss


def rule_of(schedule: Schedule) -> Rule:
    """The optimiser of a schedule."""
    if schedule.optimizer == "sgd":
        return Rule("sgd", schedule.momentum, schedule.nesterov, schedule.weight_decay)
    if schedule.optimizer == "adamw":
        return Rule("adamw", weight_decay=schedule.weight_decay)
    raise UsageError(f"optimizer={schedule.optimizer!r}: use sgd or adamw")


def _learner(network: Backbone, spec: DatasetSpec, runtime: Runtime, schedule: Schedule) -> Learner:
    """Networks of one architecture share a learner, whose graphs are compiled once."""
    build = _shared_learner if network.architecture else _new_learner
    return build(network.architecture or network, spec, runtime, schedule)


def _new_learner(network: Backbone | str, spec: DatasetSpec, runtime: Runtime, schedule: Schedule) -> Learner:
    return Learner(
        build_network(network, spec, 0) if isinstance(network, str) else network,
        spec,
        runtime,
        rule=rule_of(schedule),
        strategy=strategy_for(spec, schedule.augment, single=schedule.augment_single),
        cutmix=schedule.cutmix if spec.modality == "image" else 0.0,
    )


_shared_learner = lru_cache(maxsize=2)(_new_learner)


def accuracy(network: Backbone, data: Split, spec: DatasetSpec, runtime: Runtime) -> float:
    """Share of `data` that `network` classifies rightly, 0..1; images are not augmented."""
    network.to(runtime.device).eval()
    judge = (
        _shared_judge(network.architecture, spec, runtime) if network.architecture else Judge(network, spec, runtime)
    )
    return judge.accuracy(network.state_dict(), data)


class Judge:
    """Counts right answers of networks of one architecture; its graph is compiled once.

    Args:
        network: the architecture; its own weights are never read or written.
    """

    def __init__(self, network: Backbone, spec: DatasetSpec, runtime: Runtime):
        self.network, self.runtime = network.to(runtime.device).eval(), runtime
        self._view = View(spec, runtime.device)
        self._answers = runtime.compiled(self._answers_of)

    @torch.no_grad()
    def accuracy(self, weights: Weights, data: Split, *, batch: int = 1024) -> float:
        """Share of `data` that a network of these weights classifies rightly, 0..1."""
        right = 0
        for (images, labels), filled in chunks(min(self.runtime.chunk, batch), data.images, data.labels):
            found = self._answers(dict(weights), images.to(self.runtime.device)).cpu()
            right += int((found == labels)[:filled].sum())
        return right / len(data)

    def _answers_of(self, weights: Weights, images: Tensor) -> Tensor:
        with self.runtime.autocast():
            return functional_call(self.network, dict(weights), (self._view(images),)).argmax(dim=1)


@lru_cache(maxsize=2)
def _shared_judge(architecture: str, spec: DatasetSpec, runtime: Runtime) -> Judge:
    return Judge(build_network(architecture, spec, 0), spec, runtime)
