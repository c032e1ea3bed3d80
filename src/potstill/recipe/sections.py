"""The sections of a recipe. Every key has its default, its entry under Attributes and its range here alone."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from typing import Any, Literal

from ..checks import at_least, one_of
from ..data import DATASETS
from ..data.measure import split_fingerprint
from ..errors import UsageError
from ..evaluation import find_protocol
from ..evaluation.evaluate import MOST_NETS
from ..files import expanded
from ..learning.fit import Schedule
from ..learning.pool import SCHEDULES, snapshot_epochs
from ..machine.runtime import Runtime
from ..methods import METHODS, Init, Method
from ..networks import check_network, identity
from ..sets.parameterisations import Factor, Parameterisation, Tiles, parse, suited
from ..sets.quantise import MOST_BITS
from ..spec import LabelledDataset
from .text import to_yaml

#: Presets of a method's keys that `fidelity` names; a method without any takes each.
FIDELITIES = ("paper", "code", "potstill")
#: Short trials before the run settle what it stores (`run.search`).
AUTO = "auto"
#: A rule settles it once the data are read (`sets.parameterisations.suited`).
SUITED = "suited"
#: Of such a search where no budget says otherwise.
SEARCH_MINUTES = 10.0
#: Keys that methods were given later, with the values that stand for how it was before: hashes stay as they were.
LATER_KEYS = {"influence": 0.0, "calibrate_later": False, "mirrored": False}
#: The least and the largest of a 64-bit number.
SEEDS = (-(2**63), 2**63 - 1)


@dataclass(frozen=True)
class DataConfig:
    """Which data. Where the published ones lie is no part of a recipe.

    Attributes:
        name: a known name (potstill list datasets), or the path of a folder of images or of an .npz file.
        mirror: whether a left-right flip keeps the label; null for what is known of the data, else true.
        normalisation: "measured" takes mean and deviation from the training split, "common" the constants in wide use,
            where the data have some.
        holdout: the share held out for testing where the data have no test split.
        size: side in pixels that images are brought to; null leaves them as they are.
        fingerprint: of the training data, recorded when they are read; with it their name and place no longer matter.
    """

    name: str = "digits"
    mirror: bool | None = None
    normalisation: str = "measured"
    holdout: float = 0.2
    size: int | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise UsageError("name='': need a known name (potstill list datasets) or a path")
        one_of(self, ("measured", "common"), "normalisation")
        at_least(self, 1, "size", most=4096, of="pixels")
        if not 0 < self.holdout < 1:
            raise UsageError(f"holdout={self.holdout:g}: need a share above 0 and below 1")


@dataclass(frozen=True)
class PoolConfig:
    """The pool of networks that features come from.

    Attributes:
        network: their architecture (potstill list networks).
        members: training runs, each from a seed of its own.
        schedule: "fast", "paper" or "dance": how each is trained.
        epochs: of each run; null for the schedule's own number.
        snapshots: epochs whose weights become further networks of the pool, from 0 (untrained) and in parts (0.25);
            the last epoch always is one.
        pretrained: false takes freshly initialised networks in place of trained ones.
        seed: root of the runs' seeds; the recipe's own seed has no part in the pool.
    """

    network: str = "convnet"
    members: int = 3
    schedule: str = "fast"
    epochs: int | None = None
    snapshots: tuple[int | float, ...] = ()
    pretrained: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_network(self.network)
        one_of(self, sorted(SCHEDULES), "schedule")
        at_least(self, 1, "members", most=1000, of="network")
        at_least(self, 1, "epochs", most=1_000_000)
        _ = snapshot_epochs(self.training(), self.snapshots)
        at_least(self, SEEDS[0], "seed", most=SEEDS[1])

    def training(self) -> Schedule:
        """The schedule of one member."""
        schedule = SCHEDULES[self.schedule]
        return schedule if self.epochs is None else replace(schedule, epochs=self.epochs)

    @property
    def networks(self) -> int:
        """Members times the epochs that are kept; untrained ones have none to keep."""
        return self.members * (len(snapshot_epochs(self.training(), self.snapshots)) if self.pretrained else 1)


@dataclass(frozen=True)
class RuntimeConfig:
    """Choices of the machine, of which no result depends but by rounding; "auto" is settled for machine and job.

    Attributes:
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, fp32, or bf16 for network passes (losses and statistics stay fp32).
        threads: of one process on a CPU.
        compile: whether network passes go through torch.compile.
        chunk: images per network pass at most.
    """

    device: str = "auto"
    precision: str = "auto"
    threads: int | Literal["auto"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    chunk: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", self.device):
            raise UsageError(f"device={self.device!r}: use auto, cpu, cuda, cuda:N or mps")
        one_of(self, ("auto", "fp32", "bf16"), "precision")
        at_least(self, 1, "threads", most=1024)
        at_least(self, 1, "chunk", most=1_000_000, of="image")

    def resolve(self, passes: int, side: int) -> Runtime:
        return Runtime.resolve(**asdict(self), passes=passes, side=side)


@dataclass(frozen=True)
class EvaluationConfig:
    """How the set is scored: networks trained on it from scratch and tested at their last epoch.

    Attributes:
        network: their architecture (potstill list networks).
        protocol: how they are trained (potstill list protocols).
        epochs: of the training; null for the protocol's own number.
        nets: how many networks.
        seed: root of their seeds; more networks later keep the first ones.
        at_once: networks trained at the same time, each in a process of its own with a share of the threads; auto for
            as many as a CPU has threads, where the job is long enough, and one after another on other devices.
        stored_bits: also score the set with its stored numbers (not the decoded samples) rounded to so many bits each,
            1 to 8, as a row of its own; null for the exact set alone.
    """

    network: str = "convnet"
    protocol: str = "dsdm"
    epochs: int | None = None
    nets: int = 3
    seed: int = 0
    at_once: int | Literal["auto"] = "auto"
    stored_bits: int | None = None

    def __post_init__(self) -> None:
        check_network(self.network)
        find_protocol(self.protocol, self.epochs)
        at_least(self, 1, "nets", most=MOST_NETS, of="network")
        at_least(self, SEEDS[0], "seed", most=SEEDS[1])
        at_least(self, 1, "at_once", most=MOST_NETS, of="network")
        at_least(self, 1, "stored_bits", most=MOST_BITS, of="bit")


@dataclass(frozen=True)
class SavingConfig:
    """What a run leaves behind besides its set.

    Attributes:
        minutes: between snapshots; the newest is kept. By time, for a state can be large and a step short.
        every: also after every so many steps; null for by time alone.
        keep: steps whose sets are kept for good.
        features: keep a bank's feature batches in the cache folder, for other IPC values, methods and resumed runs.
    """

    minutes: float = 5.0
    every: int | None = None
    keep: tuple[int, ...] = ()
    features: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.minutes < math.inf:
            raise UsageError(f"minutes={self.minutes:g}: need a number of minutes above 0")
        at_least(self, 1, "every", of="step")
        at_least(self, 0, "keep", of="steps")


@dataclass(frozen=True)
class BudgetConfig:
    """What distilling may take.

    Attributes:
        minutes: of its own, over all resumes, without the pool; null for all steps. Unless `plan`, a run ends where
            they do, and a decay planned over all steps is cut, not shortened. With parameterisation auto they hold the
            pool of the run too, a smaller one where it would take more than a third; the search before the run may
            take half of the rest (10 where they are null), and the steps are planned for what that leaves, at most the
            method's own.
        plan: settle the steps before the run, from a few that are timed, to as many as the minutes hold: fewer or more
            than the method's own number, which decays and loops then follow, and fewer ones of Adam are larger. The run
            takes them all, however long they prove to be. On a CPU minutes are of its work, whatever else keeps it
            busy.
        planned: the steps that were settled on; recorded before the run, null until then.
    """

    minutes: float | None = None
    plan: bool = False
    planned: int | None = None

    def __post_init__(self) -> None:
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise UsageError(f"minutes={self.minutes:g}: need a number of minutes above 0")
        if self.plan and self.minutes is None:
            raise UsageError("plan=true: there are no minutes to plan for; give budget.minutes, or leave it out")
        at_least(self, 1, "planned", of="step")

    @property
    def seconds(self) -> float:
        """After which a run is cut."""
        return math.inf if self.minutes is None or self.plan else 60 * self.minutes

    @property
    def search_seconds(self) -> float:
        return 60 * (SEARCH_MINUTES if self.minutes is None else self.minutes / 2)

    def after_search(self, seconds: float) -> BudgetConfig:
        """What a search of so many seconds leaves: a quarter at least, for its last trial is always finished."""
        if self.minutes is None:
            return self
        return replace(self, minutes=max(self.minutes - seconds / 60, self.minutes / 4))


@dataclass(frozen=True)
class Recipe:
    """A resolved run.

    Attributes:
        method_name: of the method (potstill list methods).
        method: the method's own keys (potstill list methods NAME).
        ipc: stored images per class.
        factor: rows and columns of small images in each stored one, where parameterisation is tiles; one number for as
            many of both.
        parameterisation: how stored numbers become samples, as NAME or NAME:key=number,... (docs/parameterisations.md);
            suited for what is likely to do best on data of that shape, which is dsdm_plus' own; auto for the one that
            does best in short trials on a hold-out of the training split. A factor alone stands for tiles.
        seed: root of all random draws but those of the pool and of the evaluation.
        fidelity: the preset of the method's keys: paper, code or potstill.
        data: which data.
        init: how stored images start.
        pool: the networks that features come from.
        runtime: choices of the machine.
        evaluation: how the set is scored.
        saving: what a run leaves behind besides its set.
        budget: what distilling may take.
    """

    method_name: str
    method: Any
    ipc: int = 10
    factor: Factor = (2, 2)
    parameterisation: str = "tiles"
    seed: int = 0
    fidelity: str = "potstill"
    data: DataConfig = field(default_factory=DataConfig)
    init: Init = field(default_factory=Init)
    pool: PoolConfig = field(default_factory=PoolConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    saving: SavingConfig = field(default_factory=SavingConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def __post_init__(self) -> None:
        at_least(self, 1, "ipc", most=1_000_000, of="image per class")
        at_least(self, SEEDS[0], "seed", most=SEEDS[1])
        one_of(self, FIDELITIES, "fidelity")
        _ = Tiles(*self.factor) if self.parameterisation in (AUTO, SUITED) else self.way()

    def to_dict(self) -> dict[str, Any]:
        """The nested dictionary that `resolve` reads back to an equal recipe."""
        record = _plain(asdict(self))
        record["method"] = {"name": record.pop("method_name"), **record["method"]}
        return record

    def to_yaml(self) -> str:
        return to_yaml(self.to_dict())

    def on(self, data: LabelledDataset) -> Recipe:
        """The recipe with what is known of its data once they are read: fingerprint, mirror, place, what suits them."""
        fingerprint = data.spec.train_fingerprint or split_fingerprint(data.train)
        known = replace(self.data, name=_located(self.data.name), mirror=data.spec.mirror, fingerprint=fingerprint)
        way = self.parameterisation
        if way == SUITED:
            way = suited(self.ipc, data.spec, data.smallest_class)
        return replace(self, data=known, parameterisation=way)

    def hash(self) -> str:
        """Address of all that determines the synthetic set, up to the order of summation.

        That is: the training data by their fingerprint (by their name until they are read), the method and its keys,
        and the pool where the method has one. Not: how the set is scored and snapshots are kept, the machine's choices
        (`runtime`), and the name of a preset, whose keys are there. Where a budget ends depends on the machine: it
        cuts the sequence of sets that this addresses, and the set says at which step; one that is still to be planned
        for stands for the steps.
        """
        record = self.to_dict()
        for name in ("evaluation", "saving", "runtime", "fidelity", *(() if self.unplanned else ("budget",))):
            del record[name]
        if self.data.fingerprint:
            del record["data"]["name"], record["data"]["holdout"], record["data"]["size"]
        if self.parameterisation not in ("tiles", AUTO):
            del record["factor"]  # which is the short name of tiles
        for key, default in LATER_KEYS.items():
            if record["method"].get(key) == default:
                del record["method"][key]
        record["pool"] = self._pool_in_use()
        return blake2b(to_yaml(record, sort_keys=True).encode(), digest_size=6).hexdigest()

    def _pool_in_use(self) -> dict[str, Any]:
        """The pool's keys that reach the method; a network of one's own by its source."""
        method, network = self.build_method(), {"network": identity(self.pool.network)}
        if method.needs_pool:
            return _plain(asdict(self.pool)) | network
        return network if method.steps else {}

    def way(self) -> Parameterisation:
        """What a class's budget holds, not yet fitted to the data; `factor` is the short name of tiles."""
        if self.parameterisation in (AUTO, SUITED):
            how = f"parameterisation={self.parameterisation}: potstill distill and compare settle it"
            raise UsageError(f"{how}, nothing else does; name one")
        return Tiles(*self.factor) if self.parameterisation == "tiles" else parse(self.parameterisation)

    @property
    def open(self) -> bool:
        """Whether something is settled before the run: what is stored, by a search, or the steps, by a plan."""
        return self.unsearched or self.unplanned

    @property
    def unsearched(self) -> bool:
        """Whether a search has still to say what is stored."""
        return self.parameterisation == AUTO

    @property
    def unplanned(self) -> bool:
        """Whether the steps have still to be planned for the budget; a method without any has none to plan."""
        return self.budget.plan and self.budget.planned is None and self.build_method().steps > 0

    def by_default(self, data: LabelledDataset) -> Recipe:
        """The recipe as it is on the data without a search."""
        way = METHODS[self.method_name].stores if self.unsearched else self.parameterisation
        return replace(self, parameterisation=way).on(data)

    def build_method(self) -> Method[Any]:
        return METHODS[self.method_name](self.method)


def _located(name: str) -> str:
    """A path as it is from everywhere; a known name as it is."""
    place = expanded(name)
    return str(place.absolute()) if name not in DATASETS and place.exists() else name


def _plain(value: Any) -> Any:
    """Tuples as lists, so that YAML stays plain."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
