"""Several pieces of work at the same time, each in a process of its own with a share of the threads.

Threads that share a small batch wait for each other, networks that are trained apart do not.
"""

from __future__ import annotations

import pickle
import signal
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar

from ...errors import PotstillError, RunError, UsageError, out_of_memory, reason
from ...machine.runtime import Runtime
from ..signals import held_back

#: Processes start some ten seconds later and, on the processor where least was gained, save 5 to 8 % of the time
#: (results/speed/side_by_side.json): below so many network passes (images of 32x32) a job is over sooner without them.
PROCESSES_PAY_FROM = 1_000_000
#: What a process may take to end by itself once it has told its result or nobody listens any more.
SECONDS_TO_END = 5

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)


class Work(Protocol[R_co]):
    """What a process does: a picklable call that tells its progress and obeys the runtime it is given."""

    def __call__(self, *, runtime: Runtime, on_epoch: Callable[[int, float], None]) -> R_co: ...


def settle_at_once(asked: int | str, runtime: Runtime, *, passes: int, side: int) -> int:
    """How many networks to train at the same time: as asked, or one for each thread of a CPU if the job is long enough.

    Args:
        passes: network passes (images) of the job, `side` their image side.
    Raises:
        UsageError: neither "auto" nor a number from 1 on.
    """
    if asked != "auto":
        if not isinstance(asked, int) or asked < 1:
            raise UsageError(f"at_once={asked!r}: need auto, or at least 1 network")
        return asked
    long = passes * side * side >= PROCESSES_PAY_FROM * 32 * 32
    return runtime.threads if runtime.device == "cpu" and long else 1


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
        PotstillError: what went wrong in one of them, or that it ended without a word. The others are ended.
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
                    raise told
                else:
                    del working[connection]
                    yield told


@contextmanager
def _processes(work: Sequence[Work[Any]], runtime: Runtime) -> Iterator[dict[Connection, BaseProcess]]:
    """A process for each piece of work, by what it tells us through; none of them outlives the block."""
    context = get_context("spawn")  # a fork would inherit the locks of torch's threads
    started: dict[Connection, BaseProcess] = {}
    try:
        with signals_held_back():
            for _ in work:
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs,), daemon=True)
                process.start()
                theirs.close()
                started[ours] = process
        for connection, piece in zip(started, work, strict=True):
            # Packed here, so that tensors travel by value: shared memory is small in many containers.
            with suppress(ConnectionError):  # it has ended: what follows is told when it is listened to
                connection.send_bytes(pickle.dumps((piece, runtime)))
        yield dict(started)
    finally:
        for connection in started:
            connection.close()  # one that still works notices when it tells its next epoch
        try:
            for process in started.values():
                process.join(SECONDS_TO_END)
        finally:
            for process in started.values():
                process.kill()
                process.join()


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Around a start: a terminal sends Ctrl-C to all processes, but it is this one that decides and ends the others."""
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # started with the first process, it would let the signals through again
    with held_back():
        yield


def _receive(connection: Connection, process: BaseProcess) -> tuple[str, Any]:
    try:
        return connection.recv()
    except (EOFError, ConnectionError):
        process.join()
        return "failed", RunError(
            f"a process that trained a network ended without a word (exit code {process.exitcode}; -9 is often a lack "
            "of memory): train fewer at once, evaluation.at_once=1 for one"
        )


def _serve(connection: Connection) -> None:
    """The other process: receive, work, tell."""
    with suppress(EOFError, ConnectionError):  # the one who asked is gone
        piece, runtime = pickle.loads(connection.recv_bytes())
        runtime.start()
        try:
            told = "done", piece(runtime=runtime, on_epoch=lambda *epoch: connection.send(("epoch", epoch)))
        except ConnectionError:
            raise
        except PotstillError as error:
            told = "failed", error
        except Exception as error:
            if out_of_memory(error) is None:
                traceback.print_exc()
            told = "failed", RunError(reason(error))
        connection.send(told)
