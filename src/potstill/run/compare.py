"""Several methods on one data set under one recipe and one evaluator, each in a run folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..errors import Interrupted, reason
from ..evaluation import Scores
from ..methods import METHODS
from ..recipe import Recipe, resolve
from ..sets.synthetic import Factor
from ..spec import LabelledDataset
from .distil import distill_run
from .progress import Reporter
from .score import evaluate_full_data, evaluate_kept, evaluate_set
from .store import FULL_DATA, RunStore

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """One method's run, or the full data's networks (no IPC): scores, or why there are none."""

    method: str
    ipc: int | None
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
    factors: Sequence[Factor] = (),
    cache: Path | None = None,
    overwrite: bool = False,
    full_data_epochs: int | None = None,
    curve: bool = False,
) -> list[Outcome]:
    """Distil and score every (IPC, method, factor, seed); finished work is kept, a failure is an outcome, not the end.

    Failures stay in the run folders until the run is taken up again, so that a later report tells them too.

    Args:
        layers: recipe layers; keys of one method go into a `methods` section.
        factors: of the methods that have one; the recipe's where none are given.
        full_data_epochs: after the methods, train the evaluation networks on the whole training split for so long.
        curve: after that, score the sets that iterative methods kept on the way, for accuracy against cost.
    Raises:
        UsageError: a recipe that cannot be resolved for one of the methods (before any work is done).
        Interrupted: by a signal; the same call goes on.
    """
    recipes = [
        resolve(*layers, {"method.name": method, "ipc": ipc, **factor, "seed": seed})
        for ipc in ipcs
        for method in methods
        for factor in _factors_of(method, factors)
        for seed in seeds
    ]
    cells = [(recipe, RunStore(out / _name(recipe))) for recipe in recipes]
    outcomes = []
    for recipe, store in cells:
        reporter.say(f"--- {store.root.name}")
        told = _attempt(reporter, _distil_and_score, recipe, data, store, reporter, cache=cache, overwrite=overwrite)
        outcomes.append(Outcome(recipe.method_name, recipe.ipc, recipe.seed, store.root, *told))
    if full_data_epochs is not None:
        recipe, store = cells[0][0], RunStore(out / FULL_DATA)
        told = _attempt(reporter, _score_full_data, recipe, data, store, reporter, epochs=full_data_epochs)
        outcomes.append(Outcome(FULL_DATA, None, recipe.evaluation.seed, store.root, *told))
    if curve:
        for i, (recipe, store) in enumerate(cells):
            if outcomes[i].scores and recipe.build_method().steps:
                _, failure = _attempt(reporter, _score_kept, recipe, data, store, reporter)
                outcomes[i] = replace(outcomes[i], failure=failure)
    return outcomes


def _factors_of(method: str, factors: Sequence[Factor]) -> list[dict[str, Any]]:
    """Recipe layers, one for each of the factors; a method of whole images has the recipe's own, whatever it is."""
    return [{"factor": factor} for factor in factors] if factors and METHODS[method].uses_factor else [{}]


def _name(recipe: Recipe) -> str:
    """The folder's name: `dm-ipc10-factor2-seed0`, `herding-ipc10-seed0`."""
    rows, columns = recipe.factor
    factor = f"-factor{rows}" + (f"x{columns}" if columns != rows else "")
    whole = not METHODS[recipe.method_name].uses_factor
    return f"{recipe.method_name}-ipc{recipe.ipc}{'' if whole else factor}-seed{recipe.seed}"


def _attempt(reporter: Reporter, work: Callable[..., T], *given: Any, **keys: Any) -> tuple[T | None, str]:
    """What `work` returns, or why it failed: whatever one method does wrong, the others are not to blame."""
    try:
        return work(*given, **keys), ""
    except Interrupted:
        raise
    except Exception as error:
        reporter.say(f"failed: {reason(error)}")
        return None, reason(error)


def _distil_and_score(
    recipe: Recipe,
    data: LabelledDataset,
    store: RunStore,
    reporter: Reporter,
    *,
    cache: Path | None,
    overwrite: bool,
) -> Scores:
    synthetic = distill_run(recipe, data, store, reporter, cache=cache, resume=True, overwrite=overwrite)
    with store.noting_failure():
        return evaluate_set(synthetic, data, recipe, store, reporter)


def _score_full_data(
    recipe: Recipe, data: LabelledDataset, store: RunStore, reporter: Reporter, *, epochs: int
) -> Scores:
    with store.noting_failure():
        return evaluate_full_data(data, recipe, store, reporter, epochs=epochs)


def _score_kept(recipe: Recipe, data: LabelledDataset, store: RunStore, reporter: Reporter) -> None:
    if len(store.kept_sets()) == 1:
        reporter.say(f"{store.root}: no sets were kept, so its curve has two ends only; see --keep-snapshots")
    with store.noting_failure():
        evaluate_kept(recipe, data, store, reporter)
