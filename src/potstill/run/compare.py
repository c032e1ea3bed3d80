"""Several methods on one data set under one recipe and one evaluator, each in a run folder of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import resolve
from ..errors import Interrupted, PotstillError
from ..evaluation import Scores
from ..spec import LabelledDataset
from .progress import Reporter
from .stages import distill_run, evaluate_set
from .store import RunStore


@dataclass(frozen=True)
class Outcome:
    """One method's run: its scores, or why there are none."""

    method: str
    ipc: int
    seed: int
    folder: Path
    scores: Scores | None
    failure: str = ""


def compare(
    data: LabelledDataset,
    layers: Sequence[Mapping[str, Any]],
    *,
    methods: Sequence[str],
    ipcs: Sequence[int],
    seeds: Sequence[int],
    out: Path,
    reporter: Reporter,
    cache: Path | None = None,
    overwrite: bool = False,
) -> list[Outcome]:
    """Distil and score every (IPC, method, seed); finished work is kept, a failure is an outcome, not the end.

    Args:
        layers: recipe layers; keys of one method go into a `methods` section.
    Raises:
        UsageError: a recipe that cannot be resolved for one of the methods (before any work is done).
        Interrupted: by a signal; the same call goes on.
    """
    cells = [
        (
            resolve(*layers, {"method.name": method, "ipc": ipc, "seed": seed}),
            RunStore(out / f"{method}-ipc{ipc}-seed{seed}"),
        )
        for ipc in ipcs
        for method in methods
        for seed in seeds
    ]
    outcomes = []
    for recipe, store in cells:
        reporter.say(f"--- {recipe.method_name}, ipc {recipe.ipc}, seed {recipe.seed}")
        scores, failure = None, ""
        try:
            synthetic = distill_run(recipe, data, store, reporter, cache=cache, resume=True, overwrite=overwrite)
            scores = evaluate_set(synthetic, data.test, recipe, store, reporter)
        except Interrupted:
            raise
        except PotstillError as error:
            failure = str(error)
            reporter.say(f"{recipe.method_name}: {failure}")
        outcomes.append(Outcome(recipe.method_name, recipe.ipc, recipe.seed, store.root, scores, failure))
    return outcomes
