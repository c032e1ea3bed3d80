"""The tasks of studies, handed to an engine in rounds: pools, searches of what is left open, sets, networks.

What is done already is no task, so a study that was stopped goes on. Results are written here, into the same folders
and files as by a run without an engine: only this process needs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PotstillError, RunError, UsageError, counted, reason
from ..files import write_atomically
from ..learning.pool import MemberKey, is_cached
from ..recipe import Recipe
from ..sets.synthetic import SyntheticSet
from ..spec import LabelledDataset
from .ahead import Ahead
from .cells import write_cell
from .distil import is_finished, settled
from .engine.base import Engine
from .pretrain import run_keys
from .progress import Reporter
from .score import missing_networks, sets_to_score
from .shards import join, shard_folder, split_of
from .sharing import kin, take_set
from .signals import interruptible
from .store import RunStore
from .study import Cell
from .task import OF, Files, Task, data_name, pack_data, read_files

#: Tasks at work that a line of progress names.
MOST_NAMED = 4


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be done for one cell.

    Attributes:
        holdout: images that stand in for the test split, for the cell's record.
        curve: score the sets that were kept on the way as well.
        whole: train its networks on the whole training split, and make no set.
    """

    cell: Cell
    data: LabelledDataset
    holdout: int = 0
    curve: bool = False
    whole: bool = False


