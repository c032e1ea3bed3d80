"""Runs the cells of a study, each in a folder of its own and all by one evaluator; a comparison is such a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..evaluation import Scores
from ..files import default_cache
from ..networks import build_network
from ..recipe import Recipe
from ..sets.parameterisations import Factor
from ..spec import LabelledDataset
from .cells import attempt, distil_and_score
from .distil import check_kept_steps
from .engine.base import Engine
from .progress import Reporter
from .score import evaluate_full_data, evaluate_kept
from .search import settle
from .spread import Spread
from .store import FULL_DATA, RunStore
from .study import Cell, Study, claim, load_cells, study_of


@dataclass(frozen=True)
class Outcome:
    """One cell's run, or the full data's networks (no IPC): scores, or why there are none."""

    cell: str
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
    factors: Sequence[Factor] = (),
    **how: Any,
) -> list[Outcome]:
    """Several methods on one data set, as a study of every (IPC, method, factor, seed); see `run_study` for `how`.

    Args:
        layers: recipe layers; keys of one method go into a `methods` section.
        factors: of the methods that have one; the recipe's where none are given.
    """
    study = study_of(layers, methods=methods, ipcs=ipcs, seeds=seeds, factors=factors)
    return run_study(study, lambda _: data, **how)


def run_study(
    study: Study,
    load: Callable[[Recipe], LabelledDataset],
    *,
    out: Path,
    reporter: Reporter,
    cache: Path | None = None,
    overwrite: bool = False,
    full_data_epochs: int | None = None,
    curve: bool = False,
    each: Callable[[Outcome], None] | None = None,
    engine: Engine | None = None,
    shards: int = 1,
) -> list[Outcome]:
    """Distil and score every cell; finished work is kept, a failure is an outcome, not the end.

    Failures stay in the run folders until the run is taken up again, so that a later report tells them too.

    Args:
        load: the data that a recipe names; called once for each data section.
        full_data_epochs: after the cells, train the evaluation networks on the whole training split for so long.
        curve: after that, score the sets that iterative methods kept on the way, for accuracy against cost.
        each: told of every cell as it ends, before its curve.
        engine: does pools, sets and networks apart, before the cells are gone through; None for cell after cell here.
            What is searched for, curves, sets in few bits and full data are always done here.
        shards: of the classes of each set, as tasks of the engine, where a method's classes are independent.
    Raises:
        UsageError: a folder that holds a run of another recipe (before any work is done), shards without an engine.
        Interrupted: by a signal; the same call goes on.
    """
    if shards > 1 and engine is None:
        raise UsageError(f"shards={shards} without an engine to do them: name one, --engine serial will do")
    check_kept_steps(*(cell.recipe for cell in study.cells))
    loaded = load_cells(study, load)
    study = study.on(loaded)
    claim(study, out, overwrite=overwrite)
    failures: dict[str, str] = {}
    if engine:
        for cell in study.cells:
            if overwrite and not cell.recipe.open:
                RunStore(out / cell.name).clear()
        failures = Spread(study, loaded, out, cache or default_cache(), engine, reporter, shards)()
    outcomes = []
    for cell in study.cells:
        reporter.say(f"--- {cell.name}")
        store, data = RunStore(out / cell.name), loaded[cell.name]
        if cell.name in failures:
            told = None, failures[cell.name]
        else:
            anew = overwrite and (engine is None or cell.recipe.open)
            told = attempt(reporter, _settle_and_score, cell, study.holdout, data, store, reporter, cache, anew)
        outcomes.append(Outcome(cell.label, cell.recipe.ipc, cell.recipe.seed, store.root, *told))
        if each:
            each(outcomes[-1])
    if full_data_epochs is not None:
        recipe, store = study.cells[0].recipe, RunStore(out / FULL_DATA)
        data = loaded[study.cells[0].name]
        told = attempt(reporter, _score_full_data, recipe, data, store, reporter, epochs=full_data_epochs)
        outcomes.append(Outcome(FULL_DATA, None, recipe.evaluation.seed, store.root, *told))
    if curve:
        for i, cell in enumerate(study.cells):
            if outcomes[i].scores and cell.recipe.build_method().steps:
                store, data = RunStore(out / cell.name), loaded[cell.name]
                _, failure = attempt(reporter, _score_kept, cell.recipe, data, store, reporter)
                outcomes[i] = replace(outcomes[i], failure=failure)
    return outcomes


def _settle_and_score(
    cell: Cell,
    holdout: int,
    data: LabelledDataset,
    store: RunStore,
    reporter: Reporter,
    cache: Path | None,
    overwrite: bool,
) -> Scores:
    _ = build_network(cell.recipe.evaluation.network, data.spec, 0)  # refused here, not after the set is made
    recipe = settle(cell.recipe, data, store, reporter, cache=cache, overwrite=overwrite)
    return distil_and_score(replace(cell, recipe=recipe), holdout, data, store, reporter, cache, overwrite)


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
