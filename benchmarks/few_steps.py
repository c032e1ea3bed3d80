"""What few steps of dsdm_plus want, by trials on images held out of a training split, in one process.

    python benchmarks/few_steps.py fashion_mnist --part 5000 --set ipc=1 --set factor=3 \
        --trial "steps: 75, bank.draws: 4, descent.learning_rate: .02" --out results/tuning/few_steps/NAME.json

Trials of one pool and way of storing share a bank of real features: each gives the set that a run of its own would
give, for less. Keys of a trial are the method's, but for those of the pool, the start and what is stored
(`pool.members: 1`, `factor: 2`); `name: m3d` takes another method. Trials that the file has already are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import yaml

import potstill
from potstill.evaluation.evaluate import evaluate_once, evaluation_seeds
from potstill.files import default_cache
from potstill.recipe import Recipe, resolve
from potstill.run.distil import bare_problem, distilling_runtime
from potstill.run.environment import environment
from potstill.run.pretrain import pretrain_pool
from potstill.run.progress import Reporter
from potstill.run.search import apart
from potstill.run.study import hold_out
from potstill.spec import LabelledDataset

COMMON = {"method.name": "dsdm_plus", "runtime.threads": 1}
#: Keys of a trial that are the recipe's own: sections, and what stands outside of them.
OUTER = ("pool", "init", "factor", "parameterisation")


def main() -> None:
    options = _parsed()
    data = potstill.load_dataset(options.data, data_dir=options.data_dir)
    data = apart(data, options.part) if options.part else hold_out(data, options.holdout)
    base = {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in options.set)}
    whole = resolve(base, COMMON).on(data)
    runtime = distilling_runtime(whole, whole.build_method(), data)
    runtime.start()
    record = json.loads(options.out.read_text()) if options.out.exists() else {"trials": []}
    record |= {"data": data.spec.train_fingerprint or data.spec.fingerprint, "held_out": len(data.test)}
    record |= {"epochs": options.epochs, "nets": options.nets, "environment": environment(runtime)}
    problems: dict[Any, Any] = {}
    for keys in (yaml.safe_load(f"{{{trial}}}") for trial in options.trial):
        if any(row["keys"] == keys for row in record["trials"]):
            continue
        recipe = resolve(base, COMMON, {_key(name): value for name, value in keys.items()}).on(data)
        way = (recipe.parameterisation, recipe.factor, recipe.pool, recipe.init)
        if way not in problems:
            pool = pretrain_pool(recipe, data, Reporter(), cache=default_cache())
            problems[way] = bare_problem(recipe, data, runtime, pool)
        record["trials"].append({"keys": keys, **_trial(recipe, problems[way], data, options)})
        print(json.dumps(record["trials"][-1]), flush=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")


def _key(name: str) -> str:
    return name if name.split(".")[0] in OUTER else f"method.{name}"


def _trial(recipe: Recipe, problem: Any, data: LabelledDataset, options: argparse.Namespace) -> dict[str, Any]:
    method, began = recipe.build_method(), time.process_time()
    state = method.init(problem)
    for _ in range(method.steps):
        state, _ = method.step(problem, state)
    took = time.process_time() - began
    made = method.result(problem, state)
    runtime = recipe.runtime.resolve(passes=10**9, side=data.spec.shape[1])
    given = {"network": "convnet", "protocol": "dsdm", "runtime": runtime, "epochs": options.epochs}
    seeds = evaluation_seeds(0, "convnet", options.nets)
    scores = [evaluate_once(made, data.spec, data.test, seed=seed, **given).accuracy for seed in seeds]
    return {
        "recipe": recipe.hash(),
        "accuracy": [round(score, 4) for score in scores],
        "core_seconds": round(took, 1),  # less where an earlier trial made the features
    }


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a known name, or a file whose test split was held out of training images")
    parser.add_argument("--data-dir")
    parser.add_argument("--part", type=int, default=0, help="so many images held out, and at most 5,000 to learn from")
    parser.add_argument("--holdout", type=int, default=0, help="so many images held out, as a study holds them out")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of all recipes")
    parser.add_argument("--trial", action="append", default=[], metavar="KEYS", help="of the method, as YAML")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--nets", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