@dataclass
class Spread:
    """Work in the hands of an engine.

    Attributes:
        works: cells that differ in how their set is scored alone share it, those of one name their folder as well.
        shards: of the classes of each set, where a method's classes are independent; they are joined here.
        failures: cells that cannot be finished, and why.
    """

    works: Sequence[Work]
    out: Path
    cache: Path
    engine: Engine
    reporter: Reporter
    shards: int = 1
    failures: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._ahead = self.reporter.ahead or Ahead()
        self._kin = kin(work.cell for work in self.works if not work.whole)

    def __call__(self) -> dict[str, str]:
        """Do all that can be done apart; what a cell still lacks afterwards is said in its failure."""
        with interruptible("the study"):
            self._refuse_budgets_of_shards()
            self._take_sets()
            self._do("pools", self._members())
            self._do("searches", self._searches())
            self._do("sets", self._distillations())
            self._join()
            self._take_sets()
            self._do("networks", self._networks())
        return self.failures

    def _do(self, what: str, tasks: Iterable[Task]) -> None:
        named = {task.key: task for task in tasks}
        workers = self.engine.at_once(max((task.threads for task in named.values()), default=1))
        self._ahead.begin(what, {key: task.cell for key, task in named.items()}, workers)
        if not named:
            return

        def hear(task: Task, share: float | None) -> None:
            self._ahead.hear(task.key, share)

        self.reporter.say(f"{what}: {counted(len(named), 'task')} by {counted(workers, 'worker')}")
        with self.reporter.stage(what, len(named)) as stage, self.reporter.beating(stage, lambda: self._note(named)):
            for task, told, seconds in self.engine.run([*named.values()], _Inputs(self), hear):
                failed = isinstance(told, PotstillError)
                self._ahead.end(task.key, seconds, failed=failed)
                if failed:
                    self.reporter.say(f"{task.cell}: {task.kind} failed: {told}")
                    for name in self._kin[task.cell] if task.kind in ("search", "distil") else [task.cell]:
                        self._fail(name, told, f"{task.kind}: ")
                else:
                    self._keep(task, told)
                stage.advance(f"{task.name} done{self._ahead.words()}")

    def _note(self, tasks: Mapping[str, Task]) -> str:
        """The time left, which tasks are at work, and how far they are."""
        at_work = self._ahead.at_work
        shown = [f"{tasks[key].name} {share:.0%}" for key, share in at_work[:MOST_NAMED]]
        more = [f"{len(at_work) - MOST_NAMED} more"] if len(at_work) > MOST_NAMED else []
        words = f"at work: {', '.join([*shown, *more])}" if shown else "workers are starting"
        return f"{self._ahead.words()}; {words}".removeprefix("; ")

    def _keep(self, task: Task, files: Files) -> None:
        store = RunStore(self.out / task.cell)
        run = self._shard(store, task.classes)
        place = self.cache / "pool" if task.kind == "member" else run.root / task.scores
        # What says that a set or a search is finished comes last.
        last = run.chosen if task.kind == "search" else run.distilled
        for name in sorted(files, key=lambda name: place / name == last):
            write_atomically(place / name, files[name])

    def _fail(self, name: str, error: PotstillError, where: str = "") -> None:
        """Keep why a cell cannot be finished, as a run without an engine does: what is refused claims no folder."""
        if name in self.failures:
            return
        self.failures[name] = f"{where}{reason(error)}"
        work = next(work for work in self.works if work.cell.name == name)
        store = RunStore(self.out / name)
        if isinstance(error, UsageError) and not store.config.exists():
            return
        if not (work.whole or store.config.exists()):
            store.write_config(work.cell.recipe.to_yaml())
        if not work.whole:
            write_cell(store, work.cell, work.holdout)
        store.note_failure(error)

    def _sets(self) -> Iterator[tuple[Work, Recipe, RunStore]]:
        """Sets that are to be made or scored, with their recipes as a search settled them, where one was needed."""
        for work in self.works:
            if not work.whole and work.cell.name not in self.failures:
                store = RunStore(self.out / work.cell.name)
                try:
                    yield work, settled(work.cell.recipe, store), store
                except PotstillError as error:
                    self._fail(work.cell.name, error)

    def _refuse_budgets_of_shards(self) -> None:
        for work, recipe, store in self._sets():
            sharded = bool(split_of(recipe, work.data, self.shards))
            if recipe.budget.minutes is not None and sharded and not is_finished(recipe, store):
                why = "a budget is that of a whole set, not of its shards; leave out --shards or budget.minutes"
                self._fail(work.cell.name, UsageError(why))

    def _makers(self) -> Iterator[tuple[Work, Recipe, RunStore]]:
        """Of the cells that share a set the first."""
        asked = set[str]()
        for work, recipe, store in self._sets():
            if work.cell.name not in asked:
                asked.update(self._kin[work.cell.name])
                yield work, recipe, store

    def _take_sets(self) -> None:
        for work, _, _ in self._sets():
            try:
                take_set(work.cell, self._kin[work.cell.name], self.out)
            except PotstillError as error:
                self._fail(work.cell.name, error)

    def _members(self) -> Iterator[Task]:
        asked = set[str]()
        for work, recipe, store in self._sets():
            if not _has_pool(recipe) or store.distilled.exists():
                continue
            for run, keys in enumerate(run_keys(recipe, work.data)):
                if keys[-1].digest() not in asked and not is_cached(keys, self.cache / "pool"):
                    asked.add(keys[-1].digest())
                    there = tuple(_named(key) for key in keys if (self.cache / _named(key)).exists())
                    yield self._task("member", work, recipe, index=run, inputs=there)

    def _searches(self) -> Iterator[Task]:
        for work, recipe, store in self._makers():
            if recipe.open and not store.distilled.exists():
                yield self._task("search", work, recipe)

    def _distillations(self) -> Iterator[Task]:
        whole = set[str]()
        for work, recipe, store in self._makers():
            if is_finished(recipe, store):
                continue
            if store.distilled.exists():
                store.reopen()
            if self.shards > 1 and recipe.method_name not in whole and not recipe.build_method().independent_classes:
                whole.add(recipe.method_name)
                self.reporter.say(
                    f"{recipe.method_name}: its classes depend on each other, so --shards splits none of its sets"
                )
            if missing := [name for name in _pool(work, recipe) if not (self.cache / name).exists()]:
                for name in self._kin[work.cell.name]:
                    self._fail(name, RunError(f"{len(missing)} networks of its pool are missing"))
                continue
            for classes in split_of(recipe, work.data, self.shards) or [()]:
                run = self._shard(store, classes)
                if not run.distilled.exists():
                    inputs = (*_pool(work, recipe), *self._begun(run, store))
                    yield self._task("distil", work, recipe, inputs=inputs, classes=classes)

    def _begun(self, run: RunStore, store: RunStore) -> Iterator[str]:
        """What an earlier attempt left, and what a search chose."""
        place = run.root.relative_to(self.out).as_posix()
        names = read_files(run.root) if run.snapshot.exists() else {}
        yield from (f"{place}{OF}run/{name}" for name in names)
        chosen = store.chosen.relative_to(store.root).as_posix()
        if store.chosen.exists() and chosen not in names:
            yield f"{store.root.name}{OF}run/{chosen}"

    def _join(self) -> None:
        """Sets of which all shards are there."""
        for work, recipe, store in self._sets():
            parts = [self._shard(store, classes) for classes in split_of(recipe, work.data, self.shards)]
            if parts and not store.distilled.exists() and all(part.distilled.exists() for part in parts):
                join(store, parts)

    def _shard(self, store: RunStore, classes: tuple[int, ...]) -> RunStore:
        return RunStore(store.root / shard_folder(classes)) if classes else store

    def _networks(self) -> Iterator[Task]:
        """Those on the whole data first: they take longest, and are best not the last."""
        for work in self.works:
            if work.whole:
                yield from self._or_fail(work, self._networks_on_whole(work))
        for work, recipe, store in self._sets():
            if store.distilled.exists():
                yield from self._or_fail(work, self._networks_on_sets(work, recipe, store))

    def _or_fail(self, work: Work, tasks: Iterator[Task]) -> list[Task]:
        """The tasks; none where files that they depend on are damaged."""
        try:
            return list(tasks)
        except PotstillError as error:
            self._fail(work.cell.name, error)
            return []

    def _networks_on_whole(self, work: Work) -> Iterator[Task]:
        scores = RunStore(self.out / work.cell.name).scores
        for index in missing_networks(work.cell.recipe, work.data, None, scores):
            yield self._task("whole", work, work.cell.recipe, index=index, scores="scores")

    def _networks_on_sets(self, work: Work, recipe: Recipe, store: RunStore) -> Iterator[Task]:
        for path, scores in sets_to_score(recipe, store, curve=work.curve):
            named = f"{work.cell.name}{OF}run/{path.relative_to(store.root).as_posix()}"
            place = scores.relative_to(store.root).as_posix()
            for index in missing_networks(recipe, work.data, SyntheticSet.load(path), scores):
                yield self._task("network", work, recipe, index=index, inputs=(named,), scores=place)

    def _task(self, kind: str, work: Work, recipe: Recipe, **more: Any) -> Task:
        return Task(kind, work.cell.name, recipe.to_dict(), data_name(work.data), **more)


def _has_pool(recipe: Recipe) -> bool:
    return recipe.build_method().needs_pool and recipe.pool.pretrained


def _pool(work: Work, recipe: Recipe) -> tuple[str, ...]:
    keys = [key for run in run_keys(recipe, work.data) for key in run] if _has_pool(recipe) else []
    return tuple(map(_named, keys))


def _named(key: MemberKey) -> str:
    """Below the cache."""
    return f"pool/{key.digest()}.safetensors"


class _Inputs(dict[str, bytes]):
    """The inputs of tasks by their names, read when they are asked for."""

    def __init__(self, spread: Spread):
        super().__init__()
        self._spread, self._data = spread, {data_name(work.data): work.data for work in spread.works}

    def __missing__(self, name: str) -> bytes:
        if name in self._data:
            return pack_data(self._data[name])
        place, of_a_run, rest = name.partition(OF)
        path = self._spread.out / place / rest.removeprefix("run/") if of_a_run else self._spread.cache / name
        return path.read_bytes()
