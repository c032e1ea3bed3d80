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
from .signals import interruptible
from .store import RunStore
from .study import Cell, Study
from .task import Files, Task, pack_data, read_files


@dataclass
class Spread:
    """One study in the hands of an engine.

    Attributes:
        data: of each cell by its name.
        failures: cells that cannot be finished, and why.
    """

    study: Study
    data: Mapping[str, LabelledDataset]
    out: Path
    cache: Path
    engine: Engine
    reporter: Reporter
    failures: dict[str, str] = field(default_factory=dict)

    def __call__(self) -> dict[str, str]:
        """Do all that can be done apart; what a cell still lacks afterwards is said in its failure."""
        with interruptible("the study"):
            self._do("pools", self._members())
            self._do("sets", self._distillations())
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
        place = {"member": self.cache / "pool", "distil": store.root, "network": store.scores}[task.kind]
        # The finished set comes last: with it the run counts as done.
        for name in sorted(files, key=lambda name: place / name == store.distilled):
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
            begun = [f"run/{name}" for name in read_files(store.root)] if store.snapshot.exists() else []
            yield self._task("distil", cell, inputs=(*self._pool(cell), *begun))

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

    def _task(self, kind: str, cell: Cell, index: int = 0, inputs: tuple[str, ...] = ()) -> Task:
        data = f"data-{self.data[cell.name].spec.fingerprint}"
        return Task(kind, cell.name, cell.recipe.to_dict(), data, index, inputs)


class _Inputs(Mapping[str, bytes]):
    """The inputs of tasks by their names, read when they are asked for."""

    def __init__(self, spread: Spread, tasks: Sequence[Task]):
        self._spread = spread
        self._cell_of = {name: task.cell for task in tasks for name in (task.data, *task.inputs)}

    def __getitem__(self, name: str) -> bytes:
        spread, cell = self._spread, self._cell_of[name]
        if name == f"data-{spread.data[cell].spec.fingerprint}":
            return pack_data(spread.data[cell])
        store = RunStore(spread.out / cell)
        if name == f"{cell}.safetensors":
            return store.distilled.read_bytes()
        folder, _, rest = name.partition("/")
        return ((spread.cache / "pool") if folder == "pool" else store.root).joinpath(rest).read_bytes()

    def __iter__(self) -> Iterator[str]:
        return iter(self._cell_of)

    def __len__(self) -> int:
        return len(self._cell_of)
