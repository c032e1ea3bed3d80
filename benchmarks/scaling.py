"""What an engine costs a task, what a second worker gains, and how long Table 1 would take on many workers.

    python benchmarks/scaling.py --out results/speed/scaling.json       # all but the efficiency: minutes
    python benchmarks/scaling.py --efficiency 60 --out ...              # tasks of a minute; needs two idle cores

Overhead and efficiency are measured. The rest is computed: tasks of the paper's schedule as `potstill reproduce table1`
makes them, each as long as its network passes take at the rates measured in results/speed/cpu_1thread.json, dealt to
workers in the rounds and the order of `run/spread`. Nothing is distilled.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from potstill.evaluation import find_protocol
from potstill.files import write_atomically
from potstill.learning.pool import Pool
from potstill.machine.runtime import Runtime
from potstill.recipe import Recipe, resolve
from potstill.run.ahead import makespan
from potstill.run.distil import bare_problem
from potstill.run.engine.base import Engine
from potstill.run.engine.find import find_engine
from potstill.run.environment import commit, cpu_name
from potstill.run.paper import read_table
from potstill.run.shards import shards
from potstill.run.task import Task, data_name, pack_data
from potstill.spec import DatasetSpec, LabelledDataset, Split

WORKERS = (1, 8, 64, 512)
#: Seconds that an engine adds to each task, more than was ever measured.
OVERHEAD = 0.1
RATES = Path(__file__).parents[1] / "results" / "speed" / "cpu_1thread.json"
#: Classes, training images, sample shape.
DATA = {
    "mnist": (10, 60_000, (1, 28, 28)),
    "fashion_mnist": (10, 60_000, (1, 28, 28)),
    "svhn": (10, 73_257, (3, 32, 32)),
    "cifar10": (10, 50_000, (3, 32, 32)),
    "cifar100": (100, 50_000, (3, 32, 32)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=40, help="small tasks that the overhead is measured with")
    parser.add_argument("--efficiency", type=float, metavar="SECONDS", help="also measure it, on tasks of that length")
    parser.add_argument("--engines", nargs="+", default=["processes", "ray"])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["POTSTILL_CACHE_DIR"] = folder
        overhead = {name: overhead_of(name, options.tasks) for name in options.engines}
        gain = {name: efficiency_of(name, options.efficiency) for name in options.engines if options.efficiency}
    measured = json.loads(RATES.read_text())
    record = {
        "schema_version": 1,
        "cpu": cpu_name(),
        "commit": commit(),
        "load_average": round(os.getloadavg()[0], 1),
        "overhead": overhead,
        "efficiency_1_to_2_workers": gain,
        "rates_from": str(RATES.relative_to(RATES.parents[2])),
        "passes_a_second": asdict(Rates.measured(measured)),
        "table1": table1(measured),
        "table1_dsdm": table1(measured, "dsdm"),
        "imagenet": imagenet(measured),
    }
    write_atomically(options.out, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


# --- measured


def noise(classes: int, per_class: int, shape: tuple[int, int, int]) -> LabelledDataset:
    labels = torch.arange(classes).repeat_interleave(per_class)
    images = torch.randint(256, (len(labels), *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names, channels = tuple(map(str, range(classes))), shape[0]
    spec = DatasetSpec("noise", shape, names, (0.5,) * channels, (0.25,) * channels, mirror=False, fingerprint="noise")
    return LabelledDataset(spec, Split(images, labels), Split(images, labels))


def pool_tasks(data: LabelledDataset, count: int, epochs: int) -> list[Task]:
    """Training runs of a pool."""
    runtime = {"device": "cpu", "precision": "fp32", "threads": 1, "compile": False}
    pool = {"members": count, "epochs": epochs, "network": "convnet:width=8"}
    recipe = resolve({"pool": pool, "runtime": runtime}).to_dict()
    return [Task("member", "noise", recipe, data_name(data), run) for run in range(count)]


def seconds_of(engine: Engine, data: LabelledDataset, tasks: Sequence[Task]) -> float:
    started = time.perf_counter()
    for _, told, _ in engine.run(tasks, {data_name(data): pack_data(data)}):
        if isinstance(told, Exception):
            raise told
    return time.perf_counter() - started


def overhead_of(name: str, count: int) -> dict[str, float]:
    """Milliseconds a task takes longer than here, one worker, once it has started and holds the data."""
    data = noise(2, 8, (1, 8, 8))
    tasks = pool_tasks(data, count, epochs=1)
    with find_engine("serial") as here, find_engine(name, 1) as there:
        began = time.perf_counter()
        for engine in (here, there):
            seconds_of(engine, data, pool_tasks(data, 1, epochs=2))
        started = time.perf_counter() - began
        plain, spread = (min(seconds_of(engine, data, tasks) for _ in range(3)) for engine in (here, there))
    found = {"start_seconds": started, "plain_ms": 1000 * plain / count, "overhead_ms": 1000 * (spread - plain) / count}
    return {key: round(value, 2) for key, value in found.items()}


def efficiency_of(name: str, seconds: float) -> dict[str, Any]:
    """Of two workers: the time of four tasks on one, over twice their time on two. Beside it what others did then."""
    data = noise(10, 100, (1, 28, 28))
    with find_engine("serial") as engine:
        seconds_of(engine, data, pool_tasks(data, 1, epochs=1))
        once = seconds_of(engine, data, pool_tasks(data, 1, epochs=3)) / 3
    tasks = pool_tasks(data, 4, epochs=max(1, round(seconds / once)))
    took, others = [], []
    for workers in (1, 2):
        with find_engine(name, workers) as engine:
            seconds_of(engine, data, pool_tasks(data, workers, epochs=2))
            busy, began = busy_seconds(), time.perf_counter()
            took.append(seconds_of(engine, data, tasks))
            others.append((busy_seconds() - busy) / (time.perf_counter() - began) - workers)
    found = {"task_seconds": took[0] / 4, "two_workers_seconds": took[1], "efficiency": took[0] / took[1] / 2}
    return {key: round(value, 3) for key, value in found.items()} | {
        "cores_beside_the_workers": [round(share, 2) for share in others]
    }


def busy_seconds() -> float:
    """Core-seconds since the machine's start, of all processes; 0 where the system does not count them."""
    stat = Path("/proc/stat")
    fields = stat.read_text().split()[1:9] if stat.exists() else ["0"] * 8
    return sum(int(fields[i]) for i in (0, 1, 2, 5, 6)) / os.sysconf("SC_CLK_TCK")


