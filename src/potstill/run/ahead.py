"""How long a study will still take: what was estimated of each part, at the pace that parts of its kind have shown.

A part is what one cell needs of one kind: its pool, its search, its set, its networks. Parts are done one after another
here, or as tasks by several workers, kind after kind. Where parts of a kind have ended, what they took over what was
estimated of them is the kind's pace; before that it is the pace of all, and at first that of the estimate.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

#: In the order of the rounds of `run/spread`.
KINDS = ("pools", "searches", "sets", "networks")
#: A kind's pace counts so much of an average part as done at the pace of all, and that one so much of the whole as done
#: at that of the estimate: short parts, which come first, say little of long ones.
PRIOR = 0.25
#: What is left of a task that takes longer than expected, as a share of what was expected.
OVERDUE = 0.1


@dataclass
class Part:
    """Seconds by estimate; the share that is done, that which was seen being done, and what it took.

    Attributes:
        group: parts that are done after one another here, before those of the next.
        pieces: tasks that it is made of.
        passes: times that its stage is gone through when it is done here: an evaluation for each of several sets.
    """

    cell: str
    kind: str
    seconds: float
    group: int = 0
    pieces: int = 1
    passes: int = 1
    done: float = 0.0
    seen: float = 0.0
    took: float = 0.0
    passed: int = 0

    @property
    def left(self) -> float:
        return self.seconds * (1 - self.done)


class Ahead:
    """Parts in the order in which they are done."""

    def __init__(self, parts: Iterable[Part] = (), workers: int = 1, clock: Callable[[], float] | None = None):
        self.parts = [part for part in parts if part.seconds > 0]
        self.clock, self._workers = clock or time.perf_counter, workers
        self._said, self._said_at = "", -math.inf
        self._kind, self._running, self._waiting = "", deque[tuple[Part, float]](), deque[Part]()
        self._stage: tuple[Part, Part, float, float] | None = None
        self._group_began = self.clock()

    # --- parts that are done here, one after another

    def enter(self, kind: str, done: float) -> None:
        """A stage of the current group begins, of which a share is done already."""
        group = next((part.group for part in self.parts if part.done < 1), None)
        part = next((p for p in self.parts if p.group == group and p.kind == kind), None)
        self._stage = part and (part, replace(part), self.clock(), done)
        if part:
            for before in self.parts[: self.parts.index(part)]:  # found done, or too short to tell of it
                before.done = 1.0
            part.passed += 1

    def advance(self, share: float) -> None:
        """So much of the stage is done."""
        if self._stage:
            part, before, began, first = self._stage
            part.done = min(1.0, (before.passed + share) / part.passes)
            part.seen = before.seen + max(0.0, share - first) / part.passes
            part.took = before.took + self.clock() - began

    def tick(self, group: int) -> None:
        """Its parts have ended, well or not. Those that no stage told of share the time that the others leave."""
        parts, now = [part for part in self.parts if part.group == group], self.clock()
        unseen = [part for part in parts if not part.seen]
        spent = now - self._group_began - sum(part.took for part in parts)
        for part in unseen:
            part.took = max(0.0, spent) * part.seconds / sum(p.seconds for p in unseen)
            part.seen = 1.0
        for part in parts:
            part.done = 1.0
        self._group_began = now

    # --- parts that are done as tasks by workers

    def begin(self, kind: str, cells: Sequence[str], workers: int) -> None:
        """A round of tasks, each of one of these cells; of other cells nothing of the kind is left to do."""
        counts = {cell: cells.count(cell) for cell in cells}
        known = dict[str, float]()
        for part in self.parts:
            if part.kind == kind:
                known[part.cell] = known.get(part.cell, 0.0) + part.seconds
        usual = sum(known.values()) / max(1, sum(counts[c] for c in counts if c in known)) if known else 0.0
        for part in self.parts:
            if part.kind in KINDS[: KINDS.index(kind)]:
                part.done = 1.0
        others = [part for part in self.parts if part.kind != kind]
        tasks = [Part(cell, kind, known[cell] / counts[cell] if cell in known else usual) for cell in cells]
        self.parts, self._kind, self._workers = others + tasks, kind, workers
        self._waiting, self._running = deque(tasks), deque()
        self._next()

    def end(self, kind: str, cell: str, seconds: float) -> None:
        """A task of the round ended, which took a worker so long."""
        found = next((entry for entry in self._running if entry[0].cell == cell), None)
        if found is None:
            return
        self._running.remove(found)
        part, _ = found
        part.done = part.seen = 1.0
        part.took = seconds
        self._next()

    def _next(self) -> None:
        """Workers take the tasks in their order."""
        while self._waiting and len(self._running) < self._workers:
            self._running.append((self._waiting.popleft(), self.clock()))

    # --- what is left

    def left(self) -> float:
        """Seconds until all is done."""
        known = [self._as_known(part) for part in self.parts]
        overall = _pace(known, PRIOR * sum(part.seconds for part in known), 1.0)
        total = 0.0
        for kind in KINDS:
            parts = [part for part in known if part.kind == kind]
            if parts:
                usual = sum(part.seconds for part in parts) / len(parts)
                pace = _pace(parts, PRIOR * usual, overall)
                total += self._left_of(kind, [part for part in self.parts if part.kind == kind], pace)
        return total

    def _as_known(self, part: Part) -> Part:
        """A task that is at work for longer than was estimated takes at least so long."""
        began = next((began for running, began in self._running if running is part), None)
        elapsed = 0.0 if began is None else self.clock() - began
        return replace(part, seen=1.0, took=elapsed) if elapsed > part.seconds else part

    def _left_of(self, kind: str, parts: Sequence[Part], pace: float) -> float:
        if kind != self._kind:
            pieces = [pace * part.left / part.pieces for part in parts for _ in range(part.pieces)]
            return makespan(pieces, self._workers)
        now = self.clock()
        running = [
            max(pace * part.seconds - (now - began), OVERDUE * pace * part.seconds) for part, began in self._running
        ]
        return makespan([*running, *(pace * part.seconds for part in self._waiting)], self._workers)

    def words(self) -> str:
        """For the end of a line about something else; "" where nothing was estimated."""
        if self.parts and self.clock() - self._said_at >= 1:  # steps may take less than finding out
            self._said, self._said_at = f"; in all about {span(self.left())} left", self.clock()
        return self._said


def _pace(parts: Sequence[Part], weight: float, prior: float) -> float:
    """Seconds taken for one that was estimated, with `weight` of these taken at the pace `prior`."""
    estimated = sum(part.seconds * part.seen for part in parts) + weight
    return (sum(part.took for part in parts if part.seen) + prior * weight) / estimated if estimated else prior


def makespan(seconds: Iterable[float], workers: int) -> float:
    """When the last task ends of those that are dealt, in their order, to whoever is free."""
    free = [0.0] * workers
    for task in seconds:
        heapq.heapreplace(free, free[0] + task)
    return max(free)


def span(seconds: float) -> str:
    """A length of time: `40 s`, `12 min`, `3.4 h`, `2.5 days`."""
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h" if minutes < 2880 else f"{minutes / 1440:.1f} days"
