"""Runs the cells of the paper's tables: every set once, scored under each table's terms. A failure ends itself alone.

Runs lie in `OUT/runs`, each in a folder of its own, so that the same call goes on wherever it was stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import Interrupted, PotstillError, reason
from ..files import default_cache
from ..recipe import Recipe
from ..spec import LabelledDataset
from .ahead import span
from .cells import attempt
from .compare import Outcome, run_study, score_full_data, works_of
from .engine.base import Engine, places
from .estimate import Estimate, ahead_of, estimate, estimate_curve, estimate_whole, kept_timings, on_the_way
from .paper import PaperCell, read_plan, rounds
from .paper_features import NETWORKS, measure
from .progress import Reporter
from .spread import Spread, Work
from .store import RunStore
from .study import Cell, Study, claim, load_cells

#: The folder of the runs below that of a reproduction.
RUNS = "runs"

Load = Callable[[Recipe], LabelledDataset]
Job = tuple[PaperCell, Cell]


@dataclass(frozen=True)
class Result:
    """How many tasks there were, and why some failed, by the names of runs (of cells, where there can be none)."""

    tasks: int
    failures: dict[str, str]


class Data:
    """Loads each data section once, and says each time why one cannot be."""

    def __init__(self, load: Load):
        self._load = load
        self._found: dict[Any, LabelledDataset | PotstillError] = {}

    def __call__(self, recipe: Recipe) -> LabelledDataset:
        if recipe.data not in self._found:
            try:
                self._found[recipe.data] = self._load(recipe)
            except Interrupted:
                raise
            except PotstillError as error:
                self._found[recipe.data] = error
        found = self._found[recipe.data]
        if isinstance(found, PotstillError):
            raise found
        return found


def reproduce(
    cells: Sequence[PaperCell],
    load: Load,
    *,
    out: Path,
    seeds: int = 1,
    reporter: Reporter,
    cache: Path | None = None,
    curve: bool = False,
    engine: Engine | None = None,
    shards: int = 1,
) -> Result:
    """Distil and score the sets of the cells; finished work is kept.

    Args:
        seeds: sets of each cell, of the seeds 0, 1, ...
        curve: score the sets that any cell kept on the way, not only those of a figure.
        engine, shards: see `run_study`.
    Raises:
        Interrupted: by a signal; the same call goes on.
    """
    data = Data(load)
    jobs, failures = _ready(cells, data, seeds)
    tasks, cache = len(jobs) + len(failures) + len(_whole(cells)), cache or default_cache()
    curves = _with_curve(jobs, curve)
    progress = Progress(reporter, 1)
    if not reporter.quiet:
        workers, threads = places(engine, (cell.recipe for cell in cells if cell.recipe))
        how = {"seeds": seeds, "curve": curve, "reporter": reporter, "cache": cache, "alone": False}
        progress = Progress(reporter, workers, estimates(cells, data, out=out, threads=threads, shards=shards, **how))
    if engine:
        failures |= _spread(jobs, curves, _whole(cells), data, out / RUNS, cache, engine, reporter, shards)

    def told(outcome: Outcome) -> None:
        progress.tick(outcome.folder.name)

    how: dict[str, Any] = {"out": out / RUNS, "reporter": reporter, "cache": cache, "failed": failures}
    for group in rounds(jobs):
        study = Study(tuple(cell for _, cell in group))
        outcomes = run_study(study, data, each=told, **how)
        failures |= {o.folder.name: o.failure for o in outcomes if o.failure}
    for item in _whole(cells):
        if item.stem not in failures:
            reporter.say(f"--- {item.stem}")
            _, failure = attempt(reporter, _train_on_whole, item, data, out, reporter)
            failures |= _failures(item.stem, failure)
        progress.tick(item.stem)
    for cell in curves:
        outcomes = run_study(Study((cell,)), data, curve=True, **how)
        failures |= {o.folder.name: o.failure for o in outcomes if o.failure}
        progress.tick(on_the_way(cell.name))
    failures |= _measured(cells, data, out, reporter, cache)
    return Result(tasks, failures)


class Progress:
    """Says after each cell how many are done and how long the others will take; what is finished is none."""

    def __init__(self, reporter: Reporter, workers: int, found: Sequence[Estimate] = ()):
        self._reporter = reporter
        left = [e for e in found if e.to_do]
        self._left, self._total, self._began = list(enumerate(e.cell for e in left)), len(left), time.perf_counter()
        self._ahead = reporter.ahead = ahead_of(found, workers)
        if left:
            reporter.say(f"=== {self._total} cells, about {span(self._ahead.left())}")

    def tick(self, name: str) -> None:
        entry = next((entry for entry in self._left if entry[1] == name), None)
        if entry:
            self._left.remove(entry)
            self._ahead.tick(entry[0])
            took, left = span(time.perf_counter() - self._began), span(self._ahead.left())
            done = self._total - len(self._left)
            self._reporter.say(f"=== {done} of {self._total} cells done after {took}, about {left} left")


def _spread(
    jobs: Sequence[Job],
    curves: Sequence[Cell],
    whole: Iterable[PaperCell],
    data: Data,
    runs: Path,
    cache: Path,
    engine: Engine,
    reporter: Reporter,
    shards: int,
) -> dict[str, str]:
    """Do the tasks of all studies together, with those on the way and on whole data; why some cannot be finished."""
    works, on_the_way = list[Work](), {cell.name for cell in curves}
    for group in rounds(jobs):
        study = Study(tuple(cell for _, cell in group))
        loaded = load_cells(study, data)
        study = study.on(loaded)
        claim(study, runs)
        works += [replace(work, curve=work.cell.name in on_the_way) for work in works_of(study, loaded)]
        on_the_way -= {cell.name for cell in study.cells}
    failures = {}
    for item in whole:
        assert item.recipe
        try:
            works.append(Work(Cell(item.stem, item.label, item.recipe), data(item.recipe), whole=True))
        except PotstillError as error:
            failures[item.stem] = reason(error)
    return failures | Spread(works, runs, cache, engine, reporter, shards)()


def _ready(cells: Iterable[PaperCell], data: Data, seeds: int) -> tuple[list[Job], dict[str, str]]:
    """What can be run, and why the rest cannot."""
    jobs: list[Job] = []
    failures: dict[str, str] = {}
    for item in cells:
        if item.recipe is None:
            failures[item.name] = item.missing
        elif not item.draft.whole:
            try:
                data(item.recipe)
                jobs += [(item, item.cell(seed)) for seed in range(seeds)]
            except Interrupted:
                raise
            except PotstillError as error:
                failures[item.name] = reason(error)
    return jobs, failures


def _whole(cells: Iterable[PaperCell]) -> list[PaperCell]:
    return [item for item in cells if item.draft.whole and item.recipe]


def _train_on_whole(item: PaperCell, data: Data, out: Path, reporter: Reporter) -> None:
    assert item.recipe
    store, whole = RunStore(out / RUNS / item.stem), data(item.recipe)
    with store.locked():
        score_full_data(item.recipe, whole, store, reporter)


def _failures(name: str, failure: str) -> dict[str, str]:
    return {name: failure} if failure else {}


def _measured(
    cells: Sequence[PaperCell], data: Data, out: Path, reporter: Reporter, cache: Path | None
) -> dict[str, str]:
    """The measurements of the figures that show features, where their sets are finished; why some failed."""
    how: dict[str, Any] = {"runs": out / RUNS, "out": out, "reporter": reporter, "cache": cache}
    failures = {}
    for name in dict.fromkeys(cell.table for cell in cells if read_plan(cell.table).draw in NETWORKS):
        chosen = [cell for cell in cells if cell.table == name]
        _, failure = attempt(reporter, measure, name, chosen, data, **how)
        failures |= _failures(f"{name}: features", failure)
    return failures


def estimates(
    cells: Sequence[PaperCell],
    load: Load,
    *,
    out: Path | None,
    seeds: int = 1,
    reporter: Reporter,
    cache: Path | None = None,
    threads: int | None = None,
    curve: bool = False,
    shards: int = 1,
    alone: bool = True,
) -> list[Estimate]:
    """What each cell would still take here; a pool counts once. One that cannot be run stands as `fails: ...`.

    Args:
        threads: of each of several workers; None for what the recipes say.
        curve, shards: see `reproduce`.
        alone: on a machine that does nothing else.
    """
    timings = kept_timings(reporter, cache, alone=alone)
    data, runs = Data(load), None if out is None else out / RUNS
    jobs, failures = _ready(cells, data, seeds)
    found = [Estimate(name, f"fails: {why}", table=name.partition(":")[0]) for name, why in failures.items()]
    how: dict[str, Any] = {"reporter": reporter, "cache": cache, "timings": timings, "threads": threads}
    for i, group in enumerate(rounds(jobs)):
        study = Study(tuple(cell for _, cell in group))
        try:
            of_group = estimate(study, data, out=runs, shards=shards, scores_only=i > 0, **how)
        except Interrupted:
            raise
        except PotstillError as error:  # of a single cell
            of_group = [Estimate(cell.name, f"fails: {reason(error)}") for cell in study.cells]
        found += [replace(e, table=item.table) for e, (item, _) in zip(of_group, group, strict=True)]
    for item in _whole(cells):
        assert item.recipe
        try:
            whole = estimate_whole(item.stem, item.recipe, data(item.recipe), timings, runs, threads)
        except Interrupted:
            raise
        except PotstillError as error:
            whole = Estimate(item.stem, f"fails: {reason(error)}")
        found.append(replace(whole, table=item.table))
    reporter.say(timings.told())
    shown = {cell.name: item.table for item, cell in jobs if read_plan(item.table).draw == "steps"}
    curves = [(cell.name, estimate_curve(cell, found)) for cell in _with_curve(jobs, curve)]
    return found + [replace(e, table=shown.get(name, e.table)) for name, e in curves]


def _with_curve(jobs: Iterable[Job], all_of_them: bool) -> list[Cell]:
    """Those whose sets on the way a figure shows, or all that have some, each once."""
    shown = [
        cell
        for item, cell in jobs
        if read_plan(item.table).draw == "steps" or (all_of_them and cell.recipe.build_method().steps)
    ]
    return list({cell.name: cell for cell in shown}.values())
