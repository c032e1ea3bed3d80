"""Choose recipe keys on a hold-out of the TRAINING split; every trial is logged, the test split is never read.

    python benchmarks/tune.py --dataset cifar10 --trials benchmarks/trials/cifar10_ipc10.yaml \
        --out results/tuning/cifar10_ipc10.jsonl

A trial is a name and a recipe layer. 5,000 images are held out before anything else: neither pool nor distillation
sees them. Trials that are in the log already are not run again.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import yaml

from potstill.data import holdout_split, load_dataset
from potstill.files import write_atomically
from potstill.recipe import resolve
from potstill.run.distil import distill_run
from potstill.run.environment import commit, device_name
from potstill.run.progress import Reporter
from potstill.run.score import evaluate_set
from potstill.run.store import RunStore
from potstill.spec import LabelledDataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--trials", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSONL log, appended to")
    parser.add_argument("--work", type=Path, default=Path("runs/tuning"), help="run folders of the trials")
    parser.add_argument("--holdout", type=int, default=5000)
    options = parser.parse_args()
    plan = yaml.safe_load(options.trials.read_text())
    data = hold_out(load_dataset(options.dataset), options.holdout)
    # All of them first: a mistake in the last one is not to be found after hours.
    recipes = {
        name: resolve(plan["base"], {"data.name": options.dataset}, layer or {})
        for name, layer in plan["trials"].items()
    }
    for name, recipe in recipes.items():
        key = f"{recipe.hash()}-{recipe.evaluation.epochs}-{recipe.evaluation.nets}"
        if key in {row["key"] for row in read_log(options.out)}:
            continue
        store, reporter = RunStore(options.work / f"{options.dataset}-{name}"), Reporter()
        synthetic = distill_run(recipe, data, store, reporter, overwrite=not store.config.exists(), resume=True)
        scores = evaluate_set(synthetic, data.test, recipe, store, reporter)
        lines = store.metrics.read_text().splitlines()
        row = {
            "key": key,
            "trial": name,
            "accuracy_on_holdout": scores.to_json(),
            "holdout": options.holdout,
            "last_step": json.loads(lines[-1]) if lines else {},
            "times": store.read_json("times.json"),
            "recipe": recipe.to_dict(),
            "commit": commit(),
            "device": device_name(recipe.runtime.resolve(passes=0, side=32)),
        }
        log = options.out.read_text() if options.out.exists() else ""
        write_atomically(options.out, log + json.dumps(row, sort_keys=True) + "\n")
        print(f"{name:28s}{scores}", flush=True)


def hold_out(data: LabelledDataset, count: int) -> LabelledDataset:
    """The data set with `count` training images in the place of its test split, which is dropped."""
    rest, held = holdout_split(data.train, count, 0)
    spec = replace(data.spec, fingerprint=f"{data.spec.fingerprint}-holdout{count}")
    return LabelledDataset(spec, rest, held)


def read_log(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
