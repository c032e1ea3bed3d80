"""The contract of every method: `init`, `step`, `result`, and a State of plain tensors.

A method is given a `Problem`, which holds the training split and never the test split. Because all random draws are
addressed (see `seeding`) and all memory is in `State`, resuming, sharding by class and testing need nothing from
the method itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from ..errors import UsageError
from ..learning.augment import Draw, Strategy, draw_operations
from ..learning.extractor import Extractor
from ..learning.pool import Pool
from ..machine.runtime import Runtime
from ..networks import build_network
from ..registry import Registry
from ..seeding import derive, generator
from ..sets.synthetic import Factor, SyntheticSet, check_init, initial_images
from ..spec import DatasetSpec, Split
from .feature_store import FeatureStore
from .sampler import ClassSampler


@dataclass(frozen=True)
class Init:
    """How stored images start, see `synthetic.initial_images`."""

    kind: str = "mix"
    pick: str = "seeded"
    resize: str = "area"

    def __post_init__(self) -> None:
        check_init(self.kind, self.pick, self.resize)


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What a method may know.

    Attributes:
        spec, train: the data set's facts and its TRAINING split.
        ipc: stored images per class; factor: their partition.
        seed: root of all draws.
        pool: pre-trained networks, where the method uses them; `network` names the architecture.
        classes: those to distil, all by default: a shard gives what the whole run gives for them.
        features: where banks of real features are shared with other runs; None keeps them in memory.
    """

    spec: DatasetSpec
    train: Split
    ipc: int
    factor: Factor = (1, 1)
    seed: int = 0
    runtime: Runtime = field(default_factory=Runtime)
    pool: Pool | None = None
    network: str = "convnet"
    init: Init = field(default_factory=Init)
    classes: tuple[int, ...] = ()
    features: FeatureStore | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", self.classes or tuple(range(self.spec.num_classes)))

    @cached_property
    def extractor(self) -> Extractor:
        """The working network; `extractor.load` makes it any member of the pool."""
        return Extractor(
            build_network(self.network, self.spec, derive(self.seed, "extractor")), self.spec, self.runtime
        )

    @cached_property
    def sampler(self) -> ClassSampler:
        return ClassSampler(self.train.labels, self.spec.num_classes, self.seed, classes=self.spec.classes)

    @cached_property
    def resident_images(self) -> Tensor:
        """The training images on the device, as stored (uint8 for images)."""
        return self.train.images.to(self.runtime.device)

    def initial_images(self) -> Tensor:
        """`(K, IPC, C, H, W)` on the device, as `init` says."""
        images = initial_images(
            self.train,
            self.spec,
            ipc=self.ipc,
            factor=self.factor,
            kind=self.init.kind,
            pick=self.init.pick,
            resize=self.init.resize,
            seed=self.seed,
            classes=self.classes,
        )
        return images.to(self.runtime.device)

    def require_pool(self, method: str) -> Pool:
        if self.pool is None:
            raise UsageError(f"method {method!r} needs pre-trained networks: pass a pool (potstill pretrain)")
        return self.pool

    def batch_size(self, size: int) -> int:
        """`size`, or the size of the smallest class of the data set where that is less (the same in every shard)."""
        return min(size, int(torch.bincount(self.train.labels, minlength=self.spec.num_classes).min()))

    def class_batches(self, size: int, number: int) -> Tensor:
        """Batch number `number` of real images of every class, `(K * n, C, H, W)`, by class; n as `batch_size`."""
        size = self.batch_size(size)
        index = torch.cat([self.sampler.batch(c, number, size) for c in self.classes])
        return self.resident_images[index.to(self.resident_images.device)]

    def class_draw(self, strategy: Strategy, number: int) -> Draw:
        """One augmentation row per class for batch number `number`; the operations are shared by all classes."""
        operations = draw_operations(strategy, generator(self.seed, "operations", number))
        rows = [Draw.row(generator(self.seed, "augment", c, number)) for c in self.classes]
        return Draw(operations, torch.cat(rows))

    def synthetic_set(
        self, images: Tensor, *, extras: Mapping[str, Tensor] | None = None, **provenance: Any
    ) -> SyntheticSet:
        """The set of stored `images` `(K, IPC, C, H, W)` and what else was learned, on the CPU."""
        facts = {key: str(value) for key, value in {"seed": self.seed, **provenance}.items()}
        learned = {name: extra.detach().cpu().contiguous() for name, extra in (extras or {}).items()}
        return SyntheticSet(images.detach().cpu().contiguous(), self.spec, self.factor, self.classes, facts, learned)


@dataclass(frozen=True)
class State:
    """All that a method carries from step to step: tensors and the number of steps done. Subclasses add tensors."""

    step: int
    images: Tensor

    def to_tensors(self) -> dict[str, Tensor]:
        """Every field as a CPU tensor, for a snapshot."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        step = values.pop("step")
        return {"step": torch.tensor(step), **{k: v.detach().cpu().contiguous() for k, v in values.items()}}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], device: str) -> State:
        """The inverse of `to_tensors`."""
        rest = {f.name: tensors[f.name].to(device) for f in fields(cls) if f.name != "step"}
        return cls(step=int(tensors["step"]), **rest)

    def advanced(self, **changes: Any) -> Any:
        """The state after one more step."""
        return replace(self, step=self.step + 1, **changes)


S = TypeVar("S", bound=State)


class Method(ABC, Generic[S]):
    """A way to make a synthetic set. Subclasses are final; they hold their frozen `Config` and nothing else.

    Attributes:
        Config: the method's keys and defaults (a frozen dataclass).
        State: the class of its state.
        needs_pool: whether it draws pre-trained networks.
        clamps: whether results stay inside the spec's value range.
        uses_seed: whether another root seed gives another result (greedy selection has no draws).
        uses_factor: whether results have the problem's factor; False keeps whole images whatever it is.
        independent_classes: whether distilling shards of classes equals distilling them together.
    """

    Config: ClassVar[type]
    State: ClassVar[type[State]] = State
    needs_pool: ClassVar[bool] = False
    clamps: ClassVar[bool] = True
    uses_seed: ClassVar[bool] = True
    uses_factor: ClassVar[bool] = True
    independent_classes: ClassVar[bool] = True
    #: Named groups of recipe keys ("method.momentum", "init.pick"...) that `fidelity` selects.
    fidelity: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self, config: Any = None):
        self.config = self.Config() if config is None else config

    @classmethod
    def about(cls) -> str:
        """The method in one line: the first of its docstring. Lists and reports quote it."""
        return (cls.__doc__ or "").strip().partition("\n")[0]

    @property
    def steps(self) -> int:
        """Steps to take; 0 for a method whose `init` is its result."""
        return int(getattr(self.config, "steps", 0))

    @abstractmethod
    def init(self, problem: Problem) -> S:
        """The state before the first step."""

    def step(self, problem: Problem, state: S) -> tuple[S, dict[str, float]]:
        """One step: the next state, and metrics to log (the first is the loss)."""
        raise NotImplementedError(f"{type(self).__name__} has no steps")

    def result(self, problem: Problem, state: S) -> SyntheticSet:
        """The synthetic set that a state stands for."""
        return problem.synthetic_set(state.images, method=type(self).__name__.lower(), steps=state.step)


METHODS: Registry[type[Method[Any]]] = Registry("method")


def run_method(method: Method[S], problem: Problem) -> SyntheticSet:
    """All steps in memory, without snapshots: for tests and small notebooks. `run` does it with files."""
    state = method.init(problem)
    for _ in range(method.steps):
        state, _ = method.step(problem, state)
    return method.result(problem, state)
