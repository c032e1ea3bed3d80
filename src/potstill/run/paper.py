"""The paper's tables and figures as shipped studies, under the published schedule or a short one.

A cell's runs are named by what makes their sets (data, IPC, method, a hash of the recipe, seed), so that tables that
share a set share its run, and a set is scored by several networks without being distilled again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..learning.pool import SCHEDULES as POOL_SCHEDULES
from ..methods import METHODS
from ..recipe import Layer, Recipe, merge, of_method, resolve
from ..recipe.layers import flat, shipped
from .study import Cell, Draft, Plan, parse_plan

#: What there is to reproduce.
TABLES = (*(f"table{i}" for i in range(1, 5)), *(f"figure{i}" for i in range(3, 9)))
SCHEDULES = ("paper", "short")
#: What cells are chosen by.
CHOICES = ("dataset", "ipc", "method", "cell", "network", "factor")

Only = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class PaperCell:
    """A cell of a table, with the recipe of its first set.

    Attributes:
        table: its name, as `table1`.
        draft: as the study has it, the published value included.
        recipe: None where it cannot be resolved; `missing` says why.
        notes: numbers, from 1, of the table's notes on some cells that it needs.
    """

    table: str
    draft: Draft
    keys: dict[str, Any]
    recipe: Recipe | None
    missing: str = ""
    notes: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        return self.draft.label

    @property
    def name(self) -> str:
        """For messages: `table1: dsdm, dataset cifar10, ipc 10`."""
        return ", ".join([f"{self.table}: {self.label}", *(f"{k} {v}" for k, v in self.draft.at.items())])

    @property
    def method(self) -> str:
        return str((self.keys.get("method") or {}).get("name", "dsdm"))

    @property
    def facts(self) -> dict[str, Any]:
        """What `--only` chooses by, as far as the keys say it."""
        evaluation = self.keys.get("evaluation") or {}
        return {
            "dataset": (self.keys.get("data") or {}).get("name", "digits"),
            "ipc": None if self.draft.whole else self.keys.get("ipc", Recipe.ipc),
            "method": "whole" if self.draft.whole else self.method,
            "cell": self.label,
            "network": evaluation.get("network", "convnet"),
            "factor": stored_as(self.keys),
        }

    @property
    def comparable(self) -> bool:
        """Whether it is still of the published value's data and IPC: keys may have been set over them."""
        own, used = ((keys.get("data", {}).get("name"), keys.get("ipc")) for keys in (self.draft.keys(), self.keys))
        return own == used

    @cached_property
    def stem(self) -> str:
        """The name of its runs up to the seed; found once, for it is compared with that of every run."""
        if self.recipe is None:
            return ""
        data = Path(self.recipe.data.name).name
        if self.draft.whole:
            return f"{data}-whole"
        return f"{data}-ipc{self.recipe.ipc}-{self.recipe.method_name}-{replace(self.recipe, seed=0).hash()}"

    def cell(self, seed: int) -> Cell:
        """The run of one seed, as a study has it."""
        if self.recipe is None:
            raise UsageError(f"{self.name}: {self.missing}")
        return Cell(f"{self.stem}-seed{seed}", self.label, replace(self.recipe, seed=seed))

    @property
    def terms(self) -> tuple[str, str, int | None]:
        """Network, protocol and epochs (None for the protocol's own) that its sets are scored by."""
        evaluation = self.keys.get("evaluation") or {}
        return (
            str(evaluation.get("network", "convnet")),
            str(evaluation.get("protocol", "dsdm")),
            evaluation.get("epochs"),
        )


@dataclass(frozen=True)
class PaperTable:
    """A table or figure of the paper with all its cells."""

    name: str
    plan: Plan
    cells: tuple[PaperCell, ...]


def stored_as(keys: Mapping[str, Any]) -> str:
    """What a recipe's keys make of the samples: `2` and `1x2` of tiles, else the parameterisation."""
    if (way := keys.get("parameterisation") or "tiles") != "tiles":
        return str(way)
    factor = keys.get("factor", Recipe.factor)
    return "x".join(map(str, dict.fromkeys(factor if isinstance(factor, (list, tuple)) else [factor])))


def read_text(name: str) -> str:
    """The text of a shipped study.

    Raises:
        UsageError: no such study.
    """
    if name not in TABLES:
        raise UsageError(f"{name!r}: nothing of that name in the paper; known are {', '.join(TABLES)}, all")
    return (resources.files("potstill") / "recipes" / "paper" / f"{name}.yaml").read_text(encoding="utf-8")


@cache
def read_plan(name: str) -> Plan:
    return parse_plan(read_text(name), name)


def read_table(name: str, schedule: str = "paper", over: Sequence[Layer] = ()) -> PaperTable:
    """A table or figure, each cell with its recipe or the reason why there is none.

    Args:
        over: recipe layers over every cell; keys of one method go into a `methods` section.
    Raises:
        UsageError: an unknown name or schedule.
    """
    if schedule not in SCHEDULES:
        raise UsageError(f"schedule={schedule!r}: use one of {', '.join(SCHEDULES)}")
    plan = read_plan(name)
    return PaperTable(name, plan, tuple(_cell(name, plan, draft, schedule, over) for draft in plan.drafts))