# --- computed


@dataclass(frozen=True)
class Rates:
    """Network passes of 32x32 samples a second, forward ones; one back to pixels counts 1, to weights 2."""

    distil: float
    train: float

    @classmethod
    def measured(cls, record: dict[str, Any]) -> "Rates":
        step = record["step"]["ipc10"]["seconds"]["fresh"][0]
        passes = 10 * (256 + 2 * 40)  # of ten classes: 256 real samples forward, 40 synthetic ones there and back
        return cls(passes / step, 3 * record["evaluation_epoch"]["images_per_second"]["potstill"])


def blank(name: str) -> LabelledDataset:
    """A data set of the right sizes, without pictures."""
    classes, count, shape = DATA[name]
    labels = torch.arange(count) % classes
    split = Split(torch.zeros(count, 1, 1, 1, dtype=torch.uint8), labels)
    names = tuple(map(str, range(classes)))
    spec = DatasetSpec(name, shape, names, (0.5,) * shape[0], (0.25,) * shape[0], mirror=False, fingerprint=name)
    return LabelledDataset(spec, split, split)


def distil_seconds(recipe: Recipe, data: LabelledDataset, rates: Rates) -> float:
    method = recipe.build_method()
    networks = recipe.pool.networks if method.needs_pool else 0
    pool = Pool(recipe.pool.network, ({},) * networks, ("",) * networks) if networks else None
    passes = method.passes(bare_problem(recipe, data, Runtime(), pool, way=recipe.way()))
    return passes * (data.spec.shape[1] / 32) ** 2 / rates.distil


def network_seconds(recipe: Recipe, data: LabelledDataset, images: int, rates: Rates) -> float:
    epochs = find_protocol(recipe.evaluation.protocol, recipe.evaluation.epochs).epochs
    return 3 * images * epochs * (data.spec.shape[1] / 32) ** 2 / rates.train


