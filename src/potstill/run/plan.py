"""How many steps a budget holds: a few are timed, and the others take as long as the samples that pass a network."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import replace

from ..checks import MOST
from ..machine.runtime import Runtime
from ..methods import METHODS
from ..recipe import Recipe
from ..spec import LabelledDataset
from .distil import distilling_runtime
from .pace import Pace, amount, time_method

#: Steps are timed until they have taken this share of the budget; so many at most.
SHARE, MOST_TIMED = 0.01, 1000


def plan(recipe: Recipe, data: LabelledDataset, seconds: float, *, at_work: bool = True) -> tuple[Recipe, int]:
    """The recipe with as many steps as fit in the seconds, whatever its own number, and how many were timed for it.

    Decays, loops and averages of a method follow its steps.

    Args:
        at_work: seconds are of a CPU's work where one does it, else of the clock, as those after which a run is cut.
    """
    timed = with_steps(recipe, max(recipe.method.steps, MOST_TIMED))

    def runtime_of(steps: int) -> Runtime:
        taken = with_steps(recipe, steps)
        return distilling_runtime(taken, taken.build_method(), data)

    def fitting(runtime: Runtime) -> tuple[int, int]:
        count, pace = time_method(timed, data, runtime, at_work=at_work, least=SHARE * seconds)
        return steps_in(seconds, pace, recipe, data), count

    eager = runtime_of(1)  # one that compiles nothing, for short budgets are over before that
    steps, count = fitting(eager)
    if (compiling := runtime_of(steps)) != eager:
        most = steps
        steps, count = fitting(compiling)
        if runtime_of(steps) == eager:  # compiling takes so long that what is left is not worth it
            steps = bisect_left(range(1, most), True, key=lambda few: runtime_of(few) != eager)
    return with_steps(recipe, steps), count


def steps_in(seconds: float, pace: Pace, recipe: Recipe, data: LabelledDataset) -> int:
    """As many as fit, and one at least."""

    def takes(steps: int) -> float:
        return pace.of(amount(with_steps(recipe, steps), data))

    return max(1, bisect_right(range(1, MOST + 1), seconds, key=takes))


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with so many steps, and what else its method makes of them."""
    keys = METHODS[recipe.method_name].in_steps(recipe.method, steps, recipe.pool.networks)
    return replace(recipe, method=keys)
