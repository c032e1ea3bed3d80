"""What work costs, whatever else keeps the machine busy: in seconds of one core, or as if nothing else ran."""

from __future__ import annotations

import os
import time

from .runtime import Runtime


def core_seconds(device: str) -> float:
    """A reading; the difference of two is the work between them.

    On a CPU it is the time that all threads of the process have kept cores busy, with what it called and waited for (a
    compiler); any other device is taken to be busy all the time, so that its seconds are the clock's.
    """
    if device != "cpu":
        return time.perf_counter()
    called = os.times()
    return time.process_time() + called.children_user + called.children_system


class Stopwatch:
    """Seconds from one look to the next: of the clock, or, given the threads that work, of the work that a CPU does.

    Work is that of the thread which waits for the others, or the even share of all, whichever is more.
    """

    def __init__(self, threads: int = 0):
        self._threads = threads
        self._before = self._now()

    @classmethod
    def of(cls, runtime: Runtime, *, at_work: bool = True) -> Stopwatch:
        """Of work where that is asked for and done by a CPU."""
        return cls(runtime.threads if at_work and runtime.device == "cpu" else 0)

    def lap(self) -> float:
        now = self._now()
        seconds = max(after - before for before, after in zip(self._before, now, strict=True))
        self._before = now
        return seconds

    def _now(self) -> tuple[float, ...]:
        if not self._threads:
            return (time.perf_counter(),)
        return time.thread_time(), time.process_time() / self._threads


def slowness() -> float:
    """Seconds of the clock for one of this thread's work, of a third of a second; 1 where nothing else runs."""
    work, clock = time.thread_time(), time.perf_counter()
    while time.perf_counter() - clock < 0.3 or time.thread_time() - work < 0.02:
        pass
    return max(1.0, (time.perf_counter() - clock) / (time.thread_time() - work))
