"""One task after another in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial

from ...spec import LabelledDataset
from ..task import Task
from .base import Done, Hear, attempt, nobody


class Serial(AbstractContextManager["Serial"]):
    workers = 1

    def __init__(self) -> None:
        self._data: dict[str, LabelledDataset] = {}

    def __exit__(self, *_: object) -> None:
        self._data.clear()

    def at_once(self, threads: int = 1) -> int:
        return 1

    def run(self, tasks: Sequence[Task], inputs: Mapping[str, bytes], hear: Hear = nobody) -> Iterator[Done]:
        for task in tasks:
            hear(task, None)
            yield task, *attempt(task, inputs, self._data, partial(hear, task))