def table1(measured: dict[str, Any], *only: str) -> dict[str, Any]:
    """Core-hours of the tasks of each round, and how long they take on so many workers, whole and in ten shards.

    Args:
        only: rows by their labels; all of them by default.
    """
    rates, data = Rates.measured(measured), {name: blank(name) for name in DATA}
    pools: dict[Any, list[float]] = {}
    whole, split, networks, longest = list[float](), list[float](), list[float](), ("", 0.0)
    for cell in read_table("table1", "paper").cells:
        if only and cell.label not in only:
            continue
        assert cell.recipe, cell.missing
        recipe, found = cell.recipe, data[cell.facts["dataset"]]
        if cell.draft.whole:
            networks += [network_seconds(recipe, found, len(found.train), rates)] * recipe.evaluation.nets
            continue
        method, classes = recipe.build_method(), found.spec.num_classes
        if method.needs_pool and recipe.pool.pretrained:
            passes = 3 * len(found.train) * recipe.pool.training().epochs
            seconds = passes * (found.spec.shape[1] / 32) ** 2 / rates.train
            pools[found.spec.name, recipe.pool] = [seconds] * recipe.pool.members
        took = distil_seconds(recipe, found, rates)
        longest = max(longest, (cell.name, took), key=lambda named: named[1])
        whole.append(took)
        parts = shards(classes, 10) if method.independent_classes else [()]
        split += [took / len(parts)] * len(parts)
        samples = recipe.way().samples(recipe.ipc, found.spec) if method.uses_factor else recipe.ipc
        networks += [network_seconds(recipe, found, samples * classes, rates)] * recipe.evaluation.nets
    members = [seconds for pool in pools.values() for seconds in pool]
    rounds = {"pools": members, "sets": whole, "networks": networks}
    return {
        "tasks": {what: len(times) for what, times in rounds.items()},
        "core_hours": {what: round(sum(times) / 3600, 1) for what, times in rounds.items()},
        "longest_set": [longest[0], round(longest[1] / 3600, 1)],
        "makespan_hours": {
            "whole, in the table's order": hours_on(members, whole, networks),
            "whole, longest first": hours_on(*(sorted(r, reverse=True) for r in (members, whole, networks))),
            "ten shards, longest first": hours_on(*(sorted(r, reverse=True) for r in (members, split, networks))),
        },
    }


def hours_on(*rounds: Sequence[float]) -> dict[str, float]:
    """Rounds begin when those before them have ended."""
    return {str(n): round(sum(makespan([s + OVERHEAD for s in r], n) for r in rounds) / 3600, 1) for n in WORKERS}


def imagenet(measured: dict[str, Any]) -> dict[str, Any]:
    """DSDM on ImageNet-1K, 224 px, IPC 10, the paper's schedule: 1000 classes, fresh batches of 256, factor 2."""
    rates, classes, images, side, ipc, steps, members = Rates.measured(measured), 1000, 1_281_167, 224, 10, 10_000, 10
    area, depth = (side / 32) ** 2, 6
    width = 128 * (side >> depth) ** 2
    stored = classes * ipc * 3 * side * side
    step = classes * (256 + 2 * 4 * ipc) * area / rates.distil
    return {
        "network": f"convnet of {depth} blocks, {width} features; a pass taken as {area:.0f} of 32 px, for the first "
        "block has nearly all the work",
        "training_images_gb": round(images * 3 * side * side / 1e9),
        "stored_set_gb": round(4 * stored / 1e9, 1),
        "state_gb": round((2 * 4 * stored + members * classes * width * 4) / 1e9, 1),
        "shard_of_10_classes_gb": round((images * 3 * side * side + 2 * 4 * stored) / 100 / 1e9, 2),
        "core_hours_pool": round(members * 20 * images * 3 * area / rates.train / 3600),
        "core_seconds_a_step": round(step),
        "core_hours_distil": round(step * steps / 3600),
        "core_hours_of_a_shard_of_10_classes": round(step * steps / 3600 / 100),
        "core_hours_a_network": round(3 * classes * 4 * ipc * 1000 * area / rates.train / 3600),
    }


if __name__ == "__main__":
    main()
