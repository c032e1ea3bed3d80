"""Studies: named cells, each a recipe with a run folder of its own. Comparisons, ablations and tunings are all studies.

    base:  {data: {name: cifar10}, ipc: 10, evaluation: {nets: 3}}
    vary:  {ipc: [1, 10], seed: [0, 1]}
    holdout: 5000                               # tuning: score on training images that nothing else sees
    cells:
      random:        {method: random}
      dsdm:          {method: {name: dsdm, steps: 2000}, paper: 66.5}
      no_covariance: {method: {name: dsdm, steps: 2000, covariance_weight: 0}}

A cell's name is its folder and its row's label; where keys vary, the folder's name has their values behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from ..data import holdout_split
from ..data.measure import split_fingerprint
from ..errors import DataError, UsageError
from ..files import write_atomically
from ..methods import METHODS
from ..recipe import Layer, Recipe, of_method, resolve
from ..recipe.text import from_yaml, to_yaml
from ..sets.parameterisations import Factor
from ..spec import LabelledDataset
from .distil import read_run_recipe, require_same_data
from .store import RunStore

#: The file in a study's folder that says what its cells are.
STUDY = "study.yaml"
SECTIONS = ("base", "vary", "holdout", "cells")
#: Keys that have columns of their own in a table, and by which rows are ordered or pooled: labels leave them out.
COLUMNS = ("ipc", "factor", "seed")


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        name: of its folder.
        label: of its row; runs that differ in their seed share it.
        paper: accuracy that was published for it, in percent.
    """

    name: str
    label: str
    recipe: Recipe
    paper: float | None = None


@dataclass(frozen=True)
class Study:
    """What is run. `holdout` training images are kept from everything and take the place of the test split."""

    cells: tuple[Cell, ...]
    holdout: int = 0

    def on(self, data: Mapping[str, LabelledDataset]) -> Study:
        """The study with what is known of each cell's data once they are read."""
        return replace(self, cells=tuple(replace(c, recipe=c.recipe.on(data[c.name])) for c in self.cells))

    def to_yaml(self) -> str:
        """The study with every key resolved, as `read_study` reads it back."""
        cells = {
            cell.name: {"label": cell.label, **({} if cell.paper is None else {"paper": cell.paper})}
            | cell.recipe.to_dict()
            for cell in self.cells
        }
        return to_yaml({"holdout": self.holdout, "cells": cells})


def read_study(path: Path, *over: Layer) -> Study:
    """A study file.

    Args:
        over: recipe layers that hold for every cell, whatever the file says.
    Raises:
        UsageError: no study, an unknown section, or a cell whose recipe cannot be resolved; the message names it.
    """
    try:
        plan = from_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); expected a study, see potstill list") from error
    except ValueError as error:
        raise UsageError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(plan, dict) or not isinstance(plan.get("cells"), dict) or not plan["cells"]:
        raise UsageError(f"{path}: a study is a mapping with cells, each a name and its recipe keys")
    if unknown := [str(key) for key in plan if key not in SECTIONS]:
        raise UsageError(f"{path}: unknown section {unknown[0]!r}: known are {', '.join(SECTIONS)}")
    holdout = plan.get("holdout") or 0
    if not isinstance(holdout, int) or isinstance(holdout, bool) or holdout < 0:
        raise UsageError(f"{path}: holdout={holdout!r}: need a number of training images, at least 0")
    base, vary = (_mapping(plan.get(name) or {}, f"{path}: {name}") for name in ("base", "vary"))
    for key, values in vary.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{path}: vary.{key}={values!r}: need a list of values")
    found: dict[str, Cell] = {}
    for name, keys in plan["cells"].items():
        keys = _mapping(keys or {}, f"{path}: cell {name!r}")
        label, paper = str(keys.pop("label", name)), keys.pop("paper", None)
        if not str(name) or str(name) in (".", "..") or {"/", "\\"} & set(str(name)):
            raise UsageError(f"{path}: cell {name!r}: a cell's name is that of its folder, without / and \\")
        if paper is not None and not isinstance(paper, (int, float)):
            raise UsageError(f"{path}: paper={paper!r} of cell {name!r}: need an accuracy in percent")
        for values in product(*vary.values()):
            varied = dict(zip(vary, values, strict=True))
            try:
                recipe = resolve(base, varied, keys, *over)
            except UsageError as error:
                raise UsageError(f"{path}: cell {name!r}: {error}") from error
            words = [_word(key, value) for key, value in varied.items() if key not in COLUMNS]
            cell = Cell(_folder(str(name), recipe, varied), "-".join([label, *words]), recipe, paper)
            found.setdefault(cell.name, cell)
    return Study(tuple(found.values()), holdout)


def study_of(
    layers: Sequence[Layer],
    *,
    methods: Sequence[str],
    ipcs: Sequence[int],
    seeds: Sequence[int],
    factors: Sequence[Factor] = (),
) -> Study:
    """A comparison: every (IPC, method, factor, seed); a method of whole images has no factor, whatever is given."""
    recipes = [
        resolve(of_method(layers, method), {"ipc": ipc, **factor, "seed": seed})
        for ipc in ipcs
        for method in methods
        for factor in (({"factor": f} for f in factors) if factors and METHODS[method].uses_factor else ({},))
        for seed in seeds
    ]
    return Study(tuple(Cell(_folder(r.method_name, r, COLUMNS), r.method_name, r) for r in recipes))


