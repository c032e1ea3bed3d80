"""Who does the tasks of a study: in turn here, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ...errors import Interrupted, PotstillError, RunError, reason
from ...machine.runtime import usable_threads
from ...recipe import Recipe
from ...spec import LabelledDataset
from ..task import Files, Task, Tell, perform

#: Times that a task is begun again after its worker was lost.
RETRIES = 2
#: What a worker tells: a task's files, or why there are none, and the seconds that it was at work.
Told = tuple[Files | PotstillError, float]
#: The same with the task.
Done = tuple[Task, Files | PotstillError, float]
#: Hears that a task begins (None) and what share of it is done.
Hear = Callable[[Task, float | None], None]


def nobody(task: Task, share: float | None) -> None:
    """Hears nothing."""


class Unforeseen(RunError):
    """What nobody foresaw went wrong in a worker; `trace` says where in the source."""

    def __init__(self, told: str, trace: str):
        super().__init__(told)
        self.told, self.trace = told, trace

    def __reduce__(self) -> tuple[type, tuple[str, str]]:  # it travels between processes
        return type(self), (self.told, self.trace)


class Engine(AbstractContextManager[Any], Protocol):
    """Does tasks that do not depend on each other; workers stay from one call to the next, until the block ends."""

    @property
    def workers(self) -> int:
        """Tasks at once, at most."""
        ...

    def at_once(self, threads: int = 1) -> int:
        """How many tasks that each keep so many cores busy."""
        ...

    def run(self, tasks: Sequence[Task], inputs: Mapping[str, bytes], hear: Hear = nobody) -> Iterator[Done]:
        """The tasks as they end, in any order. One that fails is told and does not keep the others from being done."""
        ...


def places(engine: Engine | None, recipes: Iterable[Recipe]) -> tuple[int, int | None]:
    """How many tasks of these recipes are done at once, and the threads of each where its recipe states none.

    Without an engine one after another, with the threads of this process.
    """
    if engine is None:
        return 1, None
    stated = [recipe.runtime.threads for recipe in recipes]
    workers = engine.at_once(max((threads for threads in stated if isinstance(threads, int)), default=1))
    return workers, max(1, usable_threads() // engine.workers)


def attempt(
    task: Task, inputs: Mapping[str, bytes], known: dict[str, LabelledDataset], tell: Tell = lambda _: None
) -> Told:
    """The task's files or what went wrong in it, and how long it took."""
    started = time.perf_counter()
    told = _files_or_error(task, inputs, known, tell)
    return told, time.perf_counter() - started


def _files_or_error(
    task: Task, inputs: Mapping[str, bytes], known: dict[str, LabelledDataset], tell: Tell
) -> Files | PotstillError:
    try:
        return perform(task, inputs, known, tell)
    except Interrupted:
        raise
    except PotstillError as error:
        return error
    except Exception as error:
        return Unforeseen(reason(error), "".join(traceback.format_exception(error)))


def lost(task: Task, how: str) -> RunError:
    """A task whose worker ended again and again."""
    return RunError(f"{task.kind} of {task.cell}: its worker was lost {1 + RETRIES} times ({how}); try fewer --workers")
