"""The tasks of a study, handed to an engine in three rounds: training runs of the pools, distillations, networks.

What is done already is no task, so a study that was stopped goes on. Results are written here, into the same folders
and files as by a run without an engine: only this process needs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import PotstillError
from ..files import write_atomically
from ..learning.pool import is_cached
from ..spec import LabelledDataset
from .engine.base import Engine
from .pretrain import run_keys
from .progress import Reporter
from .score import missing_networks
from .shards import join, shard_folder, shards
from .signals import interruptible
from .store import RunStore
from .study import Cell, Study
from .task import OF, Files, Task, data_name, pack_data, read_files


@dataclass
class Spread:
    """One study in the hands of an engine.

    Attributes:
        data: of each cell by its name.
        shards: of the classes of each set, where a method's classes are independent; they are joined here.
        failures: cells that cannot be finished, and why.
    """

    study: Study
    data: Mapping[str, LabelledDataset]
    out: Path
    cache: Path
    engine: Engine
    reporter: Reporter
    shards: int = 1
    failures: dict[str, str] = field(default_factory=dict)

    def __call__(self) -> dict[str, str]:
        """Do all that can be done apart; what a cell still lacks afterwards is said in its failure."""
        with interruptible("the study"):
            self._do("pools", self._members())
            self._do("sets", self._distillations())
            self._join()
            self._do("networks", self._networks())
        return self.failures

    def _do(self, what: str, tasks: Iterable[Task]) -> None:
        tasks = list(tasks)
        if not tasks:
            return
        with self.reporter.stage(what, len(tasks)) as stage:
            for task, told in self.engine.run(tasks, _Inputs(self, tasks)):
                if isinstance(told, PotstillError):
                    self.failures.setdefault(task.cell, f"{task.kind}: {told}")
                    self.reporter.say(f"{task.cell}: {task.kind} failed: {told}")
                else:
                    self._keep(task, told)
                stage.advance(task.cell)

    def _keep(self, task: Task, files: Files) -> None:
        store = RunStore(self.out / task.cell)
        run = self._shard(store, task.classes)
        place = {"member": self.cache / "pool", "distil": run.root, "network": store.scores}[task.kind]
        # The finished set comes last: with it the run counts as done.
        for name in sorted(files, key=lambda name: place / name == run.distilled):
            write_atomically(place / name, files[name])

    def _cells(self) -> Iterator[tuple[Cell, RunStore]]:
        """Cells of which something can be done apart: those whose recipe leaves nothing to a search."""
        for cell in self.study.cells:
            if cell.name not in self.failures and not cell.recipe.open:
                yield cell, RunStore(self.out / cell.name)

    def _members(self) -> Iterator[Task]:
        asked = set[str]()
        for cell, store in self._cells():
            recipe, data = cell.recipe, self.data[cell.name]
            if not (recipe.build_method().needs_pool and recipe.pool.pretrained) or store.distilled.exists():
                continue
            for run, keys in enumerate(run_keys(recipe, data)):
                if keys[-1].digest() not in asked and not is_cached(keys, self.cache / "pool"):
                    asked.add(keys[-1].digest())
                    yield self._task("member", cell, run)

    def _distillations(self) -> Iterator[Task]:
        for cell, store in self._cells():
            if store.distilled.exists():
                continue
            if missing := [name for name in self._pool(cell) if not (self.cache / name).exists()]:
                self.failures[cell.name] = f"{len(missing)} networks of its pool are missing"
                continue
            split = self._split(cell)
            if split and cell.recipe.budget.minutes is not None:
                why = "a budget would end its shards at different steps; leave out --shards or budget.minutes"
                self.failures[cell.name] = why
                continue
            for classes in split or [()]:
                run = self._shard(store, classes)
                if not run.distilled.exists():
                    place = run.root.relative_to(self.out).as_posix()
                    begun = [f"{place}{OF}run/{name}" for name in read_files(run.root)] if run.snapshot.exists() else []
                    yield self._task("distil", cell, inputs=(*self._pool(cell), *begun), classes=classes)

    def _join(self) -> None:
        """Sets of which all shards are there."""
        for cell, store in self._cells():
            parts = [self._shard(store, classes) for classes in self._split(cell)]
            if parts and not store.distilled.exists() and all(part.distilled.exists() for part in parts):
                join(store, parts)

    def _split(self, cell: Cell) -> list[tuple[int, ...]]:
        """The classes of each shard of a cell; none where it is distilled whole."""
        split = shards(self.data[cell.name].spec.num_classes, self.shards)
        return split if len(split) > 1 and cell.recipe.build_method().independent_classes else []

    def _shard(self, store: RunStore, classes: tuple[int, ...]) -> RunStore:
        return RunStore(store.root / shard_folder(classes)) if classes else store

    def _networks(self) -> Iterator[Task]:
        for cell, store in self._cells():
            if store.distilled.exists():
                for index in missing_networks(cell.recipe, self.data[cell.name], store):
                    yield self._task("network", cell, index, (f"{cell.name}.safetensors",))

    def _pool(self, cell: Cell) -> tuple[str, ...]:
        recipe = cell.recipe
        if not (recipe.build_method().needs_pool and recipe.pool.pretrained):
            return ()
        keys = [key for run in run_keys(recipe, self.data[cell.name]) for key in run]
        return tuple(f"pool/{key.digest()}.safetensors" for key in keys)

    def _task(
        self, kind: str, cell: Cell, index: int = 0, inputs: tuple[str, ...] = (), classes: tuple[int, ...] = ()
    ) -> Task:
        return Task(kind, cell.name, cell.recipe.to_dict(), data_name(self.data[cell.name]), index, inputs, classes)


class _Inputs(Mapping[str, bytes]):
    """The inputs of tasks by their names, read when they are asked for."""

    def __init__(self, spread: Spread, tasks: Sequence[Task]):
        self._spread = spread
        self._cell_of = {name: task.cell for task in tasks for name in (task.data, *task.inputs)}

    def __getitem__(self, name: str) -> bytes:
        spread, cell = self._spread, self._cell_of[name]
        if name == data_name(spread.data[cell]):
            return pack_data(spread.data[cell])
        store = RunStore(spread.out / cell)
        if name == f"{cell}.safetensors":
            return store.distilled.read_bytes()
        place, begun, rest = name.partition(OF)
        path = spread.out / place / rest.removeprefix("run/") if begun else spread.cache / name
        return path.read_bytes()

    def __iter__(self) -> Iterator[str]:
        return iter(self._cell_of)

    def __len__(self) -> int:
        return len(self._cell_of)