def claim(study: Study, folder: Path, *, overwrite: bool = False) -> None:
    """Write what the cells are into the folder, beside those that earlier calls left there.

    Raises:
        UsageError: a cell's folder holds a run of another recipe (the message names a key that differs), or runs there
            began with other training data.
    """
    stored = folder / STUDY
    earlier = read_study(stored) if stored.is_file() else Study(())
    if earlier.cells and earlier.holdout != study.holdout:
        raise UsageError(
            f"{folder}: holds a study with holdout {earlier.holdout}, not {study.holdout}; use another --out"
        )
    for cell in study.cells:
        store = RunStore(folder / cell.name)
        if store.config.exists() and not overwrite:
            there = read_run_recipe(store)
            require_same_data(store, there, cell.recipe)
            if there.hash() != cell.recipe.hash():
                raise UsageError(
                    f"{store.root}: holds a run with {_difference(there, cell.recipe)}; give this one a name of its "
                    "own as a cell of a study, use another --out, or --overwrite"
                )
    _refuse_other_data(study, folder)
    names = {cell.name for cell in study.cells}
    kept = tuple(cell for cell in earlier.cells if cell.name not in names)
    write_atomically(stored, replace(study, cells=kept + study.cells).to_yaml())


def _refuse_other_data(study: Study, folder: Path) -> None:
    """No table over two versions of the same data.

    Raises:
        UsageError: a run beside the cells began with other training data of the same name.
    """
    names = {cell.name for cell in study.cells}
    ours = {replace(cell.recipe.data, fingerprint=""): cell.recipe for cell in study.cells}
    for path in sorted(folder.glob("*/config.yaml")):
        if path.parent.name not in names:
            with suppress(DataError):  # damaged, or of another version: it has no part in this call
                there = read_run_recipe(RunStore(path.parent))
                if here := ours.get(replace(there.data, fingerprint="")):
                    require_same_data(RunStore(path.parent), there, here)


def load_cells(study: Study, load: Callable[[Recipe], LabelledDataset]) -> dict[str, LabelledDataset]:
    """The data of each cell by its name, without what is held out; `load` is called once for each data section."""
    loaded: dict[Any, LabelledDataset] = {}
    for cell in study.cells:
        if cell.recipe.data not in loaded:
            loaded[cell.recipe.data] = hold_out(load(cell.recipe), study.holdout)
    return {cell.name: loaded[cell.recipe.data] for cell in study.cells}


def hold_out(data: LabelledDataset, count: int) -> LabelledDataset:
    """The data set with `count` training images in the place of its test split, which is dropped."""
    if not count:
        return data
    if count >= len(data.train):
        raise UsageError(f"holdout={count}: the training split has {len(data.train)} images, fewer must be held out")
    rest, held = holdout_split(data.train, count, 0)
    spec = replace(
        data.spec,
        fingerprint=f"{data.spec.fingerprint}-holdout{count}",
        train_fingerprint=split_fingerprint(rest),
        test_fingerprint=split_fingerprint(held),
    )
    return LabelledDataset(spec, rest, held)


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{what}: expected keys and values, found {value!r}")
    return dict(value)


def _folder(label: str, recipe: Recipe, varied: Any) -> str:
    """`dm-ipc10-factor2-seed0`, `herding-ipc10-seed0`, `no_covariance`: a cell's name and what varies."""
    rows, columns = recipe.factor
    words = {
        "ipc": f"ipc{recipe.ipc}",
        "factor": f"factor{rows}" + (f"x{columns}" if columns != rows else ""),
        "seed": f"seed{recipe.seed}",
    }
    if not METHODS[recipe.method_name].uses_factor:
        del words["factor"]
    others = [_word(key, varied[key]) for key in varied if key not in COLUMNS]
    return "-".join([label, *others, *(word for key, word in words.items() if key in varied)])


def _word(key: str, value: Any) -> str:
    """`method.learning_rate` 0.1 as `learning_rate0.1`."""
    text = "x".join(map(str, value)) if isinstance(value, list) else str(value)
    return key.rpartition(".")[2] + "".join(c if c.isalnum() or c in "._+-" else "_" for c in text)


def _difference(there: Recipe, here: Recipe) -> str:
    """One key that tells two recipes apart: `method.momentum 0.5, not 0.9`."""
    old, new = dict(_flat(there.to_dict())), dict(_flat(here.to_dict()))
    unscored = ("evaluation", "saving", "budget", "runtime", "fidelity")
    for key in sorted(old | new):
        if old.get(key) != new.get(key) and key.partition(".")[0] not in unscored:
            return f"{key} {old.get(key)}, not {new.get(key)}"
    return f"recipe {there.hash()}, not {here.hash()}"


def _flat(record: Layer, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
