"""Accuracy against what it cost: the sets that iterative methods kept on the way, core-minutes counted from nothing.

A core-minute is a minute that a core was at work; of a GPU it is a minute of the clock. Runs of older versions tell the
clock alone, which then counts times their threads. The pool is counted as if each method had to train
it, also where it was found in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from ..scores import Score, Scores
from .read import RunRecord, joined
from .rows import group_runs, scores_of_sets

#: Minutes that cores were at work; of the clock, where another device was; of the clock in runs that do not tell, times
#: their threads.
CORES, GPU, CLOCK = "core-minutes", "GPU minutes", "minutes of the clock x threads"


@dataclass(frozen=True)
class CostPoint:
    """The sets of all runs after `step` steps: what they had cost by then (a mean, in the unit of their curve), and
    their accuracy as in a row."""

    step: int
    core_minutes: float
    mean: float
    std: float | None
    n_sets: int
    n_nets: int


@dataclass(frozen=True)
class CostCurve:
    """One method's points in the order of steps, the last of them its finished sets; `same_as` as in a row.

    `unit` says what its core-minutes are: `CORES`, `GPU` or `CLOCK`.
    """

    method: str
    dataset: str
    ipc: int
    network: str
    protocol: str
    epochs: int
    runs: tuple[str, ...]
    points: tuple[CostPoint, ...]
    same_as: str = ""
    unit: str = CLOCK

    @property
    def subject(self) -> tuple[Any, ...]:
        """What curves in one figure share."""
        return self.dataset, self.ipc, self.network, self.protocol, self.epochs, self.unit


def cost_curves(records: Iterable[RunRecord]) -> list[CostCurve]:
    """A curve for each row whose sets have been scored on the way."""
    return [curve for group in group_runs(records) for curve in _curves_of_group(group)]


def curves_to_json(records: Iterable[RunRecord]) -> list[dict[str, Any]]:
    """Every number of the figure, ready for `json.dumps`; accuracies are shares 0..1."""
    return [asdict(curve) for curve in cost_curves(records)]


def core_minutes(record: RunRecord, step: int) -> float | None:
    """From nothing to the set after `step` steps; None where the metrics do not tell."""
    threads = float(record.environment.get("threads", 1))
    line = {0: {"seconds": 0.0}, **{int(line["step"]): line for line in record.metrics}}.get(step, {})
    if "seconds" not in line:
        return None
    pool = record.times.get("pool_core_seconds", threads * record.times.get("pool_seconds", 0.0))
    return (pool + line.get("core_seconds", threads * line["seconds"])) / 60


def unit_of(record: RunRecord) -> str:
    """Of the run's core-minutes."""
    device = record.times.get("core_seconds_of")
    return CLOCK if device is None else CORES if device == "cpu" else GPU


def _curves_of_group(group: Sequence[RunRecord]) -> list[CostCurve]:
    first = group[0]
    found = sorted({s.terms for record in group for scores in record.kept_scores.values() for s in scores})
    names, unit = tuple(record.name for record in group), joined(map(unit_of, group))
    return [
        CostCurve(first.method, first.dataset, first.ipc, *terms, names, _points(group, terms), first.same_as, unit)
        for terms in found
    ]


def _points(group: Sequence[RunRecord], terms: tuple[str, str, int]) -> tuple[CostPoint, ...]:
    """By steps; runs that a budget stopped at different steps end in points of their own."""
    measured: dict[int, list[tuple[float, RunRecord, list[Score]]]] = {}
    for record in group:
        for step, found in {**record.kept_scores, record.steps_done: record.scores}.items():
            scores, cost = [score for score in found if score.terms == terms], core_minutes(record, step)
            if scores and cost is not None:
                measured.setdefault(step, []).append((cost, record, scores))
    return tuple(_point(step, sets) for step, sets in sorted(measured.items()))


def _point(step: int, sets: Sequence[tuple[float, RunRecord, list[Score]]]) -> CostPoint:
    scores: Scores = scores_of_sets((record.name, found) for _, record, found in sets)
    return CostPoint(step, fmean(cost for cost, *_ in sets), scores.mean, scores.std, len(sets), scores.n_nets)
