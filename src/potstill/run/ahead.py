"""How long a study will still take: what was estimated of each part, at the pace that parts of its kind have shown.

A part is what one cell needs of one kind: its pool, its search, its set, its networks. Parts are done one after another
here, or as tasks by several workers, kind after kind. What was seen of parts, whole ones or shares, over what was
estimated of them is their pace: of those of one kind and method, before that of the kind, before that of all, and at
first that of the estimate.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

#: In the order of the rounds of `run/spread`.
KINDS = ("pools", "searches", "sets", "networks")
#: The pace of a task, a method or a kind counts so much of an average part as done at the pace that was supposed.
PRIOR = 0.25
#: That of all counts so much of the whole as done at that of the estimate: short parts say little of long ones.
PRIOR_OF_ALL = 0.1
#: What was seen counts half after this share of the time gone: what else a machine does comes and goes.
HALF = 0.25
#: What is left of a task that takes longer than expected, as a share of what was expected.
OVERDUE = 0.1


@dataclass
class Part:
    """Seconds by estimate; the share that is done, that which was seen being done, and what it took.

    Attributes:
        method: parts of one kind and method are estimated alike, and alike wrongly.
        group: parts that are done after one another here, before those of the next.
        pieces: tasks that it is made of.
        passes: times that its stage is gone through when it is done here: an evaluation for each of several sets.
        at: when the last of it was seen.
    """

    cell: str
    kind: str
    seconds: float
    method: str = ""
    group: int = 0
    pieces: int = 1
    passes: int = 1
    done: float = 0.0
    seen: float = 0.0
    took: float = 0.0
    passed: int = 0
    at: float = 0.0

    @property
    def left(self) -> float:
        return self.seconds * (1 - self.done)


@dataclass
class Running:
    """A stage or a task at work on a part.

    Attributes:
        before: the part as it was when this began.
        first: the share that was done by then; None until it tells any.
    """

    part: Part
    before: Part
    began: float
    first: float | None = None

    def tell(self, share: float, now: float) -> None:
        """So much is done."""
        if self.first is None:  # what was before is no work on it
            self.first, self.began = share, now
        part, before = self.part, self.before
        part.done = min(1.0, (before.passed + share) / part.passes)
        part.seen = before.seen + max(0.0, share - self.first) / part.passes
        part.took, part.at = before.took + now - self.began, now


class Ahead:
    """Parts in the order in which they are done."""

    def __init__(self, parts: Iterable[Part] = (), workers: int = 1, clock: Callable[[], float] | None = None):
        self.parts = [part for part in parts if part.seconds > 0]
        self.clock, self._workers = clock or time.perf_counter, workers
        self._said, self._said_at = "", -math.inf
        self._kind, self._blind = "", not self.parts
        self._tasks, self._running = dict[str, Part](), dict[str, Running]()
        self._stage: Running | None = None
        self._began = self._group_began = self.clock()

    # --- parts that are done here, one after another

    def enter(self, kind: str, done: float) -> None:
        """A stage of the current group begins, of which a share is done already."""
        group = next((part.group for part in self.parts if part.done < 1), None)
        part = next((p for p in self.parts if p.group == group and p.kind == kind), None)
        self._stage = part and Running(part, replace(part), self.clock(), done)
        if part:
            for before in self.parts[: self.parts.index(part)]:  # found done, or too short to tell of it
                before.done = 1.0
            part.passed += 1

    def advance(self, share: float) -> None:
        """So much of the stage is done."""
        if self._stage:
            self._stage.tell(share, self.clock())

    def tick(self, group: int) -> None:
        """Its parts have ended, well or not. Those that no stage told of share the time that the others leave."""
        parts, now = [part for part in self.parts if part.group == group], self.clock()
        unseen = [part for part in parts if not part.seen]
        spent = now - self._group_began - sum(part.took for part in parts)
        seconds = sum(part.seconds for part in unseen) or 1.0
        for part in unseen:
            part.took = max(0.0, spent) * part.seconds / seconds
            part.seen, part.at = 1.0, now
        for part in parts:
            part.done = 1.0
        self._group_began = now

    # --- parts that are done as tasks by workers

    def begin(self, kind: str, tasks: Mapping[str, str], workers: int) -> None:
        """A round of tasks in their order, by name with the cell that each is of; of other cells nothing is to do."""
        counts, estimated = Counter(tasks.values()), [part for part in self.parts if part.kind == kind]
        methods = {part.cell: part.method for part in estimated}
        known = {cell: sum(part.seconds for part in estimated if part.cell == cell) for cell in methods}
        told = [cell for cell in counts if cell in known]
        usual = sum(known[cell] for cell in told) / sum(counts[cell] for cell in told) if told else float(self._blind)
        self._tasks = {
            name: Part(cell, kind, known[cell] / counts[cell] if cell in known else usual, methods.get(cell, ""))
            for name, cell in tasks.items()
        }
        others = [part for part in self.parts if part.kind != kind]
        for part in others:
            if KINDS.index(part.kind) < KINDS.index(kind):
                part.done = 1.0
        self.parts, self._kind, self._workers = [*others, *self._tasks.values()], kind, workers
        self._running = {}

    def hear(self, name: str, share: float | None) -> None:
        """A task of the round begins, perhaps again (None), or so much of it is done."""
        now, part = self.clock(), self._tasks[name]
        if share is None or name not in self._running:
            part.done = part.seen = part.took = 0.0
            part.at = now
            self._running[name] = Running(part, replace(part), now)
        if share is not None:
            self._running[name].tell(share, now)

    def end(self, name: str, seconds: float, *, failed: bool = False) -> None:
        """A task of the round ended, which took a worker so long; of one that failed that says nothing."""
        part, task = self._tasks[name], self._running.pop(name, None)
        part.done, part.took, part.at = 1.0, 0.0 if failed else seconds, self.clock()
        part.seen = 0.0 if failed else 1.0 - ((task and task.first) or 0.0)

    @property
    def at_work(self) -> list[tuple[str, float]]:
        """Names of the tasks that are at work, and what share of each is done."""
        return [(name, task.part.done) for name, task in list(self._running.items())]

    # --- what is left

    def left(self) -> float:
        """Seconds until all is done; until the end of the round where nothing was estimated."""
        running = {id(task.part): task for task in list(self._running.values())}
        known = {id(part): self._as_known(part, running.get(id(part))) for part in self.parts}
        overall = self._pace([*known.values()], 1.0, PRIOR_OF_ALL * sum(part.seconds for part in self.parts))
        total = 0.0
        for kind in [self._kind] if self._blind else KINDS:
            parts = [part for part in self.parts if part.kind == kind]
            paces = self._paces([known[id(part)] for part in parts], overall)
            at_work = [self._rest(running[id(part)], paces[part.method]) for part in parts if id(part) in running]
            waiting = [part for part in parts if id(part) not in running for _ in range(part.pieces)]
            each = [paces[part.method] * part.left / part.pieces for part in waiting]
            total += makespan(at_work + each, self._workers)
        return total

    def _as_known(self, part: Part, task: Running | None) -> Part:
        """A task that is at work for longer than was estimated, without a word, takes at least so long."""
        elapsed = self.clock() - task.began if task and not part.seen else 0.0
        return replace(part, seen=1.0, took=elapsed, at=self.clock()) if elapsed > part.seconds else part

    def _paces(self, parts: Sequence[Part], overall: float) -> dict[str, float]:
        """Of the methods of one kind."""
        usual = self._pace(parts, overall)
        methods = {part.method for part in parts}
        return {method: self._pace([part for part in parts if part.method == method], usual) for method in methods}

    def _rest(self, task: Running, usual: float) -> float:
        """Seconds that a task at work still takes: since it last told how far it is, some of them have passed."""
        left = self._pace([task.part], usual) * task.part.left
        return max(left - (self.clock() - task.part.at), OVERDUE * left)

    def _pace(self, parts: Sequence[Part], prior: float, weight: float | None = None) -> float:
        """Seconds taken for one that was estimated, with `weight` of these taken at the pace `prior`.

        What was seen lately counts more of what was seen, and no more beside the prior.

        Args:
            weight: by default that of a share of an average part.
        """
        if weight is None:
            weight = 0.0 if self._blind or not parts else PRIOR * sum(part.seconds for part in parts) / len(parts)
        now = self.clock()
        half = HALF * max(now - self._began, 1e-9)
        parts = [part for part in parts if part.seen]
        fresh = [0.5 ** ((now - part.at) / half) for part in parts]
        seen = sum(part.seconds * part.seen for part in parts)
        lately = sum(share * part.seconds * part.seen for share, part in zip(fresh, parts, strict=True))
        took = sum(share * part.took for share, part in zip(fresh, parts, strict=True))
        pace = took / lately if lately else 0.0
        return (pace * seen + prior * weight) / (seen + weight) if seen + weight else prior

    def words(self) -> str:
        """For the end of a line about something else; "" where nothing is known."""
        if self.parts and self.clock() - self._said_at >= 1:  # steps may take less than finding out
            self._said, self._said_at = self._words(), self.clock()
        return self._said

    def _words(self) -> str:
        if not self._blind:
            return f"; in all about {span(self.left())} left"
        running = [task.part.seen for task in list(self._running.values())]
        told = any(part.seen for part in self.parts) and all(running)
        return f"; about {span(self.left())} left of the {self._kind}" if told else ""


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
