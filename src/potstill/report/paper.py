"""The paper's tables filled with stored runs: each cell beside what was published. Computes means, never a score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from ..data import known_set
from ..errors import UsageError
from ..evaluation import find_protocol
from ..methods import METHODS
from ..recipe import resolve
from ..recipe.names import in_short
from ..run.paper import PaperCell, PaperTable
from ..scores import Score, Scores
from .read import joined, marked, plain_method
from .stored import StoredRun, describe_making


@dataclass(frozen=True)
class Selected:
    """The set after `step` steps, best of `of` by its accuracy on the TEST split, as the paper's code selects.

    No result: it tells how much of a difference such a selection makes.
    """

    step: int
    of: int
    scores: Scores

    def to_json(self) -> dict[str, Any]:
        return {"mean": self.scores.mean, "std": self.scores.std, "step": self.step, "of": self.of}


@dataclass(frozen=True)
class Entry:
    """A cell with the runs that were found for it; `runs` hold only the scores that count here."""

    cell: PaperCell
    runs: tuple[StoredRun, ...] = ()
    failure: str = ""

    @property
    def scores(self) -> Scores | None:
        found = tuple(
            {
                (run.seed, score.seed): replace(score, set_hash=score.set_hash or run.name)
                for run in self.runs
                for score in run.scores
            }.values()
        )
        return Scores(found) if found else None

    @property
    def same_as(self) -> str:
        """The method that the cell's is without augmentation, where nothing of it suits the data; else ""."""
        recipe = self.cell.recipe
        known = known_set(recipe.data.name) if recipe else None
        if recipe is None or known is None:
            return ""
        mirror = known.mirror if recipe.data.mirror is None else recipe.data.mirror
        return plain_method(recipe.method_name, getattr(recipe.method, "augment", None), known.modality, mirror)

    @property
    def label(self) -> str:
        """Of the cell for readers: `dsa (= dc)`."""
        return marked(self.cell.label, self.same_as)

    @property
    def difference(self) -> float | None:
        """Ours less the paper's, in points; None where other data or another IPC were set over the cell."""
        paper, scores = self.cell.draft.paper, self.scores
        return None if paper is None or scores is None or not self.cell.comparable else 100 * scores.mean - paper

    @property
    def of_schedule(self) -> bool:
        """Whether its sets were made, and their networks trained, as the schedule says.

        A choice of images that knows neither steps nor pool is the same under every schedule.
        """
        recipe, told = self.cell.recipe, _epochs_told(self.cell)
        if told and any(score.epochs != told for run in self.runs for score in run.scores):
            return False
        same = recipe is not None and not (recipe.build_method().steps or recipe.build_method().needs_pool)
        return same or all(_as_told(self.cell, run) for run in self.runs)

    @property
    def made_by(self) -> str:
        return joined(run.made_by for run in self.runs)

    @property
    def recipes(self) -> str:
        return joined(run.recipe_hash for run in self.runs)

    @property
    def hardware(self) -> str:
        return joined([*(r.hardware for r in self.runs), *(s.device for r in self.runs for s in r.scores)])

    @property
    def pool_seconds(self) -> float | None:
        """The longest of the runs: later ones found the pool made."""
        return max((run.pool_seconds for run in self.runs if run.pool_seconds is not None), default=None)

    @property
    def distill_seconds(self) -> float | None:
        """Mean over sets."""
        times = [run.distill_seconds for run in self.runs if run.distill_seconds is not None]
        return fmean(times) if times else None

    @property
    def evaluate_seconds(self) -> float | None:
        """Of all networks together."""
        times = [score.seconds for score in (self.scores.scores if self.scores else ()) if score.seconds is not None]
        return sum(times) if times else None

    @property
    def selected(self) -> Selected | None:
        """The best by its accuracy on the TEST split of the sets that were scored on the way and the last one."""
        if not self.scores:
            return None
        terms, found = self.scores.scores[0].terms, dict[int, list[Score]]()
        for run in self.runs:
            for step, scores in run.kept.items():
                found.setdefault(step, []).extend(score for score in scores if score.terms == terms)
        sets = {step: Scores(tuple(scores)) for step, scores in found.items() if scores}
        if not sets:
            return None
        sets[max(max(sets), *(run.steps or 0 for run in self.runs))] = self.scores
        step = max(sets, key=lambda step: sets[step].mean)
        return Selected(step, len(sets), sets[step])

    @property
    def empty_because(self) -> str:
        """Why there is no value, "" where there is one."""
        return "" if self.scores else self.cell.missing or self.failure or "not run"

    def to_json(self) -> dict[str, Any]:
        """Every field: `mean` and `std` are shares 0..1, the paper's values percent, the difference points."""
        cell, scores = self.cell, self.scores
        network, protocol, epochs = scores.scores[0].terms if scores else cell.terms
        return {
            "table": cell.table,
            "cell": cell.label,
            "same_as": self.same_as,
            **{key: cell.facts[key] for key in ("method", "dataset", "ipc", "factor", "network")},
            "network": network,
            "protocol": protocol,
            "epochs": epochs,
            "at": "; ".join(f"{key} {value}" for key, value in cell.draft.at.items()),
            "mean": scores.mean if scores else None,
            "std": scores.std if scores else None,
            "n_sets": scores.n_sets if scores else 0,
            "n_nets": scores.n_nets if scores else 0,
            "selection": "last epoch",
            "paper": cell.draft.paper,
            "paper_std": cell.draft.paper_std,
            "difference": self.difference,
            "recipe_hash": self.recipes,
            "made_by": self.made_by,
            "of_schedule": self.of_schedule if scores else None,
            "hardware": self.hardware,
            "pool_seconds": self.pool_seconds,
            "distill_seconds": self.distill_seconds,
            "evaluate_seconds": self.evaluate_seconds,
            "test_selected": self.selected.to_json() if self.selected else None,
            "empty_because": self.empty_because,
            "notes": list(cell.notes),
            "runs": [run.name for run in self.runs],
        }


