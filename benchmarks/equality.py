"""Full runs of the plain loop and of the fast path: same data, pool, start and schedule; are the sets worth the same?

    python benchmarks/equality.py --out results/speed/equality.json

Digits (or --data fashion_mnist) at IPC 2, factor 2: 200 steps on 64 real images per class against three trained
networks. Plain is `plain.py` in eager fp32; ours is compiled and in bf16 where the machine has it, with fresh real
batches and with a bank. The draws differ by nature, so accuracies are compared over seeds, all under one evaluator, at
the last epoch; the start is scored too, to show what the steps are worth.
"""

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

import plain
import torch

import potstill
from potstill.evaluation import evaluate
from potstill.files import default_cache, write_atomically
from potstill.learning.optim import Descent
from potstill.learning.pool import Pool, pretrain
from potstill.machine.runtime import Runtime
from potstill.methods import Problem, run_method
from potstill.methods.dsdm import DSDM, DSDMConfig
from potstill.methods.history import HistoryConfig
from potstill.networks.convnet import default_depth
from potstill.run.environment import commit, cpu_name
from potstill.sets.synthetic import SyntheticSet
from potstill.spec import DatasetSpec

#: Of the digits' recipe. No momentum: plain takes a step per class, so it would act ten times in an iteration.
RATE = 0.02
#: What `plain.PlainDSDM` does, in the keys of DSDM.
AS_PLAIN = {
    "descent": Descent(RATE),
    "scale_rate": False,
    "clamp": "before",
    "history": HistoryConfig(scope="shared", features="augmented"),
}
FACTOR, EPOCHS = (2, 2), 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["digits", "fashion_mnist"], default="digits")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--real-batch", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nets", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data = potstill.load_dataset(options.data, data_dir=options.data_dir)
    runtime = Runtime.resolve(threads=options.threads, passes=10**9, side=data.spec.shape[1])
    runtime.start()
    pool = pretrain(data.train, data.spec, cache=default_cache() / "pool", runtime=runtime)

    def problem(seed: int) -> Problem:
        return Problem(
            spec=data.spec, train=data.train, ipc=2, parameterisation=FACTOR, seed=seed, runtime=runtime, pool=pool
        )

    def ours(statistics: str, seed: int) -> SyntheticSet:
        keys = {**AS_PLAIN, "steps": options.steps, "real_batch": options.real_batch, "real_statistics": statistics}
        return run_method(DSDM(DSDMConfig(**keys)), problem(seed))

    sides = {
        "plain": lambda seed: plain_run(problem(seed), options.steps, options.real_batch),
        "fresh": lambda seed: ours("fresh", seed),
        "bank": lambda seed: ours("bank", seed),
        "start": lambda seed: problem(seed).synthetic_set(problem(seed).initial_images()),
    }
    found = {name: [] for name in sides}
    for seed in range(options.seeds):
        for name, make in sides.items():
            started = time.perf_counter()
            made = make(seed)
            seconds = time.perf_counter() - started
            scores = evaluate(made, data.test, nets=options.nets, epochs=EPOCHS, runtime=runtime).scores
            accuracies = [score.accuracy for score in scores]
            found[name].append({"seconds": round(seconds, 1), "accuracies": accuracies})
            print(name, seed, found[name][-1], flush=True)
    record = {
        "schema_version": 1,
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "commit": commit(),
        "runtime": runtime.describe(),
        "data": data.spec.name,
        "steps": options.steps,
        "real_batch": options.real_batch,
        "evaluation_epochs": EPOCHS,
        "sets": found,
        "summary": {name: summary(sets) for name, sets in found.items()},
    }
    write_atomically(options.out, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["summary"], indent=1))


def plain_run(problem: Problem, steps: int, real_batch: int) -> SyntheticSet:
    """The plain loop from the same start, against the same networks."""
    torch.manual_seed(problem.seed)
    spec, pool = problem.spec, problem.require_pool("plain")
    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
    with tempfile.TemporaryDirectory() as folder:
        paths = save_for_plain(pool, spec, Path(folder))
        loop = plain.PlainDSDM(
            problem.train.images,
            problem.train.labels,
            problem.initial_images(),
            paths,
            mean,
            std,
            build=partial(plain_network, spec),
            real_batch=real_batch,
            rate=RATE,
            momentum=0.0,
        )
        for t in range(steps):
            loop.step(t)
    return problem.synthetic_set(loop.images.detach().clamp(0, 1))


def save_for_plain(pool: Pool, spec: DatasetSpec, folder: Path) -> list[Path]:
    """The pool's networks as checkpoints of `plain.PlainConvNet`."""
    paths = [folder / f"{m}.pt" for m in range(len(pool))]
    for path, weights in zip(paths, pool.members, strict=True):
        network = plain_network(spec)
        network(torch.zeros(1, *spec.shape))  # its classifier takes its width from the first call
        network.load_state_dict({plain_name(name): value for name, value in weights.items()})
        torch.save(network.state_dict(), path)
    return paths


def plain_network(spec: DatasetSpec) -> plain.PlainConvNet:
    """For these images, as the condensation codes have it: the first padding makes gray 28x28 images 32x32."""
    channels, side, _ = spec.shape
    return plain.PlainConvNet(channels, depth=default_depth(side), padding=3 if side == 28 else 1)


def plain_name(name: str) -> str:
    """`blocks.1.norm_weight` is `features.5.weight` there: four layers a block, convolution first."""
    if not name.startswith("blocks"):
        return name
    _, block, rest = name.split(".", 2)
    layer, kind = (1, rest.removeprefix("norm_")) if rest.startswith("norm_") else (0, rest.removeprefix("conv."))
    return f"features.{4 * int(block) + layer}.{kind}"


def summary(sets: list[dict]) -> dict:
    """Mean and deviations as in every table, and the mean seconds of a run."""
    seconds = round(fmean(one["seconds"] for one in sets), 1)
    accuracies = [one["accuracies"] for one in sets]
    every = [accuracy for of_set in accuracies for accuracy in of_set]
    return {
        "mean": fmean(every),
        "std": stdev(every) if len(every) > 1 else None,
        "std_sets": stdev(map(fmean, accuracies)) if len(accuracies) > 1 else None,
        "nets_per_set": [len(of_set) for of_set in accuracies],
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
