"""What a study would take on this machine, see `run/timing`, and how long its tasks would take so many workers.

Nothing is written. A pool counts once, for the first cell that needs it, and not at all where the cache holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import Interrupted, PotstillError, reason
from ..evaluation import evaluation_seeds, find_protocol
from ..files import default_cache
from ..machine.runtime import usable_threads
from ..recipe import Recipe
from ..spec import LabelledDataset
from .ahead import Ahead, Part
from .distil import settled
from .plan import plan
from .pretrain import missing_runs
from .progress import Reporter
from .score import missing_networks
from .shards import split_of
from .sharing import kin, takers
from .store import RunStore, score_name
from .study import Cell, Study, load_cells
from .timing import Timings


@dataclass(frozen=True)
class Estimate:
    """What one cell would still take: seconds of its three stages, and what its process and its folder would hold.

    Attributes:
        members: training runs that its pool lacks; nets: networks of each evaluation, of which there are `sets`.
        shards: tasks that its set is made by.
        threads: cores that each of its tasks keeps busy.
        method: that makes its set.
        run: the folder of its run, where that is not the cell's name.
        planned: steps that its budget holds, where they are planned for it.
        table: of the paper, the first that it is for.
    """

    cell: str
    stands: str
    pool_seconds: float = 0.0
    distill_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    memory_mb: int = 0
    disk_mb: float = 0.0
    members: int = 1
    nets: int = 1
    sets: int = 1
    shards: int = 1
    threads: int = 1
    method: str = ""
    run: str = ""
    planned: int | None = None
    table: str = ""

    @property
    def seconds(self) -> float:
        return self.pool_seconds + self.distill_seconds + self.evaluate_seconds

    @property
    def failure(self) -> str:
        """Why it cannot be run; "" where it can."""
        return self.stands.removeprefix("fails: ") if self.stands.startswith("fails: ") else ""

    @property
    def to_do(self) -> bool:
        """Whether it is something to wait for."""
        return self.stands != "finished" and not self.failure

    @property
    def tasks(self) -> int:
        """What an engine would do of it: training runs of a pool, a set or its shards, networks."""
        pools = self.members if self.pool_seconds else 0
        return pools + (self.shards if self.method else 0) + self.nets * self.sets if self.to_do else 0

    @property
    def parts(self) -> list[Part]:
        """What it consists of, for whoever follows its progress."""
        run = self.run or self.cell
        return [
            Part(run, "pools", self.pool_seconds, pieces=self.members),
            Part(run, "sets", self.distill_seconds, self.method, pieces=self.shards),
            Part(run, "networks", self.evaluate_seconds, pieces=self.nets * self.sets, passes=self.sets),
        ]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds, "tasks": self.tasks}


def ahead_of(found: Iterable[Estimate], workers: int) -> Ahead:
    """The planner of what was estimated: cell after cell by one, kind after kind by several workers."""
    left = [e for e in found if e.to_do]
    return Ahead((replace(part, group=i) for i, e in enumerate(left) for part in e.parts), workers)


def core_seconds(found: Iterable[Estimate]) -> float:
    """Seconds of one core that all would take."""
    return sum(e.seconds * e.threads for e in found if e.to_do)


def estimate(
    study: Study,
    load: Callable[[Recipe], LabelledDataset],
    *,
    out: Path | None,
    reporter: Reporter,
    cache: Path | None = None,
    timings: Timings | None = None,
    threads: int | None = None,
    shards: int = 1,
    scores_only: bool = False,
) -> list[Estimate]:
    """An estimate for each cell, in the order they would run.

    Args:
        out: where earlier calls left finished runs; None for nowhere.
        timings: what other studies were timed by already.
        threads: of each of several workers, where a recipe states none.
        shards: of the classes of each set, as tasks.
        scores_only: another study makes the sets.
    Raises:
        PotstillError: the only cell cannot be run; of several, such a one stands as `fails: ...`.
    """
    times, data = timings or kept_timings(reporter, cache), load_cells(study, load)
    cells = [replace(cell, recipe=on_threads(_settled(cell, data[cell.name], out), threads)) for cell in study.cells]
    taking = {cell.name for cell in cells} if scores_only else takers(kin(study.cells), out)

    def found_of(cell: Cell, stands: str) -> Estimate:
        try:
            if stands == "finished":
                return Estimate(cell.name, stands)
            if stands == "to be scored" or cell.name in taking:
                return scored(cell, stands, data[cell.name], times)
            return replace(timed(cell, data[cell.name], times, shards), stands=stands)
        except Interrupted:
            raise
        except PotstillError as error:  # one cell that cannot be run is not the end of the others' estimates
            if len(cells) == 1:
                raise
            return Estimate(cell.name, f"fails: {reason(error)}")

    found, known, pools = list[Estimate](), dict[Any, Estimate](), set[Any]()
    for cell in cells:
        stands = _stands(cell, RunStore(out / cell.name) if out else None)
        alike = replace(cell.recipe, seed=0), stands, cell.name in taking  # another seed takes as long
        if alike not in known:
            known[alike] = found_of(cell, stands)
        found.append(replace(known[alike], cell=cell.name))
    for i, cell in enumerate(cells):
        pool, needed = (data[cell.name].spec.fingerprint, cell.recipe.pool), cell.recipe.build_method().needs_pool
        if found[i].to_do and found[i].distill_seconds and needed and pool not in pools:
            pools.add(pool)
            runs = missing_runs(cell.recipe, data[cell.name], (cache or default_cache()) / "pool")
            seconds = times.pool_of(cell.recipe, data[cell.name], runs)
            found[i] = replace(found[i], pool_seconds=seconds, members=max(1, runs))
    return found


def kept_timings(reporter: Reporter, cache: Path | None, *, alone: bool = True) -> Timings:
    """Timings that are kept for later calls; `alone` as there."""
    return Timings(reporter, (cache or default_cache()) / "timings", alone=alone)


def _settled(cell: Cell, data: LabelledDataset, out: Path | None) -> Recipe:
    """The cell's recipe with what an earlier call settled of it."""
    store = RunStore(out / cell.name) if out else None
    return settled(cell.recipe.on(data), store) if store and store.chosen.exists() else cell.recipe