#: Columns, each of three, that a page holds.
MOST_HEADS = 3


@dataclass(frozen=True)
class Panel:
    """Part of a table: what varies outermost is its title, the last of it makes its columns, or its rows."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Entry | None, ...]], ...]


def fill(table: PaperTable, runs: Sequence[StoredRun]) -> list[Entry]:
    """An entry for each cell, empty where there is no run for it.

    Raises:
        UsageError: two runs say different things of one cell; cell and both places are named.
    """
    return [_entry(cell, [found for run in runs if (found := _fitting(cell, run))]) for cell in table.cells]


def _fitting(cell: PaperCell, run: StoredRun) -> StoredRun | None:
    """The run with the scores that count for the cell; None where it is of another cell.

    A reproduction's runs are known by their names. A run made otherwise is of a cell if it is of the same label,
    method, data, IPC and factor (or other way of storing) and scored by the same network and protocol; its length may
    differ, and the table says it.
    """
    if cell.recipe is None:
        return None
    if run.exact:
        return replace(run, scores=_scored(run.scores, cell, exact=True)) if run.stem == cell.stem else None
    facts = cell.facts
    same = (run.dataset, run.ipc, run.method, run.label) == (facts["dataset"], facts["ipc"], cell.method, cell.label)
    if not same or (METHODS[cell.method].uses_factor and run.factor != facts["factor"]):
        return None
    scores = _scored(run.scores, cell, exact=False)
    return replace(run, scores=scores) if scores else None


def _scored(scores: Iterable[Score], cell: PaperCell, *, exact: bool) -> tuple[Score, ...]:
    """By the cell's network and protocol, for its number of epochs; of runs made otherwise for the largest number."""
    found = [score for score in scores if (score.network, score.protocol) == cell.terms[:2]]
    wanted = (exact and _epochs_told(cell)) or max((score.epochs for score in found), default=0)
    return tuple(score for score in found if score.epochs == wanted)


def _epochs_told(cell: PaperCell) -> int:
    """Of the schedule; 0 for as many as the set brings."""
    _, protocol, epochs = cell.terms
    return find_protocol(protocol, epochs).epochs


