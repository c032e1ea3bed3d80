"""Evaluation networks one after another on all threads, or side by side on a share of them each: whole stages, in turn.

    python benchmarks/side_by_side.py --threads 2 --out results/speed/side_by_side.json

Data are random pixels of CIFAR-10's shape at IPC 10, factor 2 (400 decoded images) with a test split of 2,000.
Starting the processes and compiling (from a warm cache, as after a first evaluation) are part of the time, and weigh
less the longer the protocol is: `seconds_an_epoch` is without a stage of one epoch and holds neither.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from speed import random_data

from potstill.files import write_atomically
from potstill.recipe import resolve
from potstill.run.environment import commit, cpu_name
from potstill.run.progress import Reporter
from potstill.run.score import evaluate_set
from potstill.run.store import RunStore
from potstill.sets.synthetic import SyntheticSet, initial_images
from potstill.spec import Split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--at-once", type=int, help="networks side by side (default: as many as threads)")
    parser.add_argument("--nets", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--epochs", type=int, default=40, help="of a stage, 2 at least")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    ways = {"one after another": 1, "side by side": options.at_once or options.threads}
    stage = partial(stage_seconds, *random_set(), {"device": options.device, "threads": options.threads})
    for at_once in ways.values():  # compile, and fill the cache
        stage(max(options.nets), 1, at_once)
    record = {
        "schema_version": 1,
        "cpu": cpu_name(),
        "device": options.device,
        "torch": torch.__version__,
        "commit": commit(),
        "threads": options.threads,
        "at_once": ways["side by side"],
        "epochs": options.epochs,
        "nets": {str(nets): in_turn(stage, ways, nets, options.epochs, options.pairs) for nets in options.nets},
    }
    write_atomically(options.out, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def random_set() -> tuple[SyntheticSet, Split]:
    data, spec = random_data("cpu")
    images = initial_images(data, spec, ipc=10, parameterisation=(2, 2))
    return SyntheticSet(images, spec, (2, 2)), data.subset(torch.arange(2000))


def stage_seconds(
    synthetic: SyntheticSet, test: Split, place: dict[str, Any], nets: int, epochs: int, at_once: int
) -> float:
    recipe = resolve(
        {
            "evaluation": {"nets": nets, "epochs": epochs, "at_once": at_once},
            "runtime": {**place, "compile": True, "precision": "bf16"},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        evaluate_set(synthetic, test, recipe, RunStore(folder), Reporter(quiet=True))
        return time.perf_counter() - started


def in_turn(
    stage: Callable[[int, int, int], float], ways: dict[str, int], nets: int, epochs: int, pairs: int
) -> dict[str, Any]:
    """Seconds of whole stages and of one epoch of all networks, both ways, and how much faster side by side is."""
    whole: dict[str, list[float]] = {way: [] for way in ways}
    epoch: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(pairs):
        for way, at_once in ways.items():
            first = stage(nets, 1, at_once)
            whole[way].append(stage(nets, epochs, at_once))
            epoch[way].append((whole[way][-1] - first) / (epochs - 1))
    return {
        "seconds": {way: summary(times) for way, times in whole.items()},
        "seconds_an_epoch": {way: summary(times) for way, times in epoch.items()},
        "times_faster": median(a / b for a, b in zip(*whole.values(), strict=True)),
        "times_faster_an_epoch": median(a / b for a, b in zip(*epoch.values(), strict=True)),
    }


def summary(times: list[float]) -> dict[str, float]:
    return {"median": median(times), "min": min(times), "max": max(times)}


if __name__ == "__main__":
    main()
