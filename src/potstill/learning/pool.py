"""The pool of pre-trained networks that distillation draws its feature extractors from.

A member is a training run (by its own seed) at an epoch: snapshots of one run can serve as several members. Members
are cached by a hash of all that determines their weights, across runs, methods and IPC values, so a pool is paid
for once. Weights are kept as safetensors in half precision: 0.6 MB for a ConvNet-3.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from ..errors import UsageError
from ..files import require_writable, sweep, write_atomically
from ..machine import work
from ..machine.runtime import Runtime
from ..networks import Backbone, Frozen, FrozenNetwork, build_network, give, given, identity, is_given
from ..seeding import derive, generator
from ..spec import DatasetSpec, Split
from ..tensors import pack, read_tensors
from .fit import Schedule, accuracy, fit

log = logging.getLogger("potstill")

#: Raised when a change of code makes the same recipe give other weights.
MEMBER_VERSION = 1

#: The paper's schedule, from the authors' code (section 5.1: E = 20 epochs; CutMix takes the place of cutout).
PAPER = Schedule(epochs=20, batch=256, learning_rate=0.01, augment="color_crop", cutmix=0.5)
#: One cycle to a peak of .05: a ConvNet-3 reaches on CIFAR-10 in 6 epochs what the paper's schedule does in 20.
FAST = Schedule(
    epochs=6, batch=128, learning_rate=0.05, nesterov=True, decay="one_cycle", augment="color_crop", cutmix=0.5
)
#: Of the experts of DANCE and TGDD, from their code.
DANCE = Schedule(
    epochs=60, batch=64, learning_rate=0.01, decay="steps", decay_at=(2 / 3, 5 / 6), augment="color_crop", cutmix=0.5
)
SCHEDULES = {"paper": PAPER, "fast": FAST, "dance": DANCE}


#: Keys of a schedule that are younger than the members in people's caches: at these values they change no address.
LATER_KEYS = {"decay_restarts": False}


@dataclass(frozen=True)
class MemberKey:
    """All that determines a member's weights, up to the order of summation on the hardware."""

    fingerprint: str
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    mirror: bool
    network: str
    schedule: Schedule
    seed: int
    epoch: float  # an int where it is whole, as addresses are hashes of what is written
    version: int = MEMBER_VERSION

    def digest(self) -> str:
        record = asdict(self)
        for key, default in LATER_KEYS.items():
            if record["schedule"][key] == default:
                del record["schedule"][key]
        return blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=12).hexdigest()


