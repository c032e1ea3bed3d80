"""Evaluation networks one after another on all threads, or side by side on a share of them each: whole stages, in turn.

    python benchmarks/side_by_side.py --threads 2 --out results/speed/side_by_side.json

Data are random pixels of CIFAR-10's shape at IPC 10, factor 2 (400 decoded images) with a test split of 2,000.
Starting the processes and compiling (from a warm cache, as after a first evaluation) are part of the time, and weigh
less the longer the protocol is: `seconds_an_epoch` is from stages of two lengths and holds neither.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from speed import random_data

from potstill.config import resolve
from potstill.files import write_atomically
from potstill.run.environment import commit, cpu_name
from potstill.run.progress import Reporter
from potstill.run.scoring import evaluate_set
from potstill.run.store import RunStore
from potstill.spec import DatasetSpec, Split
from potstill.synthetic import SyntheticSet, initial_images

WAYS = ("one after another", "side by side")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--nets", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--epochs", type=int, default=40, help="of the longer stage; the shorter one has half as many")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data, spec = random_data("cpu")
    synthetic = SyntheticSet(initial_images(data, spec, ipc=10, factor=(2, 2)), spec, (2, 2))
    test = data.subset(torch.arange(2000))
    for way in WAYS:  # compile, and fill the cache
        stage_seconds(synthetic, test, spec, way, options.threads, nets=max(options.nets), epochs=1)
    record = {
        "schema_version": 1,
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "commit": commit(),
        "threads": options.threads,
        "epochs": options.epochs,
        "nets": {
            str(nets): in_turn(synthetic, test, spec, options.threads, nets, options.epochs, options.pairs)
            for nets in options.nets
        },
    }
    write_atomically(options.out, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def in_turn(
    synthetic: SyntheticSet, test: Split, spec: DatasetSpec, threads: int, nets: int, epochs: int, pairs: int
) -> dict:
    """Seconds of whole stages and of one epoch of all networks, both ways, and how much faster side by side is."""
    long: dict[str, list[float]] = {way: [] for way in WAYS}
    epoch: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(pairs):
        for way in WAYS:
            short = stage_seconds(synthetic, test, spec, way, threads, nets=nets, epochs=epochs // 2)
            long[way].append(stage_seconds(synthetic, test, spec, way, threads, nets=nets, epochs=epochs))
            epoch[way].append((long[way][-1] - short) / (epochs - epochs // 2))
    before, after = WAYS
    return {
        "seconds": {way: summary(times) for way, times in long.items()},
        "seconds_an_epoch": {way: summary(times) for way, times in epoch.items()},
        "times_faster": median(a / b for a, b in zip(long[before], long[after], strict=True)),
        "times_faster_an_epoch": median(a / b for a, b in zip(epoch[before], epoch[after], strict=True)),
    }


def summary(times: list[float]) -> dict[str, float]:
    return {"median": median(times), "min": min(times), "max": max(times)}


def stage_seconds(
    synthetic: SyntheticSet, test: Split, spec: DatasetSpec, way: str, threads: int, *, nets: int, epochs: int
) -> float:
    recipe = resolve(
        {
            "data.name": spec.name,
            "evaluation": {"nets": nets, "epochs": epochs, "at_once": 1 if way == WAYS[0] else threads},
            "runtime": {"threads": threads, "compile": True, "precision": "bf16"},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        evaluate_set(synthetic, test, recipe, RunStore(folder), Reporter(quiet=True))
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
