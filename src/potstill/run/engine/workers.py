"""Tasks in processes of this machine: one for each GPU, or one for each group of cores."""

from __future__ import annotations

import math
import os
import pickle
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Thread

from ...machine.runtime import usable_cores, usable_threads
from ...spec import LabelledDataset
from ..task import Task, Tell
from .base import RETRIES, Done, Hear, attempt, lost, nobody
from .processes import SECONDS_TO_END, signals_held_back

#: Seconds between what a worker tells of one task.
TELL_EVERY = 1.0


@dataclass(eq=False)
class _Worker:
    """A process, what it was sent already, and what it does now."""

    process: BaseProcess
    connection: Connection
    number: int
    sent: set[str] = field(default_factory=set)


class Workers(AbstractContextManager["Workers"]):
    """Processes that wait for tasks; each gets a data set and other inputs once.

    Args:
        count: processes; None for one for each GPU, or for each core where there is none.
    """

    def __init__(self, count: int | None = None):
        self._most = self.workers = count or _gpus() or usable_threads()
        self._idle, self._alive = list[_Worker](), list[_Worker]()

    def __exit__(self, *_: object) -> None:
        self._end_all()

    def _end_all(self) -> None:
        """Also those at work. A second signal waits: whoever is left over would work on, and be waited for."""
        with signals_held_back():
            for worker in self._alive:
                _end(worker)
            self._alive.clear()
            self._idle.clear()

    def run(self, tasks: Sequence[Task], inputs: Mapping[str, bytes], hear: Hear = nobody) -> Iterator[Done]:
        self._fit(tasks)
        waiting = deque((task, 0) for task in tasks)
        busy: dict[Connection, tuple[_Worker, Task, int]] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < self.workers:
                    task, losses = waiting.popleft()
                    worker = self._idle.pop() if self._idle else self._start(busy)
                    busy[worker.connection] = worker, task, losses
                    _send(worker, task, inputs)
                for ready in wait(list(busy)):
                    assert isinstance(ready, Connection)
                    worker, task, losses = busy[ready]
                    try:
                        told = ready.recv()
                    except (EOFError, ConnectionError):
                        del busy[ready]
                        self._alive.remove(worker)
                        _end(worker)
                        if losses < RETRIES:
                            waiting.append((task, losses + 1))
                        else:
                            how = f"exit code {worker.process.exitcode}; -9 is often a lack of memory"
                            yield task, lost(task, how), 0.0
                        continue
                    if not isinstance(told, tuple):
                        hear(task, told)
                        continue
                    del busy[ready]
                    self._idle.append(worker)
                    yield task, *told
        finally:
            if busy:  # the loop was left early
                self._end_all()

    def at_once(self, threads: int = 1) -> int:
        return self._most if threads == 1 else max(1, min(self._most, usable_threads() // threads))

    def _fit(self, tasks: Sequence[Task]) -> None:
        """As many workers as have cores for the threads that the tasks state, on other cores than before if need be."""
        fitting = self.at_once(max((task.threads for task in tasks), default=1))
        if fitting != self.workers:
            self._end_all()
            self.workers = fitting

    def _start(self, busy: Mapping[Connection, tuple[_Worker, Task, int]]) -> _Worker:
        context = get_context("spawn")  # a fork would inherit the locks of torch's threads
        number = min(set(range(self.workers)) - {worker.number for worker, _, _ in busy.values()})
        ours, theirs = context.Pipe()
        threads = max(1, usable_threads() // self.workers)
        place = threads, core_group(usable_cores(), number, self.workers), gpu_of(number, _gpus())
        process = context.Process(target=_serve, args=(theirs, *place), daemon=True)
        with signals_held_back():
            process.start()
        theirs.close()
        self._alive.append(_Worker(process, ours, number))
        return self._alive[-1]


def _send(worker: _Worker, task: Task, inputs: Mapping[str, bytes]) -> None:
    named = (task.data, *task.inputs)
    lacking = {name: inputs[name] for name in named if name not in worker.sent}
    # The data set is kept by the worker; what a task alone needs is not.
    worker.sent.add(task.data)
    with suppress(ConnectionError):  # it has ended: what follows is told when it is listened to
        worker.connection.send_bytes(pickle.dumps((task, lacking)))


def _end(worker: _Worker) -> None:
    worker.connection.close()
    worker.process.kill()
    worker.process.join(SECONDS_TO_END)


def core_group(cores: Sequence[int], number: int, count: int) -> list[int]:
    """The cores of one of `count` workers: neighbours, its own alone unless there are more workers than cores."""
    size = max(1, len(cores) // count)
    first = number * size % (len(cores) // size * size)
    return list(cores[first : first + size])


def gpu_of(number: int, gpus: int) -> str:
    """What CUDA_VISIBLE_DEVICES is for one worker: one of those that this process may use; "" where there is none."""
    given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (given or [str(i) for i in range(gpus)])[number % gpus] if gpus else ""


def _serve(connection: Connection, threads: int, cores: list[int], gpu: str) -> None:
    """The other process: task after task until nobody listens."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # what "auto" is settled by
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    if gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    Thread(target=_end_with_the_parent, daemon=True).start()
    known: dict[str, LabelledDataset] = {}
    with suppress(EOFError, ConnectionError):
        while True:
            task, inputs = pickle.loads(connection.recv_bytes())
            connection.send(None)  # it begins
            connection.send(attempt(task, inputs, known, _now_and_then(connection)))


def _now_and_then(connection: Connection) -> Tell:
    """Tells the share of a task that is done, at most so often that nobody waits for it."""
    last = -math.inf

    def tell(share: float) -> None:
        nonlocal last
        if time.monotonic() - last >= TELL_EVERY:
            last = time.monotonic()
            with suppress(ConnectionError):  # whoever listened has ended, and soon so does this process
                connection.send(share)

    return tell


def _end_with_the_parent() -> None:
    """A task may take hours; whoever asked for it may have been killed, and wants its folder when called again."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
