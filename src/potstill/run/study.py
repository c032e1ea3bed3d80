"""Studies: named cells, each a recipe with a run folder of its own. Comparisons, ablations and tunings are all studies.

    base:  {data: {name: cifar10}, ipc: 10, evaluation: {nets: 3}}
    vary:  {ipc: [1, 10], seed: [0, 1]}
    holdout: 5000                               # tuning: score on training images that nothing else sees
    cells:
      random:        {method: random}
      dsdm:          {method: {name: dsdm, steps: 2000}, paper: [45.0, 66.5±0.3]}
      no_covariance: {method: {name: dsdm, steps: 2000, covariance_weight: 0}}

A cell's name is its folder and its row's label; where keys vary, the folder's name has their values behind it. `vary`
may name its values, each with keys of its own; a value that is a mapping from numbers goes by IPC. docs/studies.md.
"""

from __future__ import annotations

import re
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
from ..recipe import Layer, Recipe, difference, merge, of_method, resolve
from ..recipe.layers import BY_DEFAULT, flat
from ..recipe.names import in_short
from ..recipe.sections import AUTO
from ..recipe.text import from_yaml, to_yaml
from ..sets.parameterisations import Factor
from ..spec import LabelledDataset
from .distil import read_run_recipe, require_same_data, settled
from .store import FULL_DATA, RunStore

#: The file in a study's folder that says what its cells are.
STUDY = "study.yaml"
SECTIONS = ("base", "vary", "holdout", "cells", "title", "about", "draw", "notes")
#: An accuracy in percent, and its deviation.
_PUBLISHED = re.compile(r"(\d+(?:\.\d+)?)(?:\s*(?:±|\+-)\s*(\d+(?:\.\d+)?))?")
#: Keys that have columns of their own in a table, and by which rows are ordered or pooled: labels leave them out.
COLUMNS = ("ipc", "factor", "seed")


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        name: of its folder.
        label: of its row; runs that differ in their seed, or in how they are scored, share it.
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
        """The study with what is known of each cell's data once they are read, and once what that makes equal."""
        different = dict[tuple[str, str], Cell]()
        for cell in self.cells:
            recipe = cell.recipe.on(data[cell.name])
            different.setdefault((cell.label, recipe.to_yaml()), replace(cell, recipe=recipe))
        return replace(self, cells=tuple(different.values()))

    def to_yaml(self) -> str:
        """The study with every key resolved, as `read_study` reads it back."""
        cells = {
            cell.name: {"label": cell.label, **({} if cell.paper is None else {"paper": cell.paper})}
            | cell.recipe.to_dict()
            for cell in self.cells
        }
        return to_yaml({"holdout": self.holdout, "cells": cells})


@dataclass(frozen=True)
class Draft:
    """A cell of a file at one combination of what varies, before its recipe is resolved.

    Attributes:
        name: in the file; label: of its row.
        at: what varies there, and the value or its name.
        layers: recipe layers, weakest first.
        paper, paper_std: accuracy that was published and its deviation, in percent.
        whole: networks trained on the whole training split, in place of a set.
    """

    name: str
    label: str
    at: dict[str, Any]
    layers: tuple[Layer, ...]
    paper: float | None = None
    paper_std: float | None = None
    whole: bool = False

    @property
    def in_label(self) -> list[str]:
        """What varies that a table has no column for."""
        varied = zip(self.at, self.layers[1:-1], strict=True)
        return [key for key, layer in varied if key not in COLUMNS and not _of_scores(layer)]

    def keys(self, *under: Layer, over: Sequence[Layer] = ()) -> dict[str, Any]:
        """All recipe keys as one layer, with layers beneath and above its own; what goes by IPC is settled."""
        keys = merge(BY_DEFAULT, *under, *self.layers, *over)
        return _settled(keys, keys.get("ipc", Recipe.ipc))


@dataclass(frozen=True)
class Note:
    """What a reader must know of published values: of the cells that `on` fits (label and what varies), or of all."""

    text: str
    on: dict[str, tuple[Any, ...]]

    def fits(self, draft: Draft) -> bool:
        facts = {"cell": draft.label, **draft.at}
        return all(facts.get(key) in values for key, values in self.on.items())


@dataclass(frozen=True)
class Plan:
    """A study's file. `title`, `about`, `notes` and `draw` are for reports of it."""

    title: str
    about: str
    draw: str
    notes: tuple[Note, ...]
    holdout: int
    drafts: tuple[Draft, ...]

    @property
    def numbered_notes(self) -> tuple[Note, ...]:
        """Those on some cells."""
        return tuple(note for note in self.notes if note.on)


