"""The pool of pre-trained networks that distillation draws its feature extractors from.

A member is a training run (by its own seed) at an epoch: snapshots of one run can serve as several members. Members
are cached by a hash of all that determines their weights, across runs, methods and IPC values, so a pool is paid
for once. Weights are kept as safetensors in half precision: 0.6 MB for a ConvNet-3.
"""

from __future__ import annotations

import json
import logging
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
from ..machine.runtime import Runtime
from ..networks import Backbone, build_network, identity
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
SCHEDULES = {"paper": PAPER, "fast": FAST}


@dataclass(frozen=True)
class MemberKey:
    """All that determines a member's weights, up to the order of summation on the hardware."""

    fingerprint: str
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    mirror: bool
    network: str
    schedule: Schedule
    seed: int
    epoch: int
    version: int = MEMBER_VERSION

    def digest(self) -> str:
        return blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=12).hexdigest()


@dataclass(frozen=True)
class Pool:
    """M trained networks; `draw` says which one a step uses, `members` holds their weights.

    Attributes:
        network: name of the architecture, see `networks`.
        members: weights by parameter name, fp32 on the CPU.
        seconds: what training the runs took from nothing, whenever that was; core_seconds: times its threads.
        digests: the members' content addresses, in the same order.
    """

    network: str
    members: Sequence[Mapping[str, Tensor]]
    digests: Sequence[str]
    seconds: float = 0.0
    core_seconds: float = 0.0
    metadata: Sequence[Mapping[str, str]] = field(default_factory=tuple)

    def __len__(self) -> int:
        return len(self.members)

    def draw(self, seed: int, step: int) -> int:
        """Index of the member that step `step` uses: uniform, a pure function of (seed, step). Algorithm 1, line 4."""
        return int(torch.randint(len(self), (), generator=generator(seed, "network", step)))


def pretrain(
    train: Split,
    spec: DatasetSpec,
    *,
    cache: Path,
    runtime: Runtime,
    network: str = "convnet",
    members: int = 3,
    schedule: Schedule = FAST,
    snapshots: tuple[int, ...] = (),
    seed: int = 0,
    on_epoch: Callable[[int, int, float], None] | None = None,
) -> Pool:
    """The pool for a data set: members found in `cache` are read, the others trained and added. Algorithm 1, line 1.

    Args:
        members: number of training runs, each by its own seed.
        snapshots: epochs whose weights become members too; the last epoch always is one. M = members x snapshots.
        on_epoch: called with (member, epochs done, mean loss).
    Raises:
        UsageError: members below 1, a snapshot outside the schedule.
    """
    if members < 1:
        raise UsageError(f"pool.members={members}: need at least 1 network")
    epochs = sorted({*snapshots, schedule.epochs})
    if epochs[0] < 1 or epochs[-1] > schedule.epochs:
        raise UsageError(f"pool.snapshots={list(snapshots)}: must lie in 1..{schedule.epochs} (pool epochs)")
    weights: list[Mapping[str, Tensor]] = []
    digests: list[str] = []
    metadata: list[Mapping[str, str]] = []
    seconds = core_seconds = 0.0
    for run in range(members):
        keys = [_key(spec, network, schedule, derive(seed, "pool", run), epoch) for epoch in epochs]
        paths = [cache / f"{key.digest()}.safetensors" for key in keys]
        if not all(path.exists() for path in paths):  # else nothing is written: a shared cache may be read only
            require_writable(cache)
            sweep(cache)
            # A second process wanting the same member waits and then finds it.
            with FileLock(cache / f"{keys[-1].digest()}.lock"):
                if not all(path.exists() for path in paths):
                    _train_run(train, spec, network, schedule, keys, paths, runtime, _announce(on_epoch, run))
        for path in paths:
            tensors, facts = read_member(path)
            weights.append(tensors)
            metadata.append(facts)
        took = float(metadata[-1].get("seconds", 0))  # the last epoch's clock holds the whole run
        seconds += took
        core_seconds += took * int(metadata[-1].get("threads", runtime.threads))
        digests += [key.digest() for key in keys]
    return Pool(network, tuple(weights), tuple(digests), seconds, core_seconds, tuple(metadata))


def untrained(spec: DatasetSpec, *, network: str = "convnet", members: int = 3, seed: int = 0) -> Pool:
    """Freshly initialised networks as a pool: the paper's ablation without pre-trained models (Table 4, row 1)."""
    weights = [build_network(network, spec, derive(seed, "pool", run)).state_dict() for run in range(members)]
    return Pool(network, weights, [f"untrained-{derive(seed, 'pool', run):x}" for run in range(members)])


def read_member(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """Weights (as fp32) and metadata of a cached member.

    Raises:
        DataError: damaged; names the file and the remedy.
    """
    tensors, facts = read_tensors(path, "pool member", "delete the file to train it again")
    return {name: value.float() for name, value in tensors.items()}, facts


def _key(spec: DatasetSpec, network: str, schedule: Schedule, seed: int, epoch: int) -> MemberKey:
    # Rounded: the last digits of a measured mean may differ between machines.
    mean, std = (tuple(round(v, 6) for v in values) for values in (spec.mean, spec.std))
    return MemberKey(spec.fingerprint, (mean, std), spec.mirror, identity(network), schedule, seed, epoch)


def _train_run(
    train: Split,
    spec: DatasetSpec,
    name: str,
    schedule: Schedule,
    keys: list[MemberKey],
    paths: list[Path],
    runtime: Runtime,
    on_epoch: Callable[[int, float], None] | None,
) -> None:
    network: Backbone = build_network(name, spec, keys[-1].seed)
    started = time.perf_counter()

    def keep(epoch: int, loss: float) -> None:
        if on_epoch:
            on_epoch(epoch, loss)
        for key, path in zip(keys, paths, strict=True):
            if key.epoch == epoch:
                facts = {
                    "key": json.dumps(asdict(key), sort_keys=True),
                    "seconds": f"{time.perf_counter() - started:.1f}",
                    "loss": f"{loss:.6f}",
                    "train_accuracy": f"{_sampled_accuracy(network, train, spec, runtime):.4f}",
                    "runtime": runtime.describe(),
                    "threads": str(runtime.threads),
                }
                halves = {n: v.detach().half().cpu() for n, v in network.state_dict().items()}
                write_atomically(path, pack(halves, facts))

    fit(network, train, spec, schedule, runtime, seed=keys[-1].seed, on_epoch=keep)


def _sampled_accuracy(network: Backbone, train: Split, spec: DatasetSpec, runtime: Runtime) -> float:
    """Accuracy on a strided sample of the training split: a sanity figure for logs, never a choice."""
    stride = max(1, len(train) // 2048)
    value = accuracy(network, train.subset(torch.arange(0, len(train), stride)), spec, runtime)
    network.train()
    return value


def _announce(on_epoch: Callable[[int, int, float], None] | None, run: int) -> Callable[[int, float], None] | None:
    return None if on_epoch is None else lambda epoch, loss: on_epoch(run, epoch, loss)
