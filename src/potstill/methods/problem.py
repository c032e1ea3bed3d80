"""What a method may know: the training split, never the test split, and what is derived from it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import UsageError
from ..learning.augment import Draw, Strategy, draw_operations
from ..learning.extractor import Extractor
from ..learning.gradients import Gradients, Weights
from ..learning.pool import Pool
from ..machine.runtime import Runtime
from ..networks import build_network
from ..seeding import derive, generator
from ..sets.parameterisations import Factor, Parameterisation
from ..sets.synthetic import SyntheticSet, as_parameterisation, check_init, initial_images
from ..spec import DatasetSpec, Split
from .feature_store import FeatureStore
from .sampler import ClassSampler

T = TypeVar("T")


@dataclass(frozen=True)
class Init:
    """How stored images start.

    Attributes:
        kind: "mix" fills every tile with its own down-sized real image, "real" takes whole real images, "noise" draws
            uniformly in the value range.
        pick: real images are drawn at random per class ("seeded"), those nearest to its k-means centres ("centres"), or
            the first in file order ("first").
        resize: shrinking averages ("area") or drops pixels ("nearest").
    """

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
        ipc: the budget of a class, in whole images.
        parameterisation: what that budget holds; a factor (rows, columns) is the short name of tiles.
        seed: root of all draws.
        pool: pre-trained networks, where the method uses them; `network` names the architecture.
        classes: those to distil, all by default: a shard gives what the whole run gives for them.
        features: where banks of real features are shared with other runs; None keeps them in memory.
    """

    spec: DatasetSpec
    train: Split
    ipc: int
    parameterisation: Parameterisation | Factor = (1, 1)
    seed: int = 0
    runtime: Runtime = field(default_factory=Runtime)
    pool: Pool | None = None
    network: str = "convnet"
    init: Init = field(default_factory=Init)
    classes: tuple[int, ...] = ()
    features: FeatureStore | None = None
    _kept: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", self.classes or tuple(range(self.spec.num_classes)))
        object.__setattr__(self, "parameterisation", as_parameterisation(self.parameterisation))

    @property
    def way(self) -> Parameterisation:
        """The parameterisation, for type checkers sure of it."""
        assert isinstance(self.parameterisation, Parameterisation)
        return self.parameterisation

    @property
    def samples(self) -> int:
        """Decoded samples of a class."""
        return self.way.samples(self.ipc, self.spec)

    def decode(self, stored: Tensor) -> Tensor:
        """Samples `(K, M, C, H, W)` of stored numbers, differentiable."""
        return self.way.decode(stored, self.spec)

    def clamp(self, stored: Tensor) -> Tensor:
        """Stored numbers within their range, where they have one."""
        return self.way.clamp(stored, self.spec)

    @cached_property
    def units(self) -> Tensor:
        """What a unit of the normalised scale is in stored numbers; broadcasts to `(K, ...)`.

        Published rates are mostly of steps on normalised pixels. A step of SGD of rate r on them is one of rate
        r units^2 on stored numbers; an optimiser that looks at sizes is given units x gradient, and moves by
        units x what it answers.
        """
        return self.way.units(self.spec).to(self.runtime.device)

    @cached_property
    def extractor(self) -> Extractor:
        """Embeds with the weights of any network of the problem's architecture."""
        return Extractor(build_network(self.network, self.spec, 0), self.spec, self.runtime)

    @cached_property
    def gradients(self) -> Gradients:
        """Gradients of any network of the problem's architecture, batch norm as in training."""
        return Gradients(build_network(self.network, self.spec, 0).train(), self.spec, self.runtime)

    @cached_property
    def sampler(self) -> ClassSampler:
        return ClassSampler(self.train.labels, self.spec.num_classes, self.seed, classes=self.spec.classes)

    @cached_property
    def resident_images(self) -> Tensor:
        """The training images on the device, as stored (uint8 for images)."""
        return self.train.images.to(self.runtime.device)

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made once: for what is derived from the problem alone, so that no state need hold it."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def initial_images(self, *, kind: str | None = None, whole: bool = False) -> Tensor:
        """Stored numbers `(K, ...)` on the device, as `init` says, or of another `kind`; `whole` ones are images.

        Raises:
            DataError: a class of fewer real images than are needed.
        """
        if kind:  # real ones whatever `init` says: to start from noise would be no remedy
            for cls in self.classes:
                self.sampler.require(cls, self.ipc if whole else self.samples)
        images = initial_images(
            self.train,
            self.spec,
            ipc=self.ipc,
            parameterisation=as_parameterisation((1, 1)) if whole else self.way,
            kind=kind or self.init.kind,
            pick=self.init.pick,
            resize=self.init.resize,
            seed=self.seed,
            classes=self.classes,
        )
        return images.to(self.runtime.device)

    def fresh_network(self, number: int) -> Weights:
        """Weights of the `number`-th network of the architecture as initialised, on the device."""
        weights = build_network(self.network, self.spec, derive(self.seed, "random network", number)).state_dict()
        return {name: value.to(self.runtime.device) for name, value in weights.items()}

    def require_pool(self, method: str) -> Pool:
        if self.pool is None:
            raise UsageError(f"method {method!r} needs pre-trained networks: pass a pool (potstill pretrain)")
        return self.pool

    def require_logits(self, weight: float) -> None:
        """Raises UsageError where a term of this weight asks for logits and the network, a frozen one, has none."""
        if weight:
            self.extractor.network.require_logits()

    def batch_size(self, size: int) -> int:
        """`size`, or the size of the largest class of the data set where that is less (the same in every shard)."""
        return min(size, int(torch.bincount(self.train.labels).max()))

    def class_batches(self, size: int, number: int) -> Tensor:
        """Batch number `number` of real images of every class, `(K, n, C, H, W)`; n as `batch_size`.

        A class of fewer images repeats them, each as often as the others give or take one.
        """
        size = self.batch_size(size)
        index = torch.stack([self.sampler.batch(c, number, size) for c in self.classes])
        return self.resident_images[index.to(self.resident_images.device)]

    def chosen_samples(self, samples: Tensor, most: int, number: int) -> Tensor:
        """At most `most` of decoded samples `(K, M, ...)` of each class, drawn for batch number `number`."""
        count = samples.shape[1]
        if count <= most:
            return samples
        chosen = [torch.randperm(count, generator=generator(self.seed, "synthetic", c, number)) for c in self.classes]
        index = torch.stack([order[:most] for order in chosen]).to(samples.device)
        return samples[torch.arange(len(samples), device=samples.device)[:, None], index]

    def class_draw(self, strategy: Strategy, number: int) -> Draw:
        """One augmentation row per class for batch number `number`; the operations are shared by all classes."""
        operations = draw_operations(strategy, generator(self.seed, "operations", number))
        rows = [Draw.row(generator(self.seed, "augment", c, number)) for c in self.classes]
        return Draw(operations, torch.cat(rows))

    def synthetic_set(
        self, images: Tensor, *, whole: bool = False, extras: Mapping[str, Tensor] | None = None, **provenance: Any
    ) -> SyntheticSet:
        """The set of stored numbers `images` `(K, ...)` and what else was learned, on the CPU; `whole`: see above."""
        way = as_parameterisation((1, 1)) if whole else self.way
        facts = {key: str(value) for key, value in {"seed": self.seed, **provenance}.items()}
        learned = {name: extra.detach().cpu().contiguous() for name, extra in (extras or {}).items()}
        stored = images.detach().cpu().contiguous()
        return SyntheticSet(stored, self.spec, way, self.classes, facts, learned, self.ipc)