def _cell(name: str, plan: Plan, draft: Draft, schedule: str, over: Sequence[Layer]) -> PaperCell:
    method = str((draft.keys().get("method") or {}).get("name", "dsdm"))
    beneath = schedule_layer(schedule, method, whole=draft.whole)
    notes = tuple(i for i, note in enumerate(plan.numbered_notes, start=1) if note.fits(draft))
    keys = of_method([draft.keys(beneath, over=over)], method)
    try:
        recipe, missing = resolve(keys), ""
    except UsageError as error:
        recipe, missing = None, str(error)
        if method not in METHODS:
            missing = f"this version of potstill has no method {method}"
    return PaperCell(name, draft, keys, recipe, missing, notes)


def schedule_layer(schedule: str, method: str, *, whole: bool = False) -> dict[str, Any]:
    """The lengths of a schedule for one method, or for training on the whole data."""
    layer = dict(shipped(f"paper/schedule_{schedule}") or {})
    part, full = layer.pop("methods", {}).get(method, {}), layer.pop("whole", {})
    if whole:
        layer = {**layer, "evaluation": {**layer.get("evaluation", {}), **full.get("evaluation", {})}}
    return {**layer, "method": {"name": method, **part}}


def describe_schedule(schedule: str, over: Sequence[Layer] = ()) -> str:
    """What a schedule is, and what was set over it: sentences that every output carries."""
    layer = shipped(f"paper/schedule_{schedule}") or {}
    pool, evaluation, methods = layer["pool"], layer["evaluation"], layer["methods"]
    epochs = pool.get("epochs", POOL_SCHEDULES[pool["schedule"]].epochs)
    steps = ", ".join(f"{name} {_steps(keys['steps'])}" for name, keys in methods.items() if "steps" in keys)
    given = [f"{key}={value}" for key, value in flat(merge(*over)) if not key.startswith("runtime.")]
    scored = f"{evaluation['epochs']} epochs" if "epochs" in evaluation else "the protocol's own epochs (1500)"
    return (
        f"Schedule {schedule}{'' if schedule == 'paper' else ' (not the published one)'}: pools of {pool['members']} "
        f"networks x {epochs} epochs; steps {steps}, of other methods as published; scored after {scored} of "
        f"{evaluation['nets']} networks; whole data {layer['whole']['evaluation']['epochs']} epochs."
        + (f" Set over it: {', '.join(given)}." if given else "")
    )


def _steps(steps: Any) -> str:
    return " / ".join(f"{n:,}" for n in steps.values()) if isinstance(steps, Mapping) else f"{steps:,}"


def choose(cells: Iterable[PaperCell], only: Only) -> list[PaperCell]:
    """The cells that have, for each key, one of its values.

    Raises:
        UsageError: an unknown key, or no such cell.
    """
    cells = list(cells)
    for key in only:
        if key not in CHOICES:
            raise UsageError(f"--only {key}=...: unknown key; known are {', '.join(CHOICES)}")
    found = [cell for cell in cells if all(str(cell.facts[key]) in values for key, values in only.items())]
    if not found:
        words = ",".join(f"{key}={value}" for key, values in only.items() for value in values)
        known = "; ".join(f"{key} {', '.join(_values(cells, key))}" for key in only)
        raise UsageError(f"--only {words}: no such cell; there are: {known}")
    return found


def _values(cells: Iterable[PaperCell], key: str) -> list[str]:
    return list(dict.fromkeys(str(cell.facts[key]) for cell in cells if cell.facts[key] is not None))


def with_kept_steps(cells: Iterable[PaperCell], schedule: str, over: Sequence[Layer]) -> list[PaperCell]:
    """The cells with the steps whose sets any figure of the paper wants kept, so that they share one run.

    Steps that a cell does not come to, under a short schedule say, are left out.
    """
    kept: dict[str, tuple[int, ...]] = {}
    for name in TABLES:
        if read_plan(name).draw == "steps":
            kept |= {c.stem: c.recipe.saving.keep for c in read_table(name, schedule, over).cells if c.recipe}
    return [_keeping(cell, kept.get(cell.stem, ())) for cell in cells]


def _keeping(cell: PaperCell, steps: tuple[int, ...]) -> PaperCell:
    if cell.recipe is None:
        return cell
    last = cell.recipe.build_method().steps
    keep = tuple(sorted(step for step in {*steps, *cell.recipe.saving.keep} if step <= last))
    return replace(cell, recipe=replace(cell.recipe, saving=replace(cell.recipe.saving, keep=keep)))


def rounds(jobs: Iterable[tuple[PaperCell, Cell]]) -> list[list[tuple[PaperCell, Cell]]]:
    """Jobs in studies without two cells of one name: a set's second network comes in a second study.

    The same set under the same terms is there once, whichever tables ask for it.
    """
    found: list[dict[str, tuple[PaperCell, Cell]]] = []
    seen: set[tuple[str, Any]] = set()
    for item, cell in jobs:
        job = (cell.name, item.terms)
        if job not in seen:
            seen.add(job)
            place = next((names for names in found if cell.name not in names), None)
            if place is None:
                found.append(place := {})
            place[cell.name] = (item, cell)
    return [list(names.values()) for names in found]
