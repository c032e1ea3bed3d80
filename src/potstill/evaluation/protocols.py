"""How evaluation networks are trained: a name, and a way to train one on a set. Sources in docs/fidelity.md."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from ..checks import whole
from ..errors import RunError, UsageError, counted
from ..learning.fit import Schedule, fit
from ..learning.unroll import Unrolled, one_pass
from ..machine.runtime import Runtime
from ..networks import Backbone
from ..sets.synthetic import SyntheticSet
from ..spec import DatasetSpec, Split

#: What networks are trained on: a synthetic set, or real data as the trivial one.
TrainingSet = SyntheticSet | Split
#: More epochs than any schedule has; a slip of the keyboard would train for years.
MOST_EPOCHS = 1_000_000


class Protocol(ABC):
    """A way to train evaluation networks. What it reads besides the samples comes with the set (`extras`)."""

    name: str

    @property
    @abstractmethod
    def epochs(self) -> int:
        """Passes over the samples; a score names them."""

    @property
    def about(self) -> str:
        """The protocol in a line."""
        return counted(self.epochs, "epoch")

    @abstractmethod
    def lasting(self, epochs: int) -> Protocol:
        """The same protocol, shortened or lengthened."""

    def suited(self, train: TrainingSet) -> Protocol:
        """The protocol as it is on this set.

        Raises:
            UsageError: the set lacks what it needs.
        """
        return self

    def network_seed(self, train: TrainingSet, seed: int) -> int:
        """What the network is initialised from: `seed`, unless the set serves one network alone."""
        return seed

    @abstractmethod
    def train(
        self,
        network: Backbone,
        train: TrainingSet,
        spec: DatasetSpec,
        runtime: Runtime,
        *,
        seed: int,
        on_epoch: Callable[[int, float], None] | None = None,
    ) -> Backbone:
        """Train `network` in place and return it after the last epoch; `on_epoch` hears (epochs done, mean loss)."""


@dataclass(frozen=True)
class Scheduled(Protocol):
    """A common protocol: the samples of any set under one fixed schedule."""

    name: str
    schedule: Schedule

    @property
    def epochs(self) -> int:
        return self.schedule.epochs

    @property
    def about(self) -> str:
        s = self.schedule
        return f"{counted(s.epochs, 'epoch')}, {s.optimizer} {s.learning_rate:g}, batch {s.batch}"

    def lasting(self, epochs: int) -> Scheduled:
        return replace(self, schedule=replace(self.schedule, epochs=epochs))

    def train(
        self,
        network: Backbone,
        train: TrainingSet,
        spec: DatasetSpec,
        runtime: Runtime,
        *,
        seed: int,
        on_epoch: Callable[[int, float], None] | None = None,
    ) -> Backbone:
        return fit(network, samples_of(train), spec, self.schedule, runtime, seed=seed, on_epoch=on_epoch)


@dataclass(frozen=True)
class Learned(Protocol):
    """The steps that a set brings: the rates of `extras`, one for each batch of each pass, and no augmentation (DD).

    Attributes:
        asked: passes to make, of those that were learned; 0 for all.
    """

    name: str
    asked: int = 0

    @property
    def epochs(self) -> int:
        return self.asked

    @property
    def about(self) -> str:
        return "the set's own gradient steps at the rates learned with it"

    def lasting(self, epochs: int) -> Learned:
        return replace(self, asked=epochs)

    def suited(self, train: TrainingSet) -> Learned:
        learned = len(_rates(self.name, train))
        if self.asked > learned:
            raise UsageError(f"epochs={self.asked}: the set has learned rates for {learned}, ask for no more")
        return replace(self, asked=self.asked or learned)

    def network_seed(self, train: TrainingSet, seed: int) -> int:
        named = train.extras.get("network_seed") if isinstance(train, SyntheticSet) else None
        return seed if named is None else int(named)

    def train(
        self,
        network: Backbone,
        train: TrainingSet,
        spec: DatasetSpec,
        runtime: Runtime,
        *,
        seed: int,
        on_epoch: Callable[[int, float], None] | None = None,
    ) -> Backbone:
        rates = _rates(self.name, train)
        assert isinstance(train, SyntheticSet)
        network.to(runtime.device)
        batches = one_pass(train.samples().to(runtime.device), train.classes, rates.shape[1])
        unrolled = Unrolled(network, spec, runtime)
        weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
        for epoch in range(self.asked or len(rates)):
            weights, loss, *_ = unrolled.forward(weights, batches, rates[epoch])
            if not math.isfinite(float(loss)):
                raise RunError(f"training loss is {float(loss)}: the rates of this set do not suit this network")
            if on_epoch:
                on_epoch(epoch + 1, float(loss))
        network.load_state_dict(weights)
        return network.eval()


def _rates(protocol: str, train: TrainingSet) -> Tensor:
    """Learned rates `(epochs, steps)` of a set."""
    rates = train.extras.get("rates") if isinstance(train, SyntheticSet) else None
    if rates is None or rates.ndim != 2:
        raise UsageError(
            f"protocol={protocol}: needs a set with learned rates, as method dd makes; take another protocol"
        )
    return rates


def samples_of(train: TrainingSet) -> Split:
    """The samples that networks see: of a set decoded, of real data as they are."""
    return train.decoded() if isinstance(train, SyntheticSet) else train


_IDC = Schedule(
    epochs=1000,
    batch=64,
    learning_rate=0.01,
    decay="steps",
    decay_at=(2 / 3, 5 / 6),
    decay_factor=0.2,
    augment="color_crop_flip_scale_rotate",
    cutmix=0.5,
)
_DSDM = replace(_IDC, epochs=1500)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        # DSDM and DANCE: IDC's recipe with 1500 epochs.
        Scheduled("dsdm", _DSDM),
        # DSDM's exceptions for MNIST at factor 2: no CutMix (mirroring is off by the data set's spec).
        Scheduled("mnist", replace(_DSDM, augment="color_crop_scale_rotate", cutmix=0.0)),
        # Spectrograms, under the same schedule: what is done to images would make other sounds of them.
        Scheduled("speech", replace(_DSDM, augment="none", cutmix=0.0)),
        Scheduled("idc", _IDC),
        # DC, DSA, DM, CAFE+DSA: one operation per batch; after 502 of epochs 0 to 1000 a new optimiser at a tenth.
        Scheduled(
            "dc",
            Schedule(
                epochs=1001,
                batch=256,
                learning_rate=0.01,
                decay="steps",
                decay_at=(502 / 1001,),
                decay_factor=0.1,
                decay_restarts=True,
                augment="color_crop_cutout_flip_scale_rotate",
                augment_single=True,
            ),
        ),
        Learned("dd"),
        Scheduled(
            "ncfm",
            Schedule(
                epochs=2000,
                batch=128,
                optimizer="adamw",
                learning_rate=1e-3,
                weight_decay=0.01,  # AdamW's own in torch: the authors name none
                decay="steps",
                decay_at=(0.2, 0.4, 0.6, 0.8),
                decay_factor=0.5,
                augment="color_crop_flip_scale_rotate",
                cutmix=0.5,
            ),
        ),
    )
}


def find_protocol(protocol: str | Protocol, epochs: int | None = None) -> Protocol:
    """A protocol by its name (or itself), shortened or lengthened to `epochs` where given.

    Raises:
        UsageError: an unknown name, or epochs outside 1..1,000,000.
    """
    if isinstance(protocol, str):
        if protocol not in PROTOCOLS:
            raise UsageError(f"unknown protocol {protocol!r}: known are {', '.join(sorted(PROTOCOLS))}")
        protocol = PROTOCOLS[protocol]
    if not isinstance(protocol, Protocol):
        raise UsageError(f"protocol of type {type(protocol).__name__}: give a name, or a Protocol of your own")
    if epochs is None:
        return protocol
    epochs = whole("epochs", epochs)
    if not 1 <= epochs <= MOST_EPOCHS:
        raise UsageError(f"epochs={epochs}: need at least 1 and at most {MOST_EPOCHS:,}")
    return protocol.lasting(epochs)