def _entry(cell: PaperCell, runs: Sequence[StoredRun]) -> Entry:
    failure = joined(run.failure for run in runs if not run.scores)
    scored = [run for run in runs if run.scores]
    scored = [run for run in scored if _as_told(cell, run)] or scored  # those of other lengths stand in for them
    by_seed: dict[int, StoredRun] = {}
    for run in scored:
        there = by_seed.get(run.seed)
        by_seed[run.seed] = _together(cell, there, run) if there else run
    for run in scored[1:]:
        if run.made_by != scored[0].made_by:
            raise _conflict(cell, scored[0], run, f"{scored[0].made_by!r} and {run.made_by!r}")
    return Entry(cell, tuple(by_seed[seed] for seed in sorted(by_seed)), failure)


def _as_told(cell: PaperCell, run: StoredRun) -> bool:
    """Whether a run is the cell's own, or was made by the same keys under another name."""
    if run.stem == cell.stem:
        return True
    if cell.recipe is None or run.made_by != describe_making(cell.recipe.to_dict()):
        return False
    try:
        made = resolve(run.recipe)
    except UsageError:  # keys of another version
        return False
    return (made.method, made.init, made.data.normalisation) == (
        cell.recipe.method,
        cell.recipe.init,
        cell.recipe.data.normalisation,
    )


def _together(cell: PaperCell, one: StoredRun, other: StoredRun) -> StoredRun:
    """Two records of the same set: the networks of both."""
    if one.recipe_hash != other.recipe_hash:
        raise _conflict(cell, one, other, f"recipes {one.recipe_hash} and {other.recipe_hash}")
    sets = {score.set_hash for run in (one, other) for score in run.scores if score.set_hash}
    if len(sets) > 1:
        raise _conflict(cell, one, other, f"sets {' and '.join(sorted(sets))} of one recipe and seed")
    known = {score.seed: score for score in one.scores}
    for score in other.scores:
        there = known.setdefault(score.seed, score)
        if there.accuracy != score.accuracy:
            raise _conflict(cell, one, other, f"accuracies {there.accuracy:g} and {score.accuracy:g} of one network")
    return replace(
        one,
        scores=tuple(known.values()),
        hardware=joined([one.hardware, other.hardware]),
        kept={**other.kept, **one.kept},
    )


def _conflict(cell: PaperCell, one: StoredRun, other: StoredRun, what: str) -> UsageError:
    return UsageError(
        f"{cell.name}: {one.source} and {other.source} say different things ({what}); merge only one of the two"
    )


def panels(entries: Sequence[Entry]) -> list[Panel]:
    """The table in parts that each fit a page, rows and columns in the study's order."""
    parts: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        *outer, last = list(entry.cell.draft.at.items()) or [("", "")]
        parts.setdefault((tuple(outer), last[0]), []).append(entry)
    return [_panel(dict(outer), key, part) for (outer, key), part in parts.items()]


def _panel(outer: dict[str, Any], key: str, entries: Sequence[Entry]) -> Panel:
    values = list(dict.fromkeys(_last(entry) for entry in entries))
    found = {(entry.label, _last(entry)): entry for entry in entries}
    labels = dict.fromkeys(entry.label for entry in entries)
    rows = tuple((label, tuple(found.get((label, value)) for value in values)) for label in labels)
    title = ", ".join(place(name, value) for name, value in outer.items())
    heads = tuple(place(key, value) if key else "accuracy" for value in values)
    if len(rows) == 1 and len(heads) > MOST_HEADS:  # turned, it fits
        ((label, cells),) = rows
        return Panel(title, (label,), tuple((head, (cell,)) for head, cell in zip(heads, cells, strict=True)))
    return Panel(title, heads, rows)


def _last(entry: Entry) -> Any:
    return next(reversed(entry.cell.draft.at.values()), "")


def place(key: str, value: Any) -> str:
    """What varies, in a reader's words: `IPC 10`, `cifar10`, `epochs 5`."""
    if isinstance(value, str):
        return value
    return f"{'IPC' if key == 'ipc' else in_short(key)} {value}"
