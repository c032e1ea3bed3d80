"""Several methods on one data set under one recipe and one evaluator, each in a run folder of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import resolve
from ..errors import Interrupted, reason
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

    Failures stay in the run folders until the run is taken up again, so that a later report tells them too.

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
            with store.noting_failure():
                scores = evaluate_set(synthetic, data.test, recipe, store, reporter)
        except Interrupted:
            raise
        except Exception as error:  # whatever one method does wrong, the others are not to blame
            failure = reason(error)
            reporter.say(f"{recipe.method_name}: failed: {failure}")
        outcomes.append(Outcome(recipe.method_name, recipe.ipc, recipe.seed, store.root, scores, failure))
    return outcomes