def on_threads(recipe: Recipe, threads: int | None) -> Recipe:
    """The recipe as a worker that has so many threads does it."""
    if threads is None or recipe.runtime.threads != "auto":
        return recipe
    return replace(recipe, runtime=replace(recipe.runtime, threads=threads))


def _stands(cell: Cell, store: RunStore | None) -> str:
    """What earlier calls left to do; a run that was begun is counted as if it were new."""
    if store is None or not store.config.exists():
        return "new"
    if not store.distilled.exists():
        return "to be finished"
    config = cell.recipe.evaluation
    epochs = find_protocol(config.protocol, config.epochs).epochs
    seeds = evaluation_seeds(config.seed, config.network, config.nets)
    names = [score_name(config.network, config.protocol, epochs, seed) for seed in seeds]
    names = names if epochs else [name.replace("-0-", "-*-") for name in names]  # as many as the set brings
    places = [store.scores, *([store.in_few_bits(config.stored_bits).scores] if config.stored_bits else [])]
    scored = all(any(place.glob(name)) for name in names for place in places)
    return "finished" if scored else "to be scored"


def timed(cell: Cell, data: LabelledDataset, timings: Timings | None = None, shards: int = 1) -> Estimate:
    """A cell's distillation and scores: with planned steps, and with a search before what it leaves to that."""
    timings = timings or Timings(Reporter(quiet=True))
    recipe, method = cell.recipe.by_default(data), cell.recipe.build_method()
    searched = cell.recipe.unsearched and method.steps and method.uses_factor
    search_seconds = recipe.budget.search_seconds if searched else 0.0
    planned, left = None, recipe.budget.after_search(search_seconds).minutes
    seconds, held = timings.set_of(recipe, data)
    seconds = min(seconds, 60 * left) if searched and left else seconds
    if recipe.unplanned and left:
        planned, seconds = plan(recipe, data, 60 * left)[0].method.steps, 60 * left
    scoring = scored(cell, "new", data, timings)
    return replace(
        scoring,
        distill_seconds=seconds + search_seconds,
        planned=planned,
        memory_mb=max(scoring.memory_mb, held.memory // 2**20),
        disk_mb=(held.state + (2 + len(recipe.saving.keep)) * held.stored) / 2**20,
        shards=max(1, len(split_of(recipe, data, shards))),
        method=recipe.method_name,
    )


def scored(cell: Cell, stands: str, data: LabelledDataset, timings: Timings) -> Estimate:
    """The scores alone of a cell's set."""
    return _networks(cell.name, stands, cell.recipe.by_default(data), data, timings)


def _networks(
    name: str, stands: str, recipe: Recipe, data: LabelledDataset, timings: Timings, *, whole: bool = False
) -> Estimate:
    seconds, memory = timings.scores_of(recipe, data, whole=whole)
    return Estimate(
        name,
        stands,
        evaluate_seconds=seconds,
        memory_mb=memory // 2**20,
        nets=recipe.evaluation.nets,
        sets=2 if recipe.evaluation.stored_bits else 1,
        threads=threads_of(recipe),
    )


def threads_of(recipe: Recipe) -> int:
    """Cores that a task of the recipe keeps busy here."""
    threads = recipe.runtime.threads
    return threads if isinstance(threads, int) else usable_threads()


def estimate_whole(
    name: str, recipe: Recipe, data: LabelledDataset, timings: Timings, out: Path | None, threads: int | None = None
) -> Estimate:
    """Networks on the whole training split, whose scores lie in `out/name`.

    Raises:
        PotstillError: they cannot be trained.
    """
    recipe = on_threads(recipe, threads)
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, stored_bits=None))  # that is of sets
    if out and not missing_networks(recipe, data, None, RunStore(out / name).scores):
        return Estimate(name, "finished")
    return _networks(name, "new", recipe, data, timings, whole=True)


def on_the_way(cell: str) -> str:
    """The name of what the sets on a cell's way take."""
    return f"{cell}: sets on the way"


def estimate_curve(cell: Cell, found: Sequence[Estimate]) -> Estimate:
    """Every kept set and the first one cost as much as the last; nothing is known where that one is finished."""
    last = next((e for e in found if e.cell == cell.name), Estimate(cell.name, "finished"))
    sets = 1 + sum(step < cell.recipe.build_method().steps for step in cell.recipe.saving.keep)
    return Estimate(
        on_the_way(cell.name),
        "new" if last.evaluate_seconds else "finished",
        evaluate_seconds=sets * last.evaluate_seconds / last.sets,
        nets=last.nets,
        sets=sets,
        threads=last.threads,
        run=cell.name,
        table=last.table,
    )
