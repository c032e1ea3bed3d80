"""One set for cells of a study that differ in how it is scored alone: made in one folder, copied to the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..recipe import Recipe
from ..recipe.sections import EvaluationConfig
from .distil import is_finished
from .store import RunStore
from .study import Cell


def kin(cells: Iterable[Cell]) -> dict[str, list[str]]:
    """By each cell's name, in their order, those of all whose set is the same to the byte, its own included."""
    groups: dict[Recipe, dict[str, None]] = {}
    for cell in cells:
        groups.setdefault(replace(cell.recipe, evaluation=EvaluationConfig()), {})[cell.name] = None
    return {name: list(names) for names in groups.values() for name in names}


def takers(kin: Mapping[str, Sequence[str]], out: Path | None) -> set[str]:
    """Names of the cells that take their set from another: from one that has it, or else from the first."""

    def lacks(name: str) -> bool:
        return out is None or not RunStore(out / name).distilled.exists()

    return {name for name, names in kin.items() if name != min(names, key=lacks)}


def take_set(cell: Cell, others: Iterable[str], out: Path, *, anew: bool = False) -> str:
    """Give the cell's run the finished set of one of the others, all of its kin.

    Args:
        anew: also where it has a set.
    Returns:
        The name of that one; "" where there is none, or no need.
    """
    store = RunStore(out / cell.name)
    if not anew and is_finished(cell.recipe, store):
        return ""
    for name in others:
        if name != cell.name and is_finished(cell.recipe, RunStore(out / name)):
            with store.locked():
                store.take(RunStore(out / name))
            return name
    return ""
