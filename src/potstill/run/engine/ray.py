"""Tasks on a Ray cluster: that of RAY_ADDRESS, or a local one that begins and ends with the engine."""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from typing import Any

from ...errors import MissingExtra, RunError
from ...machine.runtime import usable_threads
from ...spec import LabelledDataset
from ..task import Task
from .base import RETRIES, Done, Hear, attempt, lost, nobody

#: What a cluster's head may take to answer, in seconds.
SECONDS_TO_ANSWER = 5.0

#: Data sets that a worker process has unpacked; Ray keeps its processes from task to task.
_known: dict[str, LabelledDataset] = {}


class Ray(AbstractContextManager["Ray"]):
    """Ray Core; inputs lie in its object store and reach each node once.

    Args:
        workers: tasks at once on a local cluster; None for one per core. A cluster of RAY_ADDRESS has its own number.
    Raises:
        MissingExtra: Ray is not installed.
        RunError: the cluster does not answer.
    """

    def __init__(self, workers: int | None = None):
        try:
            import ray
        except ImportError as error:
            raise MissingExtra("the engine ray", "ray") from error
        self._ray: Any = ray
        self.workers = 1
        address = os.environ.get("RAY_ADDRESS") or None
        if address:
            _require_answer(address)
        quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if address:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            else:
                ray.init(address="local", num_cpus=workers or usable_threads(), **quiet)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            place = f"RAY_ADDRESS={address}: no Ray cluster there" if address else "a local Ray cluster did not start"
            said = str(error).partition("\n")[0]
            raise RunError(f"{place} ({said}); start one with ray start --head, or use --engine processes") from error
        self.workers = max(1, self._has("CPU"))

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def run(self, tasks: Sequence[Task], inputs: Mapping[str, bytes], hear: Hear = nobody) -> Iterator[Done]:
        ray = self._ray
        takes = [self._takes(task) for task in tasks]
        self.workers = max(1, min(self._has(kind) // max(1, max(t[kind] for t in takes)) for kind in takes[0]))
        remote = ray.remote(max_retries=RETRIES)(_perform)
        names = {name for task in tasks for name in (task.data, *task.inputs)}
        held = {name: ray.put(inputs[name]) for name in names}
        pending = {}
        for task, taken in zip(tasks, takes, strict=True):
            needed = (task.data, *task.inputs)
            there = remote.options(num_cpus=taken["CPU"], num_gpus=taken.get("GPU", 0))
            pending[there.remote(task, needed, *(held[name] for name in needed))] = task
        waiting = deque(tasks)  # Ray does not say when a task begins: in their order, as far as there are workers
        for _ in range(min(self.workers, len(tasks))):
            hear(waiting.popleft(), None)
        try:
            while pending:
                (ready, *_), _ = ray.wait(list(pending))
                task = pending.pop(ready)
                if waiting:
                    hear(waiting.popleft(), None)
                try:
                    yield task, *ray.get(ready)
                except ray.exceptions.RayTaskError as error:
                    said = str(error.cause).partition("\n")[0]
                    yield task, RunError(f"{task.kind} of {task.cell}: a worker could not begin it ({said})"), 0.0
                except ray.exceptions.RayError as error:
                    yield task, lost(task, type(error).__name__), 0.0
        finally:
            for reference in pending:  # only where the loop was left early
                ray.cancel(reference, force=True)

    def at_once(self, threads: int = 1) -> int:
        cores = self._has("CPU") // min(threads, self._widest())
        return max(1, min(cores, self._has("GPU") or cores))

    def _widest(self) -> int:
        """Cores of the largest node."""
        return max((int(n["Resources"].get("CPU", 1)) for n in self._ray.nodes() if n["Alive"]), default=1)

    def _has(self, kind: str) -> int:
        """CPUs or GPUs of all nodes."""
        return int(self._ray.cluster_resources().get(kind, 0))

    def _takes(self, task: Task) -> dict[str, int]:
        """Of a node: cores for the threads that it states, and a GPU where there are any and it may use one."""
        cores = {"CPU": min(task.threads, self._widest())}  # more than any node has would wait for ever
        return cores | ({"GPU": 1} if self._has("GPU") and task.device != "cpu" else {})


def _perform(task: Task, names: Sequence[str], *inputs: bytes) -> Any:
    return attempt(task, dict(zip(names, inputs, strict=True)), _known)


def _require_answer(address: str) -> None:
    """Ask whether anybody listens before Ray does, which would go on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # "auto" and "local" are looked for by Ray itself
        return
    try:
        with closing(socket.create_connection((host, int(port)), SECONDS_TO_ANSWER)):
            return
    except OSError as error:
        raise RunError(
            f"RAY_ADDRESS={address}: nothing answers there ({error.strerror or error}); start a cluster with "
            "ray start --head, name another, or unset it for a local one"
        ) from error
