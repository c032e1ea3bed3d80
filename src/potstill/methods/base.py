"""The contract of every method: `init`, `step`, `result`, and a State of tensors.

Because all random draws are addressed (see `seeding`) and all memory is in `State`, resuming, sharding by class and
testing need nothing from the method itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Generic, TypeVar

from ..registry import Registry
from ..sets.synthetic import SyntheticSet
from .problem import Problem
from .state import Metrics, State

S = TypeVar("S", bound=State)


class Method(ABC, Generic[S]):
    """A way to make a synthetic set. Subclasses are final; they hold their frozen `Config` and nothing else.

    Attributes:
        name: what it is registered as.
        Config: the method's keys and defaults (a frozen dataclass).
        State: the class of its state.
        needs_pool: whether it draws pre-trained networks.
        clamps: whether results stay inside the spec's value range.
        uses_seed: whether another root seed gives another result (greedy selection has no draws).
        uses_factor: whether results have the problem's factor; False keeps whole images whatever it is.
        stores: the parameterisation where a recipe names neither one nor a factor.
        quick: keys with which a test of the contract takes no time, over those that it sets for every method.
        independent_classes: whether distilling shards of classes equals distilling them together.
    """

    name: ClassVar[str] = "unregistered"
    Config: ClassVar[type]
    State: ClassVar[type[State]] = State
    needs_pool: ClassVar[bool] = False
    clamps: ClassVar[bool] = True
    uses_seed: ClassVar[bool] = True
    uses_factor: ClassVar[bool] = True
    stores: ClassVar[str] = "tiles"
    independent_classes: ClassVar[bool] = True
    quick: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, config: Any = None):
        self.config = self.Config() if config is None else config

    @classmethod
    def about(cls) -> str:
        """The method in one line: the first of its docstring. Lists and reports quote it."""
        return (cls.__doc__ or "").strip().partition("\n")[0]

    @property
    def steps(self) -> int:
        """Steps to take; 0 for a method whose `init` is its result."""
        return int(getattr(self.config, "steps", 0))

    @classmethod
    def in_steps(cls, config: Any, steps: int, networks: int) -> Any:
        """The keys of a run of so many steps, where a budget holds other ones than the config's.

        Args:
            networks: of the pool that the run draws from.
        """
        return replace(config, steps=steps)

    def passes(self, problem: Problem) -> int:
        """About how many samples pass a network in all; what is compiled for the machine follows it.

        A pass forward counts 1, one back to the samples 1 more, one back to the weights 2. The pool may be one of the
        right size without any weights.
        """
        return 0

    def check(self, problem: Problem) -> None:
        """Refuse what cannot work while nothing is trained; the pool may be one without any weights.

        Raises:
            UsageError, DataError: keys and data that do not fit each other.
        """
        self.init(problem)

    @abstractmethod
    def init(self, problem: Problem) -> S:
        """The state before the first step."""

    def step(self, problem: Problem, state: S) -> tuple[S, Metrics]:
        """One step: the next state, and what to log of it."""
        raise NotImplementedError(f"{type(self).__name__} has no steps")

    def result(self, problem: Problem, state: S) -> SyntheticSet:
        """The synthetic set that a state stands for."""
        return problem.synthetic_set(state.images, whole=not self.uses_factor, method=self.name, steps=state.step)


METHODS: Registry[type[Method[Any]]] = Registry("method")


def run_method(method: Method[S], problem: Problem) -> SyntheticSet:
    """All steps in memory, without snapshots: for tests and small notebooks. `run` does it with files."""
    state = method.init(problem)
    for _ in range(method.steps):
        state, _ = method.step(problem, state)
    return method.result(problem, state)
