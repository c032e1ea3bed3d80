"""Several pieces of work at the same time, each in a process of its own with a share of the threads.

Small batches keep few threads busy, while networks that are trained apart have nothing to wait for in each other.
"""

from __future__ import annotations

import pickle
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar

from ..errors import RunError, reason
from ..runtime import Runtime

#: What a process that has told its result may take to end by itself.
SECONDS_TO_END = 30

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)


class Work(Protocol[R_co]):
    """What a process does: a picklable call that tells its progress and obeys the runtime it is given."""

    def __call__(self, *, runtime: Runtime, on_epoch: Callable[[int, float], None]) -> R_co: ...


def settle_at_once(asked: int | str, runtime: Runtime, *, small: bool) -> int:
    """How many networks to train at the same time: as asked, or one for each thread of a CPU if the job is worth it."""
    if asked != "auto":
        return int(asked)
    return runtime.threads if runtime.device == "cpu" and not small else 1


def waves(items: Sequence[T], at_once: int, runtime: Runtime) -> Iterator[tuple[Sequence[T], Runtime]]:
    """Which of the items are worked on together, and what each may use: an equal share of the threads."""
    for first in range(0, len(items), at_once):
        together = items[first : first + at_once]
        yield together, replace(runtime, threads=max(1, runtime.threads // len(together)))


def side_by_side(
    work: Sequence[Work[R_co]], runtime: Runtime, on_epoch: Callable[[int, float], None]
) -> Generator[R_co, None, None]:
    """Start all pieces of work and yield their results as they come; one piece alone stays in this process.

    Args:
        runtime: of each process, see `waves`.
        on_epoch: called here, with what any of them reports.
    Raises:
        RunError: what went wrong in one of them, or that it ended without a word. The others are ended.
    """
    if len(work) == 1:
        runtime.start()
        yield work[0](runtime=runtime, on_epoch=on_epoch)
        return
    with _processes(work, runtime) as working:
        while working:
            ready = wait(working)
            for connection in [c for c in working if c in ready]:
                kind, told = _receive(connection, working[connection])
                if kind == "epoch":
                    on_epoch(*told)
                elif kind == "failed":
                    raise RunError(told)
                else:
                    # It puts its own house in order before it ends: the compiler has helpers and semaphores.
                    working.pop(connection).join(SECONDS_TO_END)
                    yield told


@contextmanager
def _processes(work: Sequence[Work[Any]], runtime: Runtime) -> Iterator[dict[Connection, BaseProcess]]:
    """A process for each piece of work, by what it tells us through; none of them outlives the block."""
    context = get_context("spawn")  # a fork would inherit the locks of torch's threads
    started: dict[Connection, BaseProcess] = {}
    try:
        for piece in work:
            ours, theirs = context.Pipe(duplex=False)
            # Packed here, so that tensors travel by value: shared memory is small in many containers.
            process = context.Process(target=_serve, args=(theirs, pickle.dumps((piece, runtime))), daemon=True)
            with _deaf_to_interrupts():
                process.start()
            theirs.close()
            started[ours] = process
        yield dict(started)
    finally:
        for process in started.values():
            process.terminate()
        for connection, process in started.items():
            process.join()
            connection.close()


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """What is started here never sees Ctrl-C, which a terminal sends to all: this process ends the others itself."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _receive(connection: Connection, process: BaseProcess) -> tuple[str, Any]:
    try:
        return connection.recv()
    except EOFError:
        process.join()
        return "failed", (
            f"a process that trained a network ended without a word (exit code {process.exitcode}; -9 is often a lack "
            "of memory): train fewer at once, evaluation.at_once=1 for one"
        )


def _serve(connection: Connection, packed: bytes) -> None:
    """The other process: unpack, work, tell."""
    with suppress(BrokenPipeError):  # the one who asked is gone
        try:
            piece, runtime = pickle.loads(packed)
            runtime.start()
            told = "done", piece(runtime=runtime, on_epoch=lambda *epoch: connection.send(("epoch", epoch)))
        except BrokenPipeError:
            raise
        except Exception as error:
            told = "failed", reason(error)
        connection.send(told)
