"""Train a fresh network on a set and test it once, on data that fit the set."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ..checks import whole
from ..errors import UsageError
from ..learning.fit import accuracy
from ..machine.runtime import Runtime
from ..networks import build_network
from ..scores import Score
from ..seeding import derive
from ..spec import DatasetSpec, LabelledDataset, Split
from .protocols import Protocol, TrainingSet, find_protocol

#: More networks than any table needs; each is a file and a training.
MOST_NETS = 10_000


def evaluate_once(
    train: TrainingSet,
    spec: DatasetSpec,
    test: Split,
    *,
    network: str,
    protocol: str | Protocol,
    seed: int,
    runtime: Runtime,
    epochs: int | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> Score:
    """Train one fresh network on `train`, a set or real data, and score it on `test` after the last epoch."""
    protocol = find_protocol(protocol, epochs).suited(train)
    started = time.perf_counter()
    losses: list[float] = []

    def keep(epoch: int, loss: float) -> None:
        losses.append(loss)
        if on_epoch:
            on_epoch(epoch, loss)

    net = build_network(network, spec, protocol.network_seed(train, derive(seed, "evaluate")))
    net = protocol.train(net, train, spec, runtime, seed=derive(seed, "evaluate"), on_epoch=keep)
    right = accuracy(net, test, spec, runtime)
    loss = losses[-1] if losses else None
    return Score(network, protocol.name, protocol.epochs, seed, right, loss, time.perf_counter() - started)


def evaluation_seeds(seed: int, network: str, nets: int) -> list[int]:
    """The seeds of `nets` evaluation networks; more nets later keep the first ones.

    Raises:
        UsageError: nets outside 1..10,000, or numbers that are not whole.
    """
    nets, seed = whole("nets", nets), whole("seed", seed)
    if not 1 <= nets <= MOST_NETS:
        raise UsageError(f"nets={nets}: need at least 1 network and at most {MOST_NETS:,}")
    return [derive(seed, "evaluation net", network, i) for i in range(nets)]


def matching_test(spec: DatasetSpec, data: LabelledDataset | Split) -> Split:
    """The test data that a set of `spec` is scored on, their labels counted in the order of the set's classes.

    Args:
        data: a data set, whose class names are compared with the set's, or a test split, which has none.
    Raises:
        UsageError: samples of another shape, or other classes.
    """
    if isinstance(data, LabelledDataset):
        if (spec.shape, spec.num_classes) != (data.spec.shape, data.spec.num_classes):
            raise UsageError(
                f"the set has shape {spec.shape} and {spec.num_classes} classes, {data.spec.name!r} has "
                f"{data.spec.shape} and {data.spec.num_classes}: name the right --dataset"
            )
        return _in_order_of(spec.classes, data)
    if not isinstance(data, Split):
        raise UsageError(f"cannot score on {type(data).__name__}: give what load_dataset returns, or its .test")
    shape, most = tuple(data.images.shape[1:]), int(data.labels.max()) if len(data) else -1
    if shape != spec.shape or not len(data):
        raise UsageError(f"the set has shape {spec.shape}, the test data have {len(data)} samples of {shape}")
    if most >= spec.num_classes:
        raise UsageError(f"the set has {spec.num_classes} classes, the test data have a label {most}")
    return data


def _in_order_of(classes: tuple[str, ...], data: LabelledDataset) -> Split:
    if classes == data.spec.classes:
        return data.test
    strange = sorted(set(data.spec.classes) - set(classes))
    if strange:
        raise UsageError(
            f"the set's classes are {_some(classes)}, those of {data.spec.name!r} {_some(data.spec.classes)}: "
            "name the right --dataset, or rename its classes"
        )
    order = torch.tensor([classes.index(name) for name in data.spec.classes])
    return Split(data.test.images, order[data.test.labels])


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names[:4])) + (", ..." if len(names) > 4 else "")