@dataclass(frozen=True)
class Pool:
    """M trained networks; `draw` says which one a step uses, `members` holds their weights.

    Attributes:
        network: name of the architecture, see `networks`.
        members: weights by parameter name, fp32 on the CPU.
        seconds: what training the runs took from nothing, whenever that was; core_seconds: the work of it (`work`), of
            members of older versions the seconds times the threads.
        digests: the members' content addresses, in the same order.
        moments: epochs of a training run whose weights are members, in order: members lie run by run. Without any,
            each member is a run of its own.
    """

    network: str
    members: Sequence[Mapping[str, Tensor]]
    digests: Sequence[str]
    seconds: float = 0.0
    core_seconds: float = 0.0
    metadata: Sequence[Mapping[str, str]] = field(default_factory=tuple)
    moments: Sequence[float] = ()

    @classmethod
    def of(cls, modules: Frozen | Sequence[Frozen]) -> Pool:
        """Modules with weights of their own as members; they share one architecture.

        Raises:
            UsageError: none of them, something else, or several architectures.
        """
        modules = (modules,) if isinstance(modules, Frozen) else tuple(modules)
        name = give(modules)
        return cls(name, [one.weights() for one in modules], [f"frozen-{one.digest}" for one in modules])

    def __len__(self) -> int:
        return len(self.members)

    def draw(self, seed: int, step: int) -> int:
        """Index of the member that step `step` uses: uniform, a pure function of (seed, step). Algorithm 1, line 4."""
        return int(torch.randint(len(self), (), generator=generator(seed, "network", step)))

    def draw_later(self, member: int, seed: int, step: int) -> int:
        """A trained member of the training run of `member`, at its moment or later: uniform, as `draw`."""
        each = len(self.moments) or 1
        run, place = divmod(member, each)
        later = [i for i in range(place, each) if not self.moments or self.moments[i] > 0]
        return run * each + later[int(torch.randint(len(later), (), generator=generator(seed, "later network", step)))]

    def draw_run(self, seed: int, step: int) -> range:
        """Members of the training run that step `step` uses, earliest first: uniform, as `draw`."""
        each = len(self.moments) or 1
        run = int(torch.randint(len(self) // each, (), generator=generator(seed, "training run", step)))
        return range(run * each, (run + 1) * each)


def pretrain(
    train: Split,
    spec: DatasetSpec,
    *,
    cache: Path,
    runtime: Runtime,
    network: str = "convnet",
    members: int = 3,
    schedule: Schedule = FAST,
    snapshots: Sequence[float] = (),
    seed: int = 0,
    on_epoch: Callable[[int, int, float], None] | None = None,
) -> Pool:
    """The pool for a data set: members found in `cache` are read, the others trained and added. Algorithm 1, line 1.

    Args:
        members: number of training runs, each by its own seed.
        snapshots: epochs whose weights become members too, from 0 (untrained) and in parts (0.25); the last epoch is
            one always. M = members x snapshots.
        on_epoch: called with (member, epochs done, mean loss).
    Raises:
        UsageError: members below 1, a snapshot outside the schedule.
    """
    epochs = snapshot_epochs(schedule, snapshots)
    if members < 1:
        raise UsageError(f"pool.members={members}: need at least 1 network")
    runs = [member_keys(spec, network, schedule, derive(seed, "pool", run), epochs) for run in range(members)]
    for run, keys in enumerate(runs):
        train_member(train, spec, network, keys, cache, runtime, _announce(on_epoch, run))
    return read_pool(network, runs, cache, threads=runtime.threads)


def snapshot_epochs(schedule: Schedule, snapshots: Sequence[float]) -> list[float]:
    """Moments of a training run whose weights are members, in order: `snapshots` and the last epoch.

    Raises:
        UsageError: a snapshot outside the schedule.
    """
    # Whole epochs are whole numbers: 1 and 1.0 are one member, and its address is that of 1.
    moments = sorted({int(e) if float(e).is_integer() else e for e in (*snapshots, schedule.epochs)})
    if not 0 <= moments[0] <= moments[-1] <= schedule.epochs:
        raise UsageError(f"pool.snapshots={list(snapshots)}: must lie in 0..{schedule.epochs} (pool epochs and parts)")
    return moments


def member_keys(
    spec: DatasetSpec, network: str, schedule: Schedule, seed: int, epochs: Sequence[float]
) -> list[MemberKey]:
    """Addresses of one training run's members."""
    # Rounded: the last digits of a measured mean may differ between machines.
    mean, std = (tuple(round(v, 6) for v in values) for values in (spec.mean, spec.std))
    name = identity(network)
    return [MemberKey(spec.fingerprint, (mean, std), spec.mirror, name, schedule, seed, epoch) for epoch in epochs]


def train_member(
    train: Split,
    spec: DatasetSpec,
    network: str,
    keys: Sequence[MemberKey],
    cache: Path,
    runtime: Runtime,
    on_epoch: Callable[[int, float], None] | None = None,
) -> None:
    """One task: see to it that `cache` holds the members of one training run; nothing is done where it does."""
    if is_cached(keys, cache):  # nothing is written: a shared cache may be read only
        return
    require_writable(cache)
    sweep(cache)
    # A second process wanting the same member waits and then finds it.
    with FileLock(cache / f"{keys[-1].digest()}.lock"):
        if not is_cached(keys, cache):
            _train_run(train, spec, network, keys, cache, runtime, on_epoch)


def is_cached(keys: Sequence[MemberKey], cache: Path) -> bool:
    """Whether `cache` holds all members of a training run."""
    return all(_path(cache, key).exists() for key in keys)


def is_trained(keys: Sequence[MemberKey], cache: Path) -> bool:
    """Whether `cache` holds all members that take training: the untrained one is made again without any."""
    return is_cached([key for key in keys if key.epoch], cache)


def read_pool(network: str, runs: Sequence[Sequence[MemberKey]], cache: Path, *, threads: int = 1) -> Pool:
    """The pool of members that `cache` holds, by the addresses of each training run.

    Args:
        threads: what a member is taken to have been trained with where it does not say.
    """
    read = [[read_member(_path(cache, key)) for key in keys] for keys in runs]
    seconds = core_seconds = 0.0
    for members in read:
        facts = members[-1][1]  # the last epoch's clock holds the whole run
        clock = float(facts.get("seconds", 0))
        seconds += clock
        core_seconds += float(facts.get("core_seconds", clock * int(facts.get("threads", threads))))
    weights, metadata = zip(*(member for members in read for member in members), strict=True)
    digests = tuple(key.digest() for keys in runs for key in keys)
    moments = tuple(key.epoch for key in runs[0])
    return Pool(network, weights, digests, seconds, core_seconds, metadata, moments)


def untrained(spec: DatasetSpec, *, network: str = "convnet", members: int = 3, seed: int = 0) -> Pool:
    """Networks as they are made: the paper's ablation without pre-trained models (Table 4, row 1), or frozen modules.

    A factory that gives the same frozen module each time makes one member.
    """
    if is_given(network):
        return Pool.of(given(network))
    seeds = [derive(seed, "pool", run) for run in range(members)]
    made = [(build_network(network, spec, own), f"untrained-{own:x}") for own in seeds]
    by_digest = {f"frozen-{n.digest}" if isinstance(n, FrozenNetwork) else name: n.state_dict() for n, name in made}
    return Pool(network, tuple(by_digest.values()), tuple(by_digest))


def read_member(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """Weights (as fp32) and metadata of a cached member.

    Raises:
        DataError: damaged; names the file and the remedy.
    """
    tensors, facts = read_tensors(path, "pool member", "delete the file to train it again")
    return {name: value.float() for name, value in tensors.items()}, facts


def _path(cache: Path, key: MemberKey) -> Path:
    return cache / f"{key.digest()}.safetensors"


def _train_run(
    train: Split,
    spec: DatasetSpec,
    name: str,
    keys: Sequence[MemberKey],
    cache: Path,
    runtime: Runtime,
    on_epoch: Callable[[int, float], None] | None,
) -> None:
    network: Backbone = build_network(name, spec, keys[-1].seed)
    started, worked = time.perf_counter(), work.core_seconds(runtime.device)
    by_epoch = {key.epoch: key for key in keys}

    def keep(epoch: float, loss: float) -> None:
        key = by_epoch[epoch]
        facts = {
            "key": json.dumps(asdict(key), sort_keys=True),
            "seconds": f"{time.perf_counter() - started:.1f}",
            "core_seconds": f"{work.core_seconds(runtime.device) - worked:.1f}",
            "loss": f"{loss:.6f}",
            "train_accuracy": f"{_sampled_accuracy(network, train, spec, runtime):.4f}",
            "runtime": runtime.describe(),
            "threads": str(runtime.threads),
        }
        halves = {n: v.detach().half().cpu() for n, v in network.state_dict().items()}
        write_atomically(_path(cache, key), pack(halves, facts))

    if is_trained(keys, cache):  # by a pool without its beginning
        return keep(0, math.nan)
    fit(
        network,
        train,
        spec,
        keys[-1].schedule,
        runtime,
        seed=keys[-1].seed,
        on_epoch=on_epoch,
        snapshots=list(by_epoch),
        on_snapshot=keep,
    )


def _sampled_accuracy(network: Backbone, train: Split, spec: DatasetSpec, runtime: Runtime) -> float:
    """Accuracy on a strided sample of the training split: a sanity figure for logs, never a choice."""
    stride = max(1, len(train) // 2048)
    value = accuracy(network, train.subset(torch.arange(0, len(train), stride)), spec, runtime)
    network.train()
    return value


def _announce(on_epoch: Callable[[int, int, float], None] | None, run: int) -> Callable[[int, float], None] | None:
    return None if on_epoch is None else lambda epoch, loss: on_epoch(run, epoch, loss)
