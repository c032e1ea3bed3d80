"""A piece of a study that can be done anywhere: a small record of what to do; its inputs and results travel as bytes.

Five kinds: a training run of a pool, the search of what a cell leaves open, the distillation of a cell, one network
trained on a set, and one on the whole training split. A task is done in a folder of its own below the cache of the
machine that does it, under its content address: begun again there, a search or a distillation goes on where it was.
The stages that do the work are those of a run without an engine, and so are the bytes.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from .._version import __version__
from ..errors import RunError
from ..files import default_cache, write_atomically
from ..learning.pool import train_member
from ..recipe import Recipe, resolve
from ..sets.synthetic import SyntheticSet
from ..spec import LabelledDataset
from .distil import distill_run
from .pretrain import pool_runtime, run_keys
from .progress import Reporter, Telling
from .score import evaluate_full_data, evaluate_set
from .search import settle
from .store import RunStore

#: In the name of an input, between the place that it is of and the name that it has where the task is done.
OF = "::"
#: Files by their names below a folder.
Files = Mapping[str, bytes]
#: Told what share of a task is done, from where it goes on to the end.
Tell = Callable[[float], None]


@dataclass(frozen=True)
class Task:
    """What to do.

    Attributes:
        kind: "member", "search", "distil", "network" or "whole".
        cell: whose result it is.
        recipe: of the cell, as `resolve` reads it.
        index: which training run of the pool, or which evaluation network.
        data: name of the input that holds the data set.
        inputs: names of the other inputs: members of the pool, what an earlier attempt left, the set to score. What
            stands before `OF` is the run's folder in the study, where they are from one.
        classes: of a shard of the cell's set; all where there are none.
        scores: the folder of the network's score in the cell's.
        version: of the potstill that the study belongs to.
    """

    kind: str
    cell: str
    recipe: Mapping[str, Any]
    data: str
    index: int = 0
    inputs: tuple[str, ...] = ()
    classes: tuple[int, ...] = ()
    scores: str = ""
    version: str = __version__

    @property
    def key(self) -> str:
        """Content address."""
        return blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=12).hexdigest()

    @property
    def name(self) -> str:
        """For messages: the cell, and which of its tasks."""
        if self.classes:
            return f"{self.cell} (classes {self.classes[0]}-{self.classes[-1]})"
        which = {"member": "pool network", "network": "network", "whole": "network"}.get(self.kind)
        return f"{self.cell} ({which} {self.index + 1})" if which else self.cell

    @property
    def threads(self) -> int:
        """Cores that it keeps busy: as many threads as its recipe states, or one of whoever does it."""
        threads = self.recipe.get("runtime", {}).get("threads", "auto")
        return threads if isinstance(threads, int) else 1

    @property
    def device(self) -> str:
        """As its recipe states it."""
        return str(self.recipe.get("runtime", {}).get("device", "auto"))


def data_name(data: LabelledDataset) -> str:
    """Of the input that holds the data set: by content and by how it is read, normalisation and mirroring included."""
    spec = json.dumps(data.spec.to_json(), sort_keys=True)
    return f"data-{blake2b(spec.encode(), digest_size=12).hexdigest()}"


def pack_data(data: LabelledDataset) -> bytes:
    """A data set as an input of tasks."""
    return pickle.dumps(data)


def perform(
    task: Task, inputs: Mapping[str, bytes], known: dict[str, LabelledDataset], tell: Tell = lambda _: None
) -> Files:
    """Do it. The result is files: of the pool's cache, of the run's folder, or of its scores.

    Args:
        inputs: the bytes of all that the task names.
        known: data sets that this process has unpacked; the task's own is added.
        tell: hears how far it is; a search tells nothing.
    Raises:
        RunError: this process runs another version of potstill than the study.
        PotstillError: what the stage raises.
    """
    if task.version != __version__:
        raise RunError(f"a worker has potstill {__version__}, the study has {task.version}: install the same on both")
    if task.data not in known:
        known[task.data] = pickle.loads(inputs[task.data])
    folder = default_cache() / "tasks" / task.key
    for named in task.inputs:
        name = named.rpartition(OF)[2]
        begun_here = task.kind == "distil" and name.startswith("run/") and (folder / name).exists()
        if not begun_here:  # what was done here goes further
            write_atomically(folder / name, inputs[named])
    files = _KINDS[task.kind](task, resolve(task.recipe), known[task.data], folder, tell)
    shutil.rmtree(folder, ignore_errors=True)
    return files


def read_files(folder: Path) -> dict[str, bytes]:
    """What lies in a folder and below, but for hidden files."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _member(task: Task, recipe: Recipe, data: LabelledDataset, folder: Path, tell: Tell) -> Files:
    runtime, epochs = pool_runtime(recipe, data), recipe.pool.training().epochs
    runtime.start()
    keys = run_keys(recipe, data)[task.index]
    tell(0.0)
    train_member(
        data.train,
        data.spec,
        recipe.pool.network,
        keys,
        folder / "pool",
        runtime,
        lambda epoch, _loss: tell(epoch / epochs),
    )
    return {name: content for name, content in read_files(folder / "pool").items() if name.endswith(".safetensors")}


def _search(task: Task, recipe: Recipe, data: LabelledDataset, folder: Path, tell: Tell) -> Files:
    store = RunStore(folder / "run")
    settle(recipe, data, store, Reporter(quiet=True), cache=folder)
    return read_files(store.root)


def _distil(task: Task, recipe: Recipe, data: LabelledDataset, folder: Path, tell: Tell) -> Files:
    store, telling = RunStore(folder / "run"), Telling("distill", tell)
    distill_run(recipe, data, store, telling, cache=folder, resume=True, classes=task.classes)
    return read_files(folder / "run")


def _network(task: Task, recipe: Recipe, data: LabelledDataset, folder: Path, tell: Tell) -> Files:
    (named,) = task.inputs
    store, synthetic = RunStore(folder / "run"), SyntheticSet.load(folder / named.rpartition(OF)[2])
    evaluate_set(synthetic, data, recipe, store, Telling("evaluate", _of_one(recipe, tell)), only=task.index)
    return read_files(store.scores)


def _whole(task: Task, recipe: Recipe, data: LabelledDataset, folder: Path, tell: Tell) -> Files:
    store = RunStore(folder / "run")
    evaluate_full_data(data, recipe, store, Telling("full data", _of_one(recipe, tell)), only=task.index)
    return read_files(store.scores)


def _of_one(recipe: Recipe, tell: Tell) -> Tell:
    """What is told of all networks, the others of which count as done, as it is of one."""
    nets = recipe.evaluation.nets
    return lambda share: tell(1 - nets * (1 - share))


_KINDS: Mapping[str, Callable[[Task, Recipe, LabelledDataset, Path, Tell], Files]] = {
    "member": _member,
    "search": _search,
    "distil": _distil,
    "network": _network,
    "whole": _whole,
}
