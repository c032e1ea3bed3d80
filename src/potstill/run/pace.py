"""What the steps of a method take: a few are timed, on networks that nobody trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from ..learning.pool import untrained
from ..machine.compiler import count_graphs
from ..machine.runtime import Runtime
from ..machine.work import Stopwatch
from ..methods import Method, Problem
from ..recipe import Recipe
from ..spec import LabelledDataset
from .distil import bare_problem, passes_of

#: Steps of a method that are timed after the first.
STEPS = 4


@dataclass(frozen=True)
class Pace:
    """Seconds that are spent once, and those of each unit of work: a network pass, a step where these are unknown."""

    once: float
    each: float

    def of(self, amount: float) -> float:
        return self.once + self.each * amount


def amount(recipe: Recipe, data: LabelledDataset) -> int:
    """What a pace is by: samples that pass a network, or the steps where that is not known."""
    method = recipe.build_method()
    return passes_of(recipe, method, data) or method.steps


def time_method(
    recipe: Recipe, data: LabelledDataset, runtime: Runtime, *, at_work: bool = True, least: float = 0.0
) -> tuple[int, Pace]:
    """How many of a recipe's steps were timed, and their pace; see `time_steps`.

    A bank is full after a few steps, for most steps of a run come after that.
    """
    method = recipe.build_method()
    if bank := getattr(method.config, "bank", None):
        method = type(method)(replace(method.config, bank=replace(bank, draws=1)))
    runtime.start()
    problem, passes = untrained_problem(recipe, data, runtime), amount(recipe, data)
    return time_steps(method, problem, passes, Stopwatch.of(runtime, at_work=at_work), least)


def untrained_problem(recipe: Recipe, data: LabelledDataset, runtime: Runtime) -> Problem:
    """What a method may know, with a pool of two untrained networks at most, to see what a change of them costs, unless
    the method wants a later one."""
    config, pool = recipe.pool, None
    if recipe.build_method().needs_pool:
        members = min(max(2, 1 + getattr(recipe.method, "member", 0)), config.networks)
        pool = untrained(data.spec, network=config.network, members=members, seed=config.seed)
    return bare_problem(recipe, data, runtime, pool)


def time_steps(
    method: Method[Any], problem: Problem, amount: int, watch: Stopwatch, least: float = 0.0
) -> tuple[int, Pace]:
    """A few steps, or as many more as take the `least` seconds, are timed: how many, and their pace by the amount.

    Not every step is like the others: a network in training is replaced by a new one, and any may be the first that
    asks for a graph, such as that of an operation of the augmentation; what compiling takes counts once.
    """
    state, laps, usual = method.init(problem), list[float](), list[int]()
    while len(laps) < method.steps and (len(usual) < STEPS or sum(laps[i] for i in usual) < least):
        graphs = count_graphs()
        state, _metrics = method.step(problem, state)
        laps.append(watch.lap())
        if len(laps) > 1 and count_graphs() == graphs:
            usual.append(len(laps) - 1)
    if len(laps) == 1:
        return len(laps), Pace(laps[0], 0.0)
    done = [_passes_in(n, method, problem) for n in range(1, len(laps) + 1)]
    if sorted(set(done)) != done:  # steps tell no passes, or take none after the first
        done = [amount * n / method.steps for n in range(1, len(laps) + 1)]
    passed = [after - before for before, after in zip([0, *done], done, strict=False)]
    each = median(laps[i] / passed[i] for i in usual or range(1, len(laps)))
    once = sum(laps[i] - each * passed[i] for i in range(len(laps)) if i not in usual)
    return len(laps), Pace(max(0.0, once), each)


def _passes_in(steps: int, method: Method[Any], problem: Problem) -> float:
    return type(method)(replace(method.config, steps=steps)).passes(problem)
