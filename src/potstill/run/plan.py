"""How many steps a budget holds: a few are timed, and the others take as long as the samples that pass a network."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import replace

from ..checks import MOST
from ..machine.runtime import Runtime
from ..methods import METHODS
from ..recipe import Recipe
from ..spec import LabelledDataset
from .distil import bare_problem, distilling_runtime, passes_of
from .timing import Pace, Stopwatch, some_pool, time_steps, with_small_bank

#: Steps are timed until they have taken this share of the budget; so many at most.
SHARE, MOST_TIMED = 0.01, 1000


def plan(recipe: Recipe, data: LabelledDataset, seconds: float, *, at_work: bool = True) -> tuple[Recipe, int]:
    """The recipe with as many steps as fit in the seconds, whatever its own number, and how many were timed for it.

    Decays, loops and averages of a method follow its steps.

    Args:
        at_work: seconds are of a CPU's work where one does it, else of the clock, as those after which a run is cut.
    """
    timed = with_steps(recipe, max(recipe.method.steps, MOST_TIMED))
    runtime = _runtime(with_steps(recipe, 1), data)  # one that compiles nothing, for short budgets are over before that

    def compiles(steps: int) -> bool:
        return _runtime(with_steps(recipe, steps), data) != runtime

    pace, count = _paced(timed, data, runtime, SHARE * seconds, at_work)
    fitting = with_steps(recipe, steps_in(seconds, pace, recipe, data))
    if (proper := _runtime(fitting, data)) != runtime:
        most = fitting.method.steps
        pace, count = _paced(timed, data, proper, SHARE * seconds, at_work)
        fitting = with_steps(recipe, steps_in(seconds, pace, recipe, data))
        if _runtime(fitting, data) == runtime:  # compiling takes so long that what is left is not worth it
            fitting = with_steps(recipe, bisect_left(range(1, most), True, key=compiles))
    return fitting, count


def steps_in(seconds: float, pace: Pace, recipe: Recipe, data: LabelledDataset) -> int:
    """As many as fit, and one at least."""

    def takes(steps: int) -> float:
        return pace.of(amount(with_steps(recipe, steps), data))

    return max(1, bisect_right(range(1, MOST + 1), seconds, key=takes))


def amount(recipe: Recipe, data: LabelledDataset) -> int:
    """What a pace is by: samples that pass a network, or the steps where that is not known."""
    method = recipe.build_method()
    return passes_of(recipe, method, data) or method.steps


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with so many steps, and what else its method makes of them."""
    keys = METHODS[recipe.method_name].in_steps(recipe.method, steps, recipe.pool.networks)
    return replace(recipe, method=keys)


def _paced(recipe: Recipe, data: LabelledDataset, runtime: Runtime, least: float, at_work: bool) -> tuple[Pace, int]:
    method = with_small_bank(recipe.build_method())
    runtime.start()
    problem = bare_problem(recipe, data, runtime, some_pool(recipe, data, method.needs_pool))
    watch = Stopwatch.of(runtime, at_work=at_work)
    state, pace = time_steps(method, problem, amount(recipe, data), watch, least)
    return pace, state.step


def _runtime(recipe: Recipe, data: LabelledDataset) -> Runtime:
    return distilling_runtime(recipe, recipe.build_method(), data)
