"""Runs the cells of a study, each in a folder of its own and all by one evaluator; a comparison is such a study."""

from __future__ import annotations

import shutil
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
from .estimate import Estimate, estimate, estimate_curve, estimate_whole, kept_timings
from .progress import Reporter
from .score import evaluate_full_data, evaluate_kept
from .search import settle
from .sharing import kin, take_set
from .spread import Spread, Work
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
    failed: Mapping[str, str] | None = None,
) -> list[Outcome]:
    """Distil and score every cell; finished work is kept, a failure is an outcome, not the end.

    Cells that differ in nothing but how their set is scored share one, each with a copy in its folder.

    Failures stay in the run folders until the run is taken up again, so that a later report tells them too.

    Args:
        load: the data that a recipe names; called once for each data section.
        full_data_epochs: after the cells, train the evaluation networks on the whole training split for so long.
        curve: after that, score the sets that iterative methods kept on the way, for accuracy against cost.
        each: told of every cell as it ends, before its curve.
        engine: does pools, searches, sets and networks as tasks, before the cells are gone through and found done;
            None for cell after cell here.
        shards: of the classes of each set, as tasks of the engine, where a method's classes are independent.
        failed: cells that an engine could not finish, and why: they are told and not tried again here.
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
    failures = dict(failed or {})
    if engine:
        works = works_of(study, loaded, curve=curve)
        if full_data_epochs is not None:
            whole = Cell(FULL_DATA, FULL_DATA, _for_epochs(study.cells[0].recipe, full_data_epochs))
            works.append(Work(whole, loaded[study.cells[0].name], whole=True))
        if overwrite:
            _start_anew(study, out)
        failures |= Spread(works, out, cache or default_cache(), engine, reporter, shards)()
    outcomes, sharing = [], kin(study.cells)
    for cell in study.cells:
        reporter.say(f"--- {cell.name}")
        store, data = RunStore(out / cell.name), loaded[cell.name]
        if cell.name in failures:
            told = None, failures[cell.name]
        else:
            anew, others = overwrite and engine is None, sharing[cell.name]
            others = others[: others.index(cell.name)] if anew else others
            told = attempt(reporter, _settle_and_score, cell, others, study.holdout, data, store, reporter, cache, anew)
            if store.failure.exists() and not store.distilled.exists():
                failures |= {name: f"{cell.name}, whose set it shares: {told[1]}" for name in sharing[cell.name]}
        outcomes.append(Outcome(cell.label, cell.recipe.ipc, cell.recipe.seed, store.root, *told))
        if each:
            each(outcomes[-1])
    if full_data_epochs is not None:
        recipe, store = _for_epochs(study.cells[0].recipe, full_data_epochs), RunStore(out / FULL_DATA)
        data = loaded[study.cells[0].name]
        if FULL_DATA in failures:
            told = None, failures[FULL_DATA]
        else:
            told = attempt(reporter, score_full_data, recipe, data, store, reporter)
        outcomes.append(Outcome(FULL_DATA, None, recipe.evaluation.seed, store.root, *told))
    if curve:
        for i, cell in enumerate(study.cells):
            if outcomes[i].scores and cell.recipe.build_method().steps:
                store, data = RunStore(out / cell.name), loaded[cell.name]
                _, failure = attempt(reporter, _score_kept, cell.recipe, data, store, reporter)
                outcomes[i] = replace(outcomes[i], failure=failure)
    return outcomes


def estimates(
    study: Study,
    load: Callable[[Recipe], LabelledDataset],
    *,
    out: Path | None,
    full_data_epochs: int | None = None,
    curve: bool = False,
    **how: Any,
) -> list[Estimate]:
    """What the cells would still take here, and after them what `run_study` does besides; see `estimate` for `how`."""
    timings = kept_timings(how["reporter"], how.get("cache"))
    found = estimate(study, load, out=out, timings=timings, **how)
    more = list[Estimate]()
    if full_data_epochs is not None:
        recipe = _for_epochs(study.cells[0].recipe, full_data_epochs)
        data = load_cells(Study(study.cells[:1], study.holdout), load)[study.cells[0].name]
        more.append(estimate_whole(FULL_DATA, recipe, data, timings, out, how.get("threads")))
    if curve:
        more += [estimate_curve(cell, found) for cell in study.cells if cell.recipe.build_method().steps]
    return found + more


def _settle_and_score(
    cell: Cell,
    kin: Sequence[str],
    holdout: int,
    data: LabelledDataset,
    store: RunStore,
    reporter: Reporter,
    cache: Path | None,
    overwrite: bool,
) -> Scores:
    _ = build_network(cell.recipe.evaluation.network, data.spec, 0)  # refused here, not after the set is made
    if maker := take_set(cell, kin, store.root.parent, anew=overwrite):
        reporter.say(f"{cell.name}: scores the set of {maker}")
        overwrite = False
    recipe = settle(cell.recipe, data, store, reporter, cache=cache, overwrite=overwrite)
    return distil_and_score(replace(cell, recipe=recipe), holdout, data, store, reporter, cache, overwrite)


def works_of(study: Study, data: Mapping[str, LabelledDataset], *, curve: bool = False) -> list[Work]:
    """What an engine is to do for the cells of a study; `curve`: also for the figure of accuracy against cost."""
    return [Work(c, data[c.name], study.holdout, curve and bool(c.recipe.build_method().steps)) for c in study.cells]


def _start_anew(study: Study, out: Path) -> None:
    """Forget what earlier calls made of the cells, their searches included."""
    for cell in study.cells:
        store = RunStore(out / cell.name)
        shutil.rmtree(store.search, ignore_errors=True)
        store.clear()


def _for_epochs(recipe: Recipe, epochs: int) -> Recipe:
    return replace(recipe, evaluation=replace(recipe.evaluation, epochs=epochs))


def score_full_data(recipe: Recipe, data: LabelledDataset, store: RunStore, reporter: Reporter) -> Scores:
    """Networks trained on the whole training split; where they fail, the folder says why."""
    with store.noting_failure():
        return evaluate_full_data(data, recipe, store, reporter)


def _score_kept(recipe: Recipe, data: LabelledDataset, store: RunStore, reporter: Reporter) -> None:
    if len(store.kept_sets()) == 1:
        reporter.say(f"{store.root}: no sets were kept, so its curve has two ends only; see --keep-snapshots")
    with store.noting_failure():
        evaluate_kept(recipe, data, store, reporter)