def read_study(path: Path, *over: Layer) -> Study:
    """A study file.

    Args:
        over: recipe layers that hold for every cell, whatever the file says.
    Raises:
        UsageError: no study, an unknown section, or a cell whose recipe cannot be resolved; the message names it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); expected a study, see potstill list studies"
        ) from error
    plan = parse_plan(text, str(path))
    found: dict[str, Cell] = {}
    for draft in plan.drafts:
        if draft.whole:
            raise UsageError(f"{path}: cell {draft.name!r}: whole is for potstill reproduce; leave it out, --full-data")
        try:
            keys = draft.keys(over=over)
            recipe = resolve(of_method([keys], keys.get("method", {}).get("name", "dsdm")))
        except UsageError as error:
            raise UsageError(f"{path}: cell {draft.name!r}: {error}") from error
        words = [_word(key, draft.at[key]) for key in draft.in_label]
        cell = Cell(_folder(draft.name, recipe, draft.at), "-".join([draft.label, *words]), recipe, draft.paper)
        found.setdefault(cell.name, cell)
    return Study(tuple(found.values()), plan.holdout)


def parse_plan(text: str, source: str) -> Plan:
    """The plan in a study's text; `source` is named in errors.

    Raises:
        UsageError: no study, an unknown section, or a section that is none; recipe keys are not looked at.
    """
    try:
        plan = from_yaml(text)
    except ValueError as error:
        raise UsageError(f"{source}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(plan, dict) or not isinstance(plan.get("cells"), dict) or not plan["cells"]:
        raise UsageError(f"{source}: a study is a mapping with cells, each a name and its recipe keys")
    if unknown := [str(key) for key in plan if key not in SECTIONS]:
        raise UsageError(f"{source}: unknown section {unknown[0]!r}: known are {', '.join(SECTIONS)}")
    holdout = plan.get("holdout") or 0
    if not isinstance(holdout, int) or isinstance(holdout, bool) or holdout < 0:
        raise UsageError(f"{source}: holdout={holdout!r}: need a number of training images, at least 0")
    base = _mapping(plan.get("base") or {}, f"{source}: base")
    vary = _varied(plan.get("vary"), source)
    drafts = [d for name, keys in plan["cells"].items() for d in _drafts(str(name), keys, base, vary, source)]
    words = {key: str(plan.get(key) or "") for key in ("title", "about", "draw")}
    return Plan(**words, notes=_notes(plan.get("notes"), source), holdout=holdout, drafts=tuple(drafts))


def _varied(section: Any, source: str) -> dict[str, list[tuple[Any, Layer]]]:
    """For each key its values, or their names, with the layer that each stands for."""
    vary = _mapping(section or {}, f"{source}: vary")
    for key, values in vary.items():
        if not isinstance(values, (list, dict)) or not values:
            raise UsageError(f"{source}: vary.{key}={values!r}: need a list of values, or names with keys")
    return {
        key: [(name, _mapping(layer, f"{source}: vary.{key}.{name}")) for name, layer in values.items()]
        if isinstance(values, dict)
        else [(value, {key: value}) for value in values]
        for key, values in vary.items()
    }


def _drafts(
    name: str, keys: Any, base: Layer, vary: dict[str, list[tuple[Any, Layer]]], source: str
) -> Iterator[Draft]:
    """A cell of the file at every combination, but for those whose published value is null in a list.

    There `unknown` stands for a cell whose value was not published.
    """
    where = f"{source}: cell {name!r}"
    keys = _mapping(keys or {}, where)
    label, paper, whole = str(keys.pop("label", name)), keys.pop("paper", None), keys.pop("whole", False)
    vary = _varied(keys.pop("vary"), where) if "vary" in keys else vary
    if not name or name in (".", "..", FULL_DATA) or {"/", "\\"} & set(name):
        raise UsageError(f"{where}: a cell's name is that of its folder, without / and \\, and not {FULL_DATA}")
    if not isinstance(whole, bool):
        raise UsageError(f"{where}: whole={whole!r}: need true or false")
    for places in product(*(range(len(values)) for values in vary.values())):
        values = [values[i] for i, values in zip(places, vary.values(), strict=True)]
        value = _at(paper, places, vary, source, name)
        if value is None and isinstance(paper, list):
            continue
        mean, std = (None, None) if value in (None, "unknown") else _published(value, source, name)
        at = {key: value for key, (value, _) in zip(vary, values, strict=True)}
        yield Draft(name, label, at, (base, *(layer for _, layer in values), keys), mean, std, whole)


def _at(paper: Any, places: Sequence[int], vary: Mapping[str, Sequence[Any]], source: str, name: str) -> Any:
    """The published value at a combination: lists within lists, in the order of what varies."""
    for place, (key, values) in zip(places, vary.items(), strict=True):
        if isinstance(paper, list):
            if len(paper) != len(values):
                count = f"{len(paper)} values where {key} has {len(values)}"
                raise UsageError(f"{source}: paper of cell {name!r}: {count}; give one for each, null for none")
            paper = paper[place]
    return paper


def _published(value: Any, source: str, name: str) -> tuple[float, float | None]:
    """62.1, or a text such as 62.1±0.3."""
    found = None if isinstance(value, bool) else _PUBLISHED.fullmatch(str(value))
    if not found:
        raise UsageError(
            f"{source}: paper={value!r} of cell {name!r}: need an accuracy in percent, as 62.1 or 62.1±0.3"
        )
    return float(found[1]), float(found[2]) if found[2] else None


def _notes(section: Any, source: str) -> tuple[Note, ...]:
    if not isinstance(section or [], list):
        raise UsageError(f"{source}: notes={section!r}: need a list, each with a text and the cells it is on")
    notes = []
    for entry in section or []:
        entry = _mapping(entry, f"{source}: notes")
        on = _mapping(entry.get("on") or {}, f"{source}: notes.on")
        notes.append(
            Note(str(entry.get("text", "")), {k: tuple(v) if isinstance(v, list) else (v,) for k, v in on.items()})
        )
    return tuple(notes)


def _of_scores(layer: Layer) -> bool:
    """Whether a layer says nothing but how sets are scored, which has columns of its own too."""
    return all(key.partition(".")[0] == "evaluation" for key, _ in flat(layer))


def _settled(value: Any, ipc: Any) -> Any:
    """Values that go by IPC, at this one.

    Raises:
        UsageError: nothing is said of it.
    """
    if not isinstance(value, Mapping):
        return value
    if value and all(map(str.isdigit, value)):  # a merged layer's keys are texts
        if str(ipc) not in value:
            raise UsageError(f"ipc={ipc}: a key says its value for IPC {', '.join(value)} only; add it there")
        return value[str(ipc)]
    return {key: _settled(entry, ipc) for key, entry in value.items()}


def study_of(
    layers: Sequence[Layer],
    *,
    methods: Sequence[str],
    ipcs: Sequence[int],
    seeds: Sequence[int],
    factors: Sequence[Factor] = (),
) -> Study:
    """A comparison: every (IPC, method, factor, seed); a method of whole images has no factor, whatever is given.

    `random_mix` comes once more for each way of storing that a method has as its own: the undistilled row beside it.
    """
    recipes = [
        resolve(of_method(layers, method), {"ipc": ipc, **factor, "seed": seed})
        for ipc in ipcs
        for method in methods
        for factor in (({"factor": f} for f in factors) if factors and METHODS[method].uses_factor else ({},))
        for seed in seeds
    ]
    cells = [Cell(_folder(r.method_name, r, COLUMNS), r.method_name, r) for r in recipes]
    return Study((*cells, *_undistilled(cells)))


def _undistilled(cells: Sequence[Cell]) -> Iterator[Cell]:
    """`random_mix` stored as other methods store, where it is compared at all and does not store so already."""
    ways = {cell.recipe.parameterisation for cell in cells if cell.recipe.build_method().steps} - {AUTO}
    for cell in (cell for cell in cells if cell.recipe.method_name == "random_mix"):
        for way in sorted(ways - {cell.recipe.parameterisation}):
            recipe = replace(cell.recipe, parameterisation=way)
            yield replace(cell, name=_folder(f"{cell.label}-{way}", recipe, COLUMNS), recipe=recipe)


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
            asked = settled(cell.recipe, store)
            if there.hash() != asked.hash():
                raise UsageError(
                    f"{store.root}: holds a run with {difference(there, asked)}; give this one a name of its "
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
    if not METHODS[recipe.method_name].uses_factor or recipe.parameterisation != "tiles":
        del words["factor"]
    others = [_word(key, varied[key]) for key in varied if key not in COLUMNS]
    return "-".join([label, *others, *(word for key, word in words.items() if key in varied)])


def _word(key: str, value: Any) -> str:
    """`method.history.weight` 0.1 as `history_weight0.1`."""
    text = "x".join(map(str, value)) if isinstance(value, list) else str(value)
    return in_short(key) + "".join(c if c.isalnum() or c in "._+-" else "_" for c in text)
