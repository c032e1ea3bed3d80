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
from ..evaluation import find_protocol
from ..recipe import Recipe
from ..spec import LabelledDataset
from .compare import Outcome, run_study
from .engine.base import Engine
from .estimate import Estimate, estimate, evaluation_seconds
from .paper import PaperCell, read_plan, rounds
from .paper_features import NETWORKS, measure
from .progress import Reporter
from .score import evaluate_full_data
from .store import RunStore
from .study import Cell, Study

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


class Ahead:
    """Says after each task how many are done and how long the others will take: as estimated, at the pace so far.

    The pace counts one average task as taken at the speed of the estimate: the first may have been half done before.
    """

    def __init__(self, estimates: Iterable[Estimate], reporter: Reporter):
        self._left = [e for e in estimates if e.stands != "finished" and not e.stands.startswith("fails")]
        self._reporter, self._count, self._spent = reporter, 0, 0.0
        self._total, self._started = len(self._left), time.perf_counter()
        seconds = sum(e.seconds for e in self._left)
        self._usual = seconds / max(1, self._total)
        if self._left:
            reporter.say(f"=== {self._total} tasks, about {span(seconds)}")

    def tick(self, name: str) -> None:
        task = next((e for e in self._left if e.cell == name), None)
        if task is None:
            return
        self._left.remove(task)
        self._count, self._spent = self._count + 1, self._spent + task.seconds
        took = time.perf_counter() - self._started
        pace = (took + self._usual) / (self._spent + self._usual) if self._usual else 1.0
        left = pace * sum(e.seconds for e in self._left)
        self._reporter.say(f"=== {self._count} of {self._total} tasks done after {span(took)}, about {span(left)} left")


def span(seconds: float) -> str:
    """A length of time: `40 s`, `12 min`, `3.4 h`, `12 days`."""
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h" if minutes < 2880 else f"{minutes / 1440:.1f} days"


def reproduce(
    cells: Sequence[PaperCell],
    load: Load,
    *,
    out: Path,
    seeds: int = 1,
    reporter: Reporter,
    cache: Path | None = None,
    engine: Engine | None = None,
    shards: int = 1,
) -> Result:
    """Distil and score the sets of the cells; finished work is kept.

    Args:
        seeds: sets of each cell, of the seeds 0, 1, ...
        engine, shards: see `run_study`.
    Raises:
        Interrupted: by a signal; the same call goes on.
    """
    data = Data(load)
    jobs, failures = _ready(cells, data, seeds)
    tasks = len(jobs) + len(failures) + len(_whole(cells))
    ahead = Ahead([] if reporter.quiet else estimates(cells, data, out=out, seeds=seeds, reporter=reporter), reporter)

    def told(outcome: Outcome) -> None:
        ahead.tick(outcome.folder.name)

    how: dict[str, Any] = {"out": out / RUNS, "reporter": reporter, "cache": cache, "engine": engine, "shards": shards}
    for group in rounds(jobs):
        study = Study(tuple(cell for _, cell in group))
        outcomes = run_study(study, data, each=told, **how)
        failures |= {o.folder.name: o.failure for o in outcomes if o.failure}
    for item in _whole(cells):
        failures |= _train_on_whole(item, data, out, reporter)
        ahead.tick(item.stem)
    for cell in _with_curve(jobs):
        outcomes = run_study(Study((cell,)), data, out=out / RUNS, reporter=reporter, cache=cache, curve=True)
        failures |= {o.folder.name: o.failure for o in outcomes if o.failure}
        ahead.tick(_curve_name(cell))
    failures |= _measured(cells, data, out, reporter, cache)
    return Result(tasks, failures)


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


def _train_on_whole(item: PaperCell, data: Data, out: Path, reporter: Reporter) -> dict[str, str]:
    assert item.recipe
    evaluation = item.recipe.evaluation
    epochs, store = find_protocol(evaluation.protocol, evaluation.epochs).epochs, RunStore(out / RUNS / item.stem)
    reporter.say(f"--- {item.stem}")
    try:
        whole = data(item.recipe)
        with store.locked(), store.noting_failure():
            evaluate_full_data(whole, item.recipe, store, reporter, epochs=epochs)
    except Interrupted:
        raise
    except Exception as error:
        reporter.say(f"failed: {reason(error)}")
        return {item.stem: reason(error)}
    return {}


def _measured(
    cells: Sequence[PaperCell], data: Data, out: Path, reporter: Reporter, cache: Path | None
) -> dict[str, str]:
    """The measurements of the figures that show features, where their sets are finished."""
    failures = {}
    for name in dict.fromkeys(cell.table for cell in cells if read_plan(cell.table).draw in NETWORKS):
        chosen = [cell for cell in cells if cell.table == name]
        try:
            measure(name, chosen, data, runs=out / RUNS, out=out, reporter=reporter, cache=cache)
        except Interrupted:
            raise
        except Exception as error:
            reporter.say(f"failed: {reason(error)}")
            failures[f"{name}: features"] = reason(error)
    return failures


def estimates(
    cells: Sequence[PaperCell],
    load: Load,
    *,
    out: Path | None,
    seeds: int = 1,
    reporter: Reporter,
    cache: Path | None = None,
) -> list[Estimate]:
    """What each task would still take here; a pool counts once. A task that cannot be run stands as `fails: ...`."""
    data, runs = Data(load), None if out is None else out / RUNS
    jobs, failures = _ready(cells, data, seeds)
    found = [Estimate(name, f"fails: {why}") for name, why in failures.items()]
    for i, group in enumerate(rounds(jobs)):
        study = Study(tuple(cell for _, cell in group))
        try:
            part = estimate(study, data, out=runs, reporter=reporter, cache=cache)
        except Interrupted:
            raise
        except PotstillError as error:  # of a single cell
            part = [Estimate(cell.name, f"fails: {reason(error)}") for cell in study.cells]
        found += [replace(e, pool_seconds=0.0, distill_seconds=0.0, disk_mb=0.0) if i else e for e in part]
    found += [_estimate_curve(cell, found) for cell in _with_curve(jobs)]
    return found + [_estimate_whole(item, data, reporter) for item in _whole(cells)]


def _with_curve(jobs: Iterable[Job]) -> list[Cell]:
    """Those whose sets on the way a figure shows."""
    return [cell for item, cell in jobs if read_plan(item.table).draw == "steps"]


def _curve_name(cell: Cell) -> str:
    return f"{cell.name}: sets on the way"


def _estimate_curve(cell: Cell, found: Iterable[Estimate]) -> Estimate:
    """Every kept set and the first one cost as much as the last; nothing is known where that one is finished."""
    last = next((e.evaluate_seconds for e in found if e.cell == cell.name), 0.0)
    sets = 1 + sum(step < cell.recipe.build_method().steps for step in cell.recipe.saving.keep)
    return Estimate(_curve_name(cell), "new" if last else "finished", evaluate_seconds=sets * last)


def _estimate_whole(item: PaperCell, data: Data, reporter: Reporter) -> Estimate:
    assert item.recipe
    try:
        found = data(item.recipe)
        reporter.say(f"timing {item.stem}")
        return Estimate(item.stem, "new", evaluate_seconds=evaluation_seconds(item.recipe, found.train, found))
    except Interrupted:
        raise
    except PotstillError as error:
        return Estimate(item.stem, f"fails: {reason(error)}")
