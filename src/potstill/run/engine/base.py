"""Who does the tasks of a study: in turn here, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ...errors import Interrupted, PotstillError, RunError, reason
from ...spec import LabelledDataset
from ..task import Files, Task, perform

#: Times that a task is begun again after its worker was lost.
RETRIES = 2
#: A task with its files, or with why there are none.
Done = tuple[Task, Files | PotstillError]


class Engine(AbstractContextManager[Any], Protocol):
    """Does tasks that do not depend on each other; workers stay from one call to the next, until the block ends."""

    def run(self, tasks: Sequence[Task], inputs: Mapping[str, bytes]) -> Iterator[Done]:
        """The tasks as they end, in any order. One that fails is told and does not keep the others from being done."""
        ...


def attempt(task: Task, inputs: Mapping[str, bytes], known: dict[str, LabelledDataset]) -> Files | PotstillError:
    """The task's files, or what went wrong in it."""
    try:
        return perform(task, inputs, known)
    except Interrupted:
        raise
    except PotstillError as error:
        return error
    except Exception as error:
        return RunError(reason(error))


def lost(task: Task, how: str) -> RunError:
    """A task whose worker ended again and again."""
    return RunError(f"{task.kind} of {task.cell}: its worker was lost {1 + RETRIES} times ({how}); try fewer --workers")
